"""Ladder side-tuning: the equations by hand, pruning by hand, a backbone nothing flows into, saved bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import interneuron as inn
from interneuron.adapt import LadderSideNetwork
from interneuron.artifacts import load_artifact
from interneuron.core.errors import FingerprintMismatch, InputError, UnsupportedModel
from interneuron.core.seeds import generator
from interneuron.model.model import Model
from interneuron.parts.importance import fisher_diagonal
from interneuron.parts.saved_tensors import SavedBytes
from interneuron.parts.width_pruning import keep_widths, layer_roles
from interneuron.testing.state import snapshot

TEXTS = ["mia looked at the lamp .", "she felt sad .", "the garden was lovely and the lamp was lovely ."]
IDS = torch.randint(5, 1000, (4, 24), generator=generator(1))


@pytest.fixture(scope="module")
def model() -> Model:
    return inn.load("lm")


@pytest.fixture(scope="module")
def side(model: Model) -> LadderSideNetwork:
    return LadderSideNetwork.from_backbone(model, inputs=TEXTS)


def test_the_ladder_by_hand(model: Model) -> None:
    """Equations 1 to 4 with the layers called one by one."""
    side = LadderSideNetwork.from_backbone(model, init="random", layers=[1, 4])
    with torch.no_grad():
        side.alpha.copy_(torch.tensor([0.05, -0.2]))
        acts = model.run(IDS, read=["embed", "layers.1.resid_post", "layers.4.resid_post"]).acts
        rungs = [down(x) for down, x in zip(side.down, acts.values(), strict=True)]
        places = side.net.rotary_emb(rungs[0], torch.arange(IDS.shape[1])[None])  # type: ignore[operator]
        s = rungs[0]
        for i, mu in enumerate(torch.sigmoid(torch.tensor([0.5, -2.0]))):
            layer = side.net.get_submodule(f"layers.{i}")
            mixed = mu * s + (1 - mu) * rungs[i + 1]
            s = layer(mixed, position_embeddings=places, attention_mask=None)
            s = s if isinstance(s, Tensor) else s[0]
        norm = side.net.get_submodule("norm")
        wanted = side.up(norm(s)) @ model.module.get_submodule("lm_head").weight.T  # type: ignore[union-attr, operator]
        torch.testing.assert_close(side(IDS), wanted, atol=1e-4, rtol=1e-4)


def test_the_last_token_is_told_despite_padding(side: LadderSideNetwork) -> None:
    with torch.no_grad():
        together = side(TEXTS, last=True)
        for row, text in zip(together, TEXTS, strict=True):
            torch.testing.assert_close(row, side([text])[0, -1], atol=1e-4, rtol=1e-4)


def test_what_is_kept_by_hand(model: Model) -> None:
    """Scores that are 1 everywhere but at planted places: those stay, and columns follow rows."""
    roles = layer_roles(model, 0)
    weights = dict(model.module.named_parameters())
    scores = {name: torch.full_like(p, 1e-3) for name, p in weights.items()}
    scores[f"{roles['q']}.weight"][[3, 35]] = 1.0  # dimension 3 of heads 0 and 1
    scores[f"{roles['up']}.weight"][100] = 1.0
    scores[f"{roles['o']}.weight"][77] = 5.0
    (kept,) = keep_widths(model, [roles], scores, 8)
    assert len(kept.stream) == 20 and 77 in kept.stream
    assert len(kept.query) == 20 and torch.equal(kept.query, kept.key)
    assert kept.query[:4].tolist() == [0, 1, 2, 3] and kept.query[4:8].tolist() == [32, 33, 34, 35]
    assert len(kept.hidden) == 54 and 100 in kept.hidden
    assert set((kept.query // 32).tolist()) == {0, 1, 2, 3, 4}  # every head keeps four


def test_weights_are_those_of_the_backbone(model: Model, side: LadderSideNetwork) -> None:
    scores = fisher_diagonal(model, TEXTS)
    roles = [layer_roles(model, i) for i in range(6)]
    kept = keep_widths(model, roles, scores, 8)[2]
    source, cut = model.module.get_submodule("model.layers.2"), side.net.get_submodule("layers.2")
    for name, rows, columns in (
        ("self_attn.k_proj", kept.key, kept.stream),
        ("self_attn.o_proj", kept.stream, kept.query),
        ("mlp.gate_proj", kept.hidden, kept.stream),
        ("mlp.down_proj", kept.stream, kept.hidden),
    ):
        weight: Tensor = source.get_submodule(name).weight  # type: ignore[assignment]
        assert torch.equal(cut.get_submodule(name).weight, weight[rows][:, columns])  # type: ignore[arg-type]
    assert torch.equal(
        cut.get_parameter("input_layernorm.weight"), source.get_parameter("input_layernorm.weight")[kept.stream]
    )
    x = torch.randn(3, 160, generator=generator(0))
    assert torch.equal(side.down[2](x), x[:, kept.stream])


def test_nothing_flows_into_the_backbone(model: Model) -> None:
    before, side = snapshot(model.module), LadderSideNetwork.from_backbone(model, init="magnitude", seed=3)
    side.loss(IDS).backward()
    assert all(p.grad is None for p in model.module.parameters())
    trained = [p for p in side.parameters() if p.requires_grad]
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in trained)
    assert not [line for line in before.differences(snapshot(model.module)) if "python rng" not in line]


def test_saved_bytes_and_the_report(model: Model, side: LadderSideNetwork) -> None:
    labels = torch.tensor([5, 6, 7])
    report = side.memory_report(TEXTS, labels)
    assert (
        report["share"] < 0.4 and report["side parameters"] == side.n_parameters < 0.04 * report["backbone parameters"]
    )
    with SavedBytes(model, exclude=side.parameters()) as meter:
        held = side.loss(TEXTS, labels)
    assert meter.live == report["side network"]
    del held


def test_training_lowers_the_loss_and_is_saved(model: Model, tmp_path: Path) -> None:
    side, again = (LadderSideNetwork.from_backbone(model, init="magnitude", layers=[0, 5]) for _ in range(2))
    curve = side.fit(IDS, steps=12, batch_size=4)
    assert curve == again.fit(IDS, steps=12, batch_size=4) and curve[-1] < curve[0] - 0.3
    assert curve != LadderSideNetwork.from_backbone(model, init="random", layers=[0, 5]).fit(
        IDS, steps=12, batch_size=4
    )
    saved = load_artifact(side.artifact().save(tmp_path / "side"))
    assert saved.same_bits(side.artifact()) and saved.plot()["names"] == ["0", "5"]  # type: ignore[attr-defined]
    with torch.no_grad():
        assert torch.equal(LadderSideNetwork.from_artifact(model, saved)(IDS), side(IDS))  # type: ignore[arg-type]
    with pytest.raises(FingerprintMismatch):
        LadderSideNetwork.from_artifact(inn.load("lm-base"), saved)  # type: ignore[arg-type]


def test_without_ladders_the_backbone_is_not_read(model: Model) -> None:
    side = LadderSideNetwork.from_backbone(model, init="random", ladders=False)
    with torch.no_grad():
        plain = side(IDS)
        with model.edit(inn.Ablate("layers.3.resid_post")):
            assert torch.equal(side(IDS), plain)
        full = LadderSideNetwork.from_backbone(model, init="random")
        ladder = full(IDS)
        with model.edit(inn.Ablate("layers.3.resid_post")):
            assert not torch.equal(full(IDS), ladder)
    assert side.gates.tolist() == [1.0] * 6


def test_another_family(unchecked: None) -> None:
    """Its q, k and v are one module: random beginnings work, others say so; positions come with the embedding."""
    model = inn.load("lm-gpt2")
    with torch.no_grad():
        logits = LadderSideNetwork.from_backbone(model, init="random")(IDS)
    assert logits.shape == (4, 24, model.module.config.vocab_size)  # type: ignore[union-attr]
    with pytest.raises(UnsupportedModel, match="init='random'"):
        LadderSideNetwork.from_backbone(model, init="magnitude")


@pytest.mark.usefixtures("unchecked")
def test_wrong_uses_teach(model: Model, side: LadderSideNetwork) -> None:
    for options, match in (
        ({"init": "fischer"}, "Did you mean 'fisher'"),
        ({}, "inputs missing"),
        ({"init": "random", "inputs": TEXTS}, "inputs given"),
        ({"init": "random", "layers": [3, 1]}, "rising numbers"),
        ({"init": "random", "layers": [6]}, "0 to 5"),
        ({"init": "random", "reduction": 7}, "does not divide"),
    ):
        with pytest.raises(InputError, match=match):
            LadderSideNetwork.from_backbone(model, **options)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedModel, match="no decoder"):
        LadderSideNetwork.from_backbone(inn.load("vit"), init="random")
    with pytest.raises(UnsupportedModel, match="no decoder"):
        LadderSideNetwork(inn.wrap(nn.Linear(2, 2)), 2, [0], True, 0)
    with pytest.raises(InputError, match="expected a list or tensor"):
        side.fit([])
    with pytest.raises(InputError, match="1 labels"):
        side.fit(TEXTS, torch.tensor([3]))

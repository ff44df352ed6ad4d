"""SAE detoxification: scores and vectors in NumPy, choice by effect and cost, the three tiers token by token."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from letters import letters_llama
from torch import Tensor

from interneuron.artifacts import Dictionary, load_artifact
from interneuron.core.errors import InputError, ShapeError
from interneuron.model.model import Model
from interneuron.steer.breaking_bad_tokens import FeatureSteering, SAEFeatureSteer, rank_toxic_features

SITE = "layers.0.resid_post"
POSITIVE, NEGATIVE = ["abcab", "cabbac", "bca"], ["xyzxy", "zyx", "wxyz"]


@pytest.fixture(scope="module")
def model() -> Model:
    return letters_llama(n_layers=2)


@pytest.fixture(scope="module")
def sae(model: Model) -> Dictionary:
    return dictionary(model.d_model)


def dictionary(d: int, **options: object) -> Dictionary:
    g = torch.Generator().manual_seed(3)
    decoder = torch.nn.functional.normalize(torch.randn(12, d, generator=g), dim=1)
    facts = {"activation": "topk", "k": 4, "scale": 2.0, "site": SITE} | options
    return Dictionary(
        encoder=decoder.T.contiguous(), decoder=decoder, encoder_bias=torch.zeros(12),
        decoder_bias=0.1 * torch.randn(d, generator=g), **facts,
    )  # fmt: skip


def codes(model: Model, sae: Dictionary, texts: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Activations and codes of every token but the first, text by text."""
    found = []
    for text in texts:
        x = model.run([text], read=[SITE]).acts[SITE][0, 1:].detach()
        found.append((x.double().numpy(), sae.encode(x).double().numpy()))
    return found


def test_scores_are_the_contrast_of_means_in_numpy(model: Model, sae: Dictionary) -> None:
    means = [np.mean([f.mean(0) for _, f in codes(model, sae, t)], axis=0) for t in (POSITIVE, NEGATIVE)]
    contrast = means[0] - means[1]
    ranked = rank_toxic_features(model, sae, POSITIVE, NEGATIVE, n=5)
    assert [j for j, _ in ranked] == np.argsort(-contrast)[:5].tolist()
    np.testing.assert_allclose([s for _, s in ranked], np.sort(contrast)[::-1][:5], atol=1e-5)
    assert len(rank_toxic_features(model, sae, POSITIVE, NEGATIVE, n=99)) == 12


@pytest.mark.parametrize("normalize", ["none", "constant_norm"])
def test_vectors_are_what_features_write_on_average(model: Model, normalize: str) -> None:
    sae = dictionary(model.d_model, normalize=normalize)
    found = SAEFeatureSteer(n=4, k=4).fit(model, sae, POSITIVE, NEGATIVE, *ruler(model.d_model))
    rows = codes(model, sae, POSITIVE)
    for j, vector in zip(found.features.tolist(), found.vectors.numpy(), strict=True):
        sizes = [
            f[t, j] / 2.0 * (np.linalg.norm(x[t]) / np.sqrt(len(x[t])) if normalize != "none" else 1.0)
            for x, f in rows
            for t in range(len(f))
            if f[t, j] > 0
        ]
        np.testing.assert_allclose(vector, np.mean(sizes) * sae.decoder[j].double().numpy(), atol=1e-5)


def ruler(d: int, price: float = 0.0) -> tuple[object, object]:
    """A measure and a cost that are linear in what an edit adds."""
    down, cost = torch.arange(d) - d / 2.0, torch.ones(d)

    def measure(edit: object) -> Tensor:
        return torch.zeros(2) if edit is None else (edit.alpha * edit.vector @ down).expand(2)

    def charge(edit: object) -> Tensor:
        return torch.zeros(3) if edit is None else (price * (edit.alpha * edit.vector).abs() @ cost).expand(3)

    return measure, charge


def test_the_features_of_largest_effect_within_the_limit_are_kept(model: Model, sae: Dictionary) -> None:
    d = model.d_model
    down = torch.arange(d) - d / 2.0
    free = SAEFeatureSteer(n=6, k=3, alphas=(1.0, 2.0)).fit(model, sae, POSITIVE, NEGATIVE, *ruler(d))
    all_six = SAEFeatureSteer(n=6, k=6, alphas=(1.0,)).fit(model, sae, POSITIVE, NEGATIVE, *ruler(d))
    assert free.fitted["alpha"] in (1.0, 2.0)
    for j, effect in zip(free.candidates.tolist(), free.effects.tolist(), strict=True):
        if j in all_six.features.tolist():  # linear: the best strength is the largest for a fall, the smallest else
            one = float(all_six.vectors[all_six.features.tolist().index(j)] @ down)
            assert effect == pytest.approx(max(one, 2 * one), rel=1e-4)
    order = free.candidates[free.effects.argsort(descending=True)].tolist()
    assert free.features.tolist() == order[: len(free.features)]
    falls = (free.vectors @ down).tolist()
    assert all(fall > 0 for fall in falls) or len(falls) == 1  # a feature that hurts is left out of the joint set
    dear = SAEFeatureSteer(n=6, k=3, alphas=(1.0, 2.0), limit=1.0).fit(
        model, sae, POSITIVE, NEGATIVE, *ruler(d, price=1e6)
    )
    assert len(dear.features) == 1
    assert dear.fitted["alpha"] == 1.0  # nothing is cheap enough, so the cheapest


def steering(sae: Dictionary, features: list[int], cut: float = 0.0) -> FeatureSteering:
    vectors = 3 * sae.decoder[features]
    one = torch.ones(len(features))
    return FeatureSteering(
        features=torch.tensor(features), vectors=vectors, candidates=torch.tensor(features), scores=one, effects=one,
        width=sae.n_features, cut=cut, site=SITE,
    )  # fmt: skip


def test_tiers_token_by_token(model: Model, sae: Dictionary) -> None:
    found, texts = steering(sae, [0, 5], cut=0.2), ["abcab", "xyzwv"]
    with torch.no_grad():
        x = model.run(texts, read=[SITE]).acts[SITE]
        fires = sae.encode(x)[..., [0, 5]] > 0.2
        assert 0 < int(fires.sum()) < fires.numel()
        gates = {"constant": torch.ones_like(fires), "per_token": fires}
        gates["per_input"] = fires.any(1, keepdim=True).expand_as(fires)
        for tier, gate in gates.items():
            edit = found.edit(0.5, tier, None if tier == "constant" else sae)
            got = model.run(texts, read=[SITE], edit=[edit]).acts[SITE]
            torch.testing.assert_close(got, x - 0.5 * gate.float() @ found.vectors, atol=1e-5, rtol=0)
            zero = model.run(texts, read=[SITE], edit=[0.0 * edit]).acts[SITE]
            assert torch.equal(zero, x)


def test_a_prompt_decides_for_what_is_generated(model: Model, sae: Dictionary) -> None:
    ids = torch.tensor([[3, 4, 5], [6, 7, 8]])
    with torch.no_grad():
        best = sae.encode(model.run(ids, read=[SITE]).acts[SITE]).amax(1)
    j = int((best[0] - best[1]).abs().argmax())
    low, high = best[:, j].sort().values.tolist()
    opened = best[:, j] > (low + high) / 2
    assert opened.sum() == 1
    found = steering(sae, [j], cut=(low + high) / 2)

    def grow(edit: object) -> Tensor:
        with model.edit(*([] if edit is None else [edit])), model.read("logits") as acts:
            model.generate(ids, max_new_tokens=4, do_sample=False)
        return acts["logits"]

    plain, constant, gated = grow(None), grow(found.edit(2.0)), grow(found.edit(2.0, "per_input", sae))
    row, other = int(opened.int().argmax()), int((~opened).int().argmax())
    torch.testing.assert_close(gated[other], plain[other])
    torch.testing.assert_close(gated[row], constant[row])
    assert not torch.allclose(gated[row], plain[row])


def test_without_a_measure_half_of_the_pairs_decides(model: Model, sae: Dictionary) -> None:
    found = SAEFeatureSteer(n=4, alphas=(0.5, 1.0)).fit(model, sae, POSITIVE, NEGATIVE)
    assert found.fitted["n_positive"] == 2
    again = SAEFeatureSteer(n=4, alphas=(0.5, 1.0)).fit(model, sae, POSITIVE, NEGATIVE)
    assert found.same_bits(again)
    assert all(p.grad is None for p in model.module.parameters())


def test_the_control_takes_other_features_at_the_same_lengths(sae: Dictionary, tmp_path) -> None:
    found = steering(sae, [0, 5])
    control = found.random_like(sae, seed=1)
    assert not set(control.features.tolist()) & {0, 5}
    torch.testing.assert_close(control.vectors.norm(dim=1), found.vectors.norm(dim=1))
    assert load_artifact(found.save(tmp_path / "found")).same_bits(found)
    assert found.plot()["names"] == ["0*", "5*"]
    candidate = found.candidate(sae, "per_token", controls=3, seed=1)
    assert len({tuple(make(1.0).fires.features.tolist()) for make in (candidate.make, *candidate.controls)}) == 4
    torch.testing.assert_close(candidate.control(0).edit(0.5).vectors, control.vectors)
    with pytest.raises(InputError, match="smaller n"):
        steering(sae, list(range(11))).random_like(sae, seed=0)


@pytest.mark.usefixtures("unchecked")
def test_mistakes_are_taught(model: Model, sae: Dictionary) -> None:
    found = steering(sae, [0])
    with pytest.raises(InputError, match="tier='loud' is unknown"):
        found.edit(1.0, "loud")
    with pytest.raises(InputError, match="pass dictionary="):
        found.edit(1.0, "per_token")
    with pytest.raises(InputError, match="leave it out"):
        found.edit(1.0, "constant", sae)
    with pytest.raises(InputError, match="the one the features were found in"):
        found.replace(width=99).edit(1.0, "per_token", sae)
    fitter = SAEFeatureSteer(n=2)
    with pytest.raises(InputError, match="list of at least one text"):
        fitter.fit(model, sae, "abc", NEGATIVE)
    with pytest.raises(InputError, match="must be pairs"):
        fitter.fit(model, sae, POSITIVE, NEGATIVE[:2])
    with pytest.raises(InputError, match="skip=1"):
        rank_toxic_features(model, sae, ["a"], NEGATIVE)
    with pytest.raises(InputError, match="a single site"):
        fitter.fit(model, sae.replace(target="layers.1.mlp.out"), POSITIVE, NEGATIVE)
    with pytest.raises(InputError, match="finite numbers"):
        fitter.fit(model, sae, POSITIVE, NEGATIVE, lambda edit: torch.tensor([torch.nan]))
    with pytest.raises(InputError, match="expected one of each"):
        SAEFeatureSteer(n=0).fit(model, sae, POSITIVE, NEGATIVE)
    with pytest.raises(ShapeError, match=r"expected \[k D\]"):
        found.replace(vectors=torch.ones(2, 4))

"""Scores and pattern of a model that stays on SDPA, against the same weights in eager mode with a patched kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tiny_models import BUILD, attention_modules, shared, tokens
from torch import Tensor

import interneuron as inn
from interneuron.core.errors import AxisError, SiteDidNotFire, UnsupportedModel

IDS = tokens(2, 7)
LEFT = {"input_ids": IDS, "attention_mask": torch.tensor([[1] * 7, [0, 0, 1, 1, 1, 1, 1]])}
KINDS = ("llama", "gpt2")
Change = Callable[[Tensor], Tensor]


@pytest.fixture(scope="module", params=KINDS)
def kind(request: Any) -> str:
    return request.param


@pytest.fixture
def model(kind: str) -> Any:
    return inn.wrap(shared(kind))


def eager(kind: str) -> Any:
    """The same weights on eager attention."""
    module = BUILD[kind](attn_implementation="eager")
    module.load_state_dict(shared(kind).state_dict())
    return module


@contextmanager
def patched(monkeypatch: Any, kind: str, layer: int, scores: Change | None = None, pattern: Change | None = None,
            seen: list[Tensor] | None = None) -> Iterator[Any]:  # fmt: skip
    """An eager model in which one layer's attention is written out here, with these changes: the reference."""
    import transformers.models.gpt2.modeling_gpt2 as gpt2
    import transformers.models.llama.modeling_llama as llama

    home = llama if kind == "llama" else gpt2
    module = eager(kind)
    target = attention_modules(module)[layer]
    original = home.eager_attention_forward

    def attention(part: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, *args: Any, **kw: Any) -> Any:
        if part is not target:
            return original(part, q, k, v, mask, *args, **kw)
        groups = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        logits = torch.einsum("bhqd,bhkd->bhqk", q, k) / q.shape[-1] ** 0.5
        if mask is None:
            mask = torch.full(logits.shape[-2:], -torch.inf).triu(1)
        logits = logits + mask.clamp(min=torch.finfo(logits.dtype).min)
        for change in filter(None, [scores]):
            logits = change(logits)
        weights = logits.softmax(-1)
        for change in filter(None, [pattern]):
            weights = change(weights)
        if seen is not None:
            for x in (logits, weights):
                x.retain_grad()
                seen.append(x)
        return torch.einsum("bhqk,bhkd->bqhd", weights, v), weights

    with monkeypatch.context() as patch:
        patch.setattr(home, "eager_attention_forward", attention)
        yield module


def ours(model: Any, *edits: Any, inputs: Any = IDS, sites: str = "*") -> tuple[Tensor, Any]:
    with torch.no_grad(), model.edit(*edits), model.read(sites) as acts:
        out = model(inputs).logits
    return out, acts


def halve_first_key(x: Tensor) -> Tensor:
    y = x.clone()
    y[..., 0] *= 0.5
    return y


CHANGES: dict[str, tuple[str, Callable[[str], Any], Change]] = {
    "halve a key": ("pattern", lambda s: inn.Scale(s, 0.5).at(key=0), halve_first_key),
    "uniform head": (
        "pattern",
        lambda s: inn.Replace(s, torch.full((7,), 1 / 7)).at(head=2),
        lambda x: _head(x, 2, 1 / 7),
    ),
    "knock out": (
        "scores",
        lambda s: inn.Replace(s, torch.tensor(-1e9)).at(key=1, query=slice(2, None)),
        lambda x: _knock(x),
    ),
    "temper": ("scores", lambda s: inn.Scale(s, 0.3).at(head=[0, 3]), lambda x: _temper(x)),
}


def _head(x: Tensor, h: int, value: float) -> Tensor:
    y = x.clone()
    y[:, h] = value
    return y


def _knock(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, :, 2:, 1] = -1e9
    return y


def _temper(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, [0, 3]] = torch.where(x[:, [0, 3]] < -1e30, x[:, [0, 3]], x[:, [0, 3]] * 0.3)
    return y


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("layer", [0, 1])
def test_an_edit_under_sdpa_matches_an_eager_model_and_leaves_earlier_layers(
    model: Any, kind: str, monkeypatch: Any, name: str, layer: int
) -> None:
    part, build, change = CHANGES[name]
    assert model.module.config._attn_implementation == "sdpa"
    plain, before = ours(model)
    edit = build(f"layers.{layer}.attn.{part}")
    got, after = ours(model, edit)
    with patched(monkeypatch, kind, layer, **{part: change}) as reference, torch.no_grad():
        want = reference(IDS).logits
    assert (got - plain).abs().max() > 1e-3, "the edit did nothing"
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    for site in model.sites():
        if any(site.name.startswith(f"layers.{i}.") for i in range(layer)) or site.name == "embed":
            assert torch.equal(before[site.name], after[site.name]), site.name
    assert torch.equal(got, ours(model, edit, sites=f"layers.{layer}.attn.z")[0])


def test_heads_rows_and_queries_that_are_not_edited_keep_their_bits(model: Any) -> None:
    _, before = ours(model)
    _, after = ours(model, inn.Scale("layers.0.attn.pattern", 0.5).at(head=1, row=1, query=[3, 5]))
    changed = (before["layers.0.attn.z"] != after["layers.0.attn.z"]).any(-1)
    assert changed.nonzero().tolist() == [[1, 3, 1], [1, 5, 1]]
    _, after = ours(model, inn.Add("layers.0.attn.scores", torch.tensor(1.0)).at(head=0, query=2, key=1))
    changed = (before["layers.0.attn.z"] != after["layers.0.attn.z"]).any(-1)
    assert changed.nonzero().tolist() == [[0, 2, 0], [1, 2, 0]]


@pytest.mark.parametrize("inputs", [{"input_ids": IDS}, LEFT], ids=["plain", "padded"])
def test_what_is_read_is_what_an_eager_model_computes(model: Any, kind: str, inputs: Any) -> None:
    plain = model.module(**inputs).logits
    out, acts = ours(model, inputs=inputs)
    assert torch.equal(out, plain)
    with torch.no_grad():
        want = eager(kind)(**inputs, output_attentions=True).attentions
    real = inputs.get("attention_mask", torch.ones_like(IDS)).bool()[:, None, :, None]
    for layer in range(2):
        pattern, scores = acts[f"layers.{layer}.attn.pattern"], acts[f"layers.{layer}.attn.scores"]
        torch.testing.assert_close(pattern * real, want[layer] * real, atol=1e-6, rtol=0)
        sums = torch.where(real[..., 0], pattern.sum(-1), 1.0)
        torch.testing.assert_close(sums, torch.ones_like(sums))
        allowed = (
            torch.ones(7, 7, dtype=torch.bool).tril()
            & inputs.get("attention_mask", torch.ones_like(IDS)).bool()[:, None, None]
        )
        assert torch.equal(torch.isfinite(scores), allowed.expand_as(scores))
        torch.testing.assert_close(scores.softmax(-1)[real.expand_as(scores)], pattern[real.expand_as(scores)])
        z = pattern @ acts[f"layers.{layer}.attn.v"].transpose(1, 2).repeat_interleave(
            4 // acts[f"layers.{layer}.attn.v"].shape[2], 1
        )
        kept = real.transpose(1, 2)
        torch.testing.assert_close(z.transpose(1, 2) * kept, acts[f"layers.{layer}.attn.z"] * kept, atol=1e-5, rtol=0)


def test_gradients_of_scores_and_pattern_equal_those_of_an_eager_model(model: Any, kind: str, monkeypatch: Any) -> None:
    seen: list[Tensor] = []
    with patched(monkeypatch, kind, 1, seen=seen) as reference:
        reference(IDS).logits[:, -1, 5].sum().backward()
    sites = ["layers.1.attn.scores", "layers.1.attn.pattern"]
    with model.read(sites, grad=True) as acts:
        model(IDS).logits[:, -1, 5].sum().backward()
    model.module.zero_grad()
    for site, want in zip(sites, seen, strict=True):
        torch.testing.assert_close(acts.grad[site], want.grad, atol=1e-5, rtol=0)
    assert acts.grad[sites[1]].abs().max() > 1e-4
    with model.read(model.site(sites[1]).at(head=2, query=-1), grad=True) as acts:
        model(IDS).logits[:, -1, 5].sum().backward()
    model.module.zero_grad()
    torch.testing.assert_close(acts.grad[sites[1]], seen[1].grad[:, 2, -1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("start", [1.0, 0.5])
def test_a_mask_on_heads_can_be_learned_also_from_where_it_changes_nothing(
    model: Any, kind: str, monkeypatch: Any, start: float
) -> None:
    factor = torch.full((4, 1, 1), start, requires_grad=True)
    other = factor.detach().clone().requires_grad_()
    with patched(monkeypatch, kind, 0, pattern=lambda x: x * other) as reference:
        want = reference(IDS).logits
        want[:, -1, 5].sum().backward()
    with model.edit(inn.Scale("layers.0.attn.pattern", factor)):
        got = model(IDS).logits
    got[:, -1, 5].sum().backward()
    if start == 1.0:
        assert torch.equal(got, model.module(IDS).logits)
    torch.testing.assert_close(factor.grad, other.grad, atol=1e-4, rtol=1e-4)
    mine = [p.grad.clone() for p in model.module.parameters() if p.grad is not None]
    model.module.zero_grad()
    theirs = [p.grad for p in reference.parameters() if p.grad is not None]
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


def test_edits_of_the_pattern_hold_during_generation(model: Any) -> None:
    edit = inn.Scale("layers.0.attn.pattern", 0.2).at(key=0, head=[1, 2]) + inn.Scale("layers.1.attn.scores", 0.5)
    options = {"max_new_tokens": 4, "return_dict_in_generate": True, "output_logits": True}
    logits = []
    for extra in ({}, {"use_cache": False}, {"prefill_chunk_size": 3}):
        with model.edit(edit):
            logits.append(torch.stack(model.generate(LEFT, **options, **extra).logits, 1))
    torch.testing.assert_close(logits[0], logits[1], atol=1e-4, rtol=0)
    torch.testing.assert_close(logits[0], logits[2], atol=1e-4, rtol=0)
    plain = torch.stack(model.generate(LEFT, **options).logits, 1)
    assert (plain - logits[0]).abs().max() > 1e-3


def test_keys_count_real_tokens_of_the_whole_sequence(model: Any) -> None:
    with model.edit(inn.Ablate("layers.0.attn.pattern").at(key=0)), model.read("layers.0.attn.pattern") as acts:
        model.generate(LEFT, max_new_tokens=3)
    passes = acts.calls("layers.0.attn.pattern")
    assert [tuple(p.shape[2:]) for p in passes] == [(7, 7), (1, 8), (1, 9)]
    for p in passes:
        assert not p[0, :, :, 0].any()
        assert not p[1, :, :, 2].any()
        assert p[1, :, -1, 3:].all()
    with pytest.raises(SiteDidNotFire, match=r"3 tensors in one pass.*acts.calls"):
        acts["layers.0.attn.pattern"]


def test_k_and_v_are_edited_where_they_are_used(model: Any) -> None:
    plain, acts = ours(model)
    for part in ("k", "v"):
        site = f"layers.1.attn.{part}"
        got, _ = ours(model, inn.Ablate(site).at(key=[0], head=0))
        assert (got - plain).abs().max() > 1e-3
        whole = acts[site].clone()
        whole[:, 0, 0] = 0
        assert torch.equal(got, ours(model, inn.Replace(site, whole))[0])


def test_only_the_module_touched_sees_another_config(model: Any) -> None:
    modules = attention_modules(model.module)
    configs = [m.config for m in modules]
    with model.read("layers.1.attn.pattern"):
        assert modules[0].config is configs[0]
        assert modules[1].config is not configs[1]
        assert model.module.config._attn_implementation == "sdpa"
        model(IDS)
        with model.edit(inn.Scale("layers.1.attn.pattern", 1.0)):
            model(IDS)
        assert modules[1].config is not configs[1]
    assert [m.config for m in modules] == configs
    assert all(m.config is c for m, c in zip(modules, configs, strict=True))
    assert "interneuron" not in repr(modules[1].config)


def test_eager_models_report_the_edited_weights(kind: str) -> None:
    model = inn.wrap(eager(kind))
    with model.edit(inn.Scale("layers.0.attn.pattern", 0.5)), torch.no_grad():
        edited = model(IDS, output_attentions=True).attentions[0]
    torch.testing.assert_close(edited.sum(-1), torch.full(edited.shape[:-1], 0.5))


def test_a_kernel_that_cannot_be_reproduced_is_refused(kind: str) -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    def odd(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **kw: Any) -> Any:
        return v.repeat_interleave(q.shape[1] // v.shape[1], 1).mean(2, keepdim=True).expand_as(q).transpose(1, 2), None

    AttentionInterface.register("odd_kernel", odd)
    AttentionMaskInterface.register("odd_kernel", sdpa_mask)
    module = BUILD[kind]()
    module.config._attn_implementation = "odd_kernel"
    model, part = inn.wrap(module), attention_modules(module)[0]
    original = part.config
    with (
        pytest.raises(UnsupportedModel, match=r"odd_kernel.* cannot be reproduced.*eager"),
        model.read("layers.0.attn.pattern"),
    ):
        model(IDS)
    assert part.config is original
    with model.read("layers.0.attn.z", "layers.0.attn.v"):  # what needs no explicit computation still works
        model(IDS)


def test_the_axes_of_a_map_are_query_and_key(model: Any) -> None:
    with (
        pytest.raises(AxisError, match="'query' and 'key' instead of 'pos'"),
        model.edit(inn.Scale("layers.0.attn.pattern", 0.5).at(pos=0)),
    ):
        model(IDS)
    assert model.site("layers.0.attn.pattern").axes == ("batch", "head", "query", "key")

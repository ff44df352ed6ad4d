"""A sweep gives what running its edits one by one gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import BUILD, Letters, shared, tokens, vector
from torch import Tensor

import interneuron as inn
from interneuron.core.errors import EditError, InputError, ShapeError, SiteDidNotFire

SITE = "layers.0.resid_post"
IDS = tokens(2, 6)
LEFT = {"input_ids": IDS, "attention_mask": torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])}


def edits(model: Any) -> list[Any]:
    with torch.no_grad(), model.read("layers.*") as acts:
        model(tokens(2, 6, seed=9))
    v = vector()
    gated = inn.Add(SITE, v).when(inn.Above(v))
    return [
        None,
        *(inn.Replace(f"layers.{i}.resid_post", acts[f"layers.{i}.resid_post"]) for i in range(2)),
        *(inn.Add(SITE, v).at(pos=p) for p in (0, 3, -1, [1, 2], [[0], [1, 2]], slice(1, -1))),
        inn.Replace(SITE, acts[SITE][:, -1]).at(pos=-1),
        inn.Replace(SITE, acts[SITE][1]).at(row=1),
        inn.Scale("layers.1.attn.z", 0.0).at(head=2, row=0),
        inn.Scale("layers.0.attn.pattern", 0.3).at(head=[0, 1], query=-1),
        inn.Scale("layers.1.attn.scores", 0.3).at(key=0),
        inn.Ablate("layers.1.attn.v").at(head=0),
        inn.Ablate("layers.1.mlp.hidden", "mean"),
        inn.Ablate("layers.1.mlp.out", "resample"),
        gated, gated.at(pos=2), inn.Add(SITE, v) + inn.Scale(SITE, 0.5), [inn.Project(SITE, v), None, gated],
        0.5 * inn.Ablate("logits").at(pos=-1), inn.Scale("embed", 1.3),
    ]  # fmt: skip


def metric(logits: Tensor) -> Tensor:
    return logits[:, -1, 7] - logits[:, 2, 3]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("inputs", [IDS, LEFT, LEFT["attention_mask"] + 4], ids=["plain", "padded", "other"])
def test_a_sweep_equals_one_by_one(kind: str, inputs: Any) -> None:
    model = inn.wrap(shared(kind))
    wanted = edits(model)
    scores = model.sweep(inputs, wanted, metric, batch_size=9)
    with torch.no_grad():
        one_by_one = [metric(model.run(inputs, edit=edit).output.logits).mean() for edit in wanted]
    torch.testing.assert_close(scores, torch.stack(one_by_one), atol=1e-4, rtol=1e-5)
    assert len({round(float(s), 4) for s in scores}) > 12
    torch.testing.assert_close(scores, model.sweep(inputs, wanted, metric, batch_size=1), atol=1e-4, rtol=1e-5)


def test_spans_and_texts_are_found_in_every_block() -> None:
    model = inn.wrap(shared("llama"), tokenizer=Letters())
    text = ["abcdef", "xxab"]
    wanted = [inn.Add(SITE, vector()).at(pos=p) for p in ("ab", inn.Span("ab", 0), inn.Token("x"))]
    with torch.no_grad():
        one_by_one = torch.stack([model.run(text, edit=e).output.logits[:, 3].mean() for e in wanted])
    torch.testing.assert_close(model.sweep(text, wanted, lambda x: x[:, 3].mean()), one_by_one, atol=1e-5, rtol=1e-5)


def test_few_passes_many_edits_and_no_trace() -> None:
    module = BUILD["llama"]()
    model = inn.wrap(module)
    model.check()
    calls: list[int] = []
    module.register_forward_pre_hook(lambda m, a, k: calls.append(len(k["input_ids"])), with_kwargs=True)
    wanted = [inn.Add(SITE, vector()).at(pos=p) for p in (0, 1, 2, 3, 4)]
    scores = model.sweep(IDS, wanted, lambda x: x.mean(), batch_size=6)
    assert calls == [6, 4]
    assert scores.shape == (5,)
    assert not scores.requires_grad
    assert model.sweep(IDS, [], metric).shape == (0,)
    with model.edit(inn.Ablate("layers.1.mlp.out")):  # an open edit holds for every block
        both = model.sweep(IDS, [None, wanted[0]], metric)
        with torch.no_grad():
            torch.testing.assert_close(both[0], metric(model(IDS).logits).mean(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("inputs", "wanted", "score", "error", "words"),
    [
        (IDS, [None], lambda x: x[:, 0], ShapeError, r"metric returned shape \(2, 50\): expected one number"),
        (IDS, [None], lambda x: "good", InputError, "metric returned str"),
        (IDS, ["layers.0.resid_post"], metric, EditError, "got str"),
        (IDS, [inn.Add(SITE, vector()).at(pos=9)], metric, SiteDidNotFire, "never matched"),
        (IDS, [inn.Add(SITE, vector(5))], metric, ShapeError, "width 5"),
        ({}, [None], metric, InputError, "found no batch"),
    ],
)
def test_wrong_sweeps(inputs: Any, wanted: Any, score: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        inn.wrap(shared("llama")).sweep(inputs, wanted, score)

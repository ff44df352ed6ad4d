"""Parity of runtimes: small gaps are measured, large ones are seen, and the model is left as it was."""

from __future__ import annotations

import pytest
import torch
from tiny_models import shared, tokens

import interneuron as inn
from interneuron.artifacts import Dictionary, Direction
from interneuron.core.errors import InputError
from interneuron.core.seeds import generator

V = torch.randn(32, generator=generator(1))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_every_runtime_agrees_with_the_reference(kind):
    pytest.importorskip("gguf")
    model = inn.wrap(shared(kind))
    before = model.module.config._attn_implementation
    direction = Direction(V, site="layers.1.resid_post")
    names = ["eager", "sdpa", "generate", "file", "gguf", "vllm_lens", "transformer_lens", "lm_eval", "easysteer"]
    report = direction.verify(model, tokens(2, 6), names)
    rows = {row["runtime"]: row for row in report.tables["runtimes"]}
    assert list(rows) == names
    assert report["passed"], rows
    assert report["effect"] > 0.1
    assert rows["file"]["largest"] == 0
    assert model.module.config._attn_implementation == before


def test_what_cannot_run_is_said_and_does_not_pass():
    model = inn.wrap(shared("llama"))
    report = Direction(V, site="layers.0.resid_post").verify(model, tokens(2, 6), ["file", "gguf"])
    rows = {row["runtime"]: row for row in report.tables["runtimes"]}
    assert rows["file"]["verdict"] == "same"
    assert rows["gguf"]["verdict"] == "not run"
    assert not report["passed"]
    with pytest.raises(InputError, match="Did you mean 'sdpa'"):
        Direction(V, site="layers.0.resid_post").verify(model, tokens(2, 6), ["spda"])


def test_a_runtime_that_differs_is_seen():
    """The control: an artifact whose edit is not what it was once it has been through a file."""
    model = inn.wrap(shared("llama"))
    direction = Direction(V, site="layers.1.resid_post")
    calls = []

    def drifting(value):
        calls.append(value)
        return value.edit(1.0 if len(calls) == 1 else 1.1)

    report = direction.verify(model, tokens(2, 6), ["file"], edit=drifting)
    assert report.tables["runtimes"][0]["verdict"] == "differs"
    assert not report["passed"]


def test_a_dictionary_is_compared_by_its_reconstruction():
    model = inn.wrap(shared("llama"))
    eye = torch.eye(32)
    d = Dictionary(encoder=torch.cat([eye, -eye], 1) * 0.9, decoder=torch.cat([eye, -eye]),
    encoder_bias=torch.zeros(64),
                   decoder_bias=torch.zeros(32), site="layers.0.resid_post")  # fmt: skip
    report = d.verify(model, tokens(2, 6), ["sdpa", "file", "saelens"])
    assert report["passed"], report.tables

"""What cannot be answered is refused with its reason; it never comes back as a plausible number."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from tiny_models import Letters, shared, tokens, vector
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache

import interneuron as inn
from interneuron.core.errors import InputError, PositionError, ShapeError, UnsupportedModel
from interneuron.model.family import Family

SITE = "layers.0.resid_post"
IDS = tokens(2, 6)


@pytest.fixture
def model() -> Any:
    return inn.wrap(shared("llama"), tokenizer=Letters())


# -- a value that fits in two ways ------------------------------------------------------------------------------------


def test_a_value_per_row_or_per_position_must_say_which(model: Any) -> None:
    square = tokens(4, 4)  # as many rows as positions
    value = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    for edit in (inn.Replace(SITE, value), inn.Add(SITE, value), inn.Ablate(SITE, "mean", value)):
        with pytest.raises(ShapeError, match=r"\(4, 32\).*in two ways.*value\[None\].*value\[:, None\]"):
            model.run(square, edit=edit)
    got = {}
    for name, shaped in (("per position", value[None]), ("per row", value[:, None])):
        got[name] = model.run(square, read=SITE, edit=inn.Replace(SITE, shaped)).acts[SITE]
        assert torch.equal(got[name], shaped.expand(4, 4, 32))
    # Where only one reading fits, or the selection says which, nothing is asked.
    last = model.run(square, read=SITE, edit=inn.Replace(SITE, value).at(pos=-1)).acts[SITE]
    assert torch.equal(last[:, -1], value)
    row = model.run(square, read=SITE, edit=inn.Replace(SITE, value).at(row=1)).acts[SITE]
    assert torch.equal(row[1], value)
    wide = model.run(tokens(2, 4), read=SITE, edit=inn.Replace(SITE, value)).acts[SITE]
    assert torch.equal(wide, value.expand(2, 4, 32))


def test_a_pattern_without_its_heads_must_say_so(model: Any) -> None:
    site, value = "layers.0.attn.pattern", torch.full((4, 6, 6), 1 / 6)
    with pytest.raises(ShapeError, match="one entry per row or one per head"):
        model.run(tokens(4, 6), edit=inn.Replace(site, value))
    model.run(tokens(2, 6), edit=inn.Replace(site, value))


# -- key positions and caches -----------------------------------------------------------------------------------------


def test_a_token_on_the_key_axis_is_refused_under_beams_only(model: Any) -> None:
    edit = inn.Scale("layers.1.attn.pattern", 0.5).at(key=inn.Token(int(IDS[0, 2])))
    with model.edit(edit):
        model.generate(IDS[:1], max_new_tokens=3)
    for generate in (model.generate, model.module.generate):
        with pytest.raises(PositionError, match="during beam search"), model.edit(edit):
            generate(IDS[:1], max_new_tokens=3, num_beams=2)
    with model.edit(inn.Scale("layers.1.attn.pattern", 0.5).at(key=2)):  # numbers mean the same in every beam
        model.generate(IDS[:1], max_new_tokens=3, num_beams=2)


def test_key_positions_under_a_static_or_sliding_cache_are_refused(model: Any) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    edit = inn.Scale("layers.1.attn.pattern", 0.5).at(key=0)
    with pytest.raises(PositionError, match="sliding or static KV cache"), model.edit(edit):
        model.generate(IDS, max_new_tokens=3, cache_implementation="static")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = MistralConfig(
            vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, sliding_window=4,
        )  # fmt: skip
        sliding = inn.wrap(MistralForCausalLM(config).eval())
    with pytest.raises(PositionError, match="sliding or static KV cache"), sliding.edit(edit):
        sliding.generate(IDS, max_new_tokens=4)
    with sliding.edit(inn.Scale("layers.1.attn.pattern", 0.5).at(key=0)):  # without a cache keys are the tokens
        sliding.generate(IDS, max_new_tokens=4, use_cache=False)
    with sliding.edit(inn.Scale("layers.1.attn.pattern", 0.5).at(query=-1)):  # queries are tokens in any case
        sliding.generate(IDS, max_new_tokens=4)


def test_a_cropped_cache_forgets_the_tokens_it_lost(model: Any) -> None:
    site, token, other = "layers.1.attn.pattern", int(IDS[0, 5]), next(i for i in range(50) if i not in IDS[0])
    cache = DynamicCache()
    with torch.no_grad(), model.read(model.site(site).at(key=inn.Token(other))) as acts:
        model.module(input_ids=IDS[:1], past_key_values=cache)
        cache.crop(-1)  # token 5 was a wrong guess: another one takes its place
        model.module(input_ids=torch.tensor([[other]]), past_key_values=cache)
        model.module(input_ids=torch.tensor([[token]]), past_key_values=cache)
        got = acts.calls(site)[-1]
    whole = torch.cat([IDS[:1, :5], torch.tensor([[other, token]])], dim=1)
    with torch.no_grad(), model.read(site) as acts:
        model.module(input_ids=whole)
    torch.testing.assert_close(got, acts[site][:, :, -1:, 5:6])


def test_plain_generate_without_a_cache(model: Any) -> None:
    edit = inn.Add(SITE, vector(), alpha=3.0).at(pos=-1)
    with model.edit(edit):
        want = model.generate(IDS, max_new_tokens=4)
        got = model.module.generate(IDS, max_new_tokens=4, use_cache=False)
    assert torch.equal(got, want)
    with pytest.raises(PositionError, match=r"Call model.generate"), model.edit(edit):
        model.module.generate(IDS, max_new_tokens=4, use_cache=False, num_beams=2)
    with model.edit(edit):
        model.generate(IDS, max_new_tokens=4, use_cache=False, num_beams=2)


def test_a_sweep_with_a_cache_is_refused(model: Any) -> None:
    with pytest.raises(InputError, match="past_key_values: a cache grows"):
        model.sweep({"input_ids": IDS, "past_key_values": DynamicCache()}, [None], lambda x: x.mean())


# -- shared modules under checkpointing -------------------------------------------------------------------------------


class Repeated(nn.Module):
    """One block run three times, with or without checkpointing."""

    checkpointing = False

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = checkpoint(self.block, x, use_reentrant=False) if self.checkpointing else self.block(x)
        return x


def test_an_edit_of_one_call_of_a_shared_module_is_refused_under_checkpointing() -> None:
    root = {"embed": "block:out | call 0 @ batch,d_model", "logits": "block:out | call 2 @ batch,d_model"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module, x = Repeated(), torch.randn(2, 4)
    model = inn.wrap(module, family=Family(name="repeated", classes=("Repeated",), root=root))
    edit = inn.Apply("embed", torch.tanh)
    with model.edit(edit):
        model(x).sum().backward()
    wanted = module.block.weight.grad.clone()
    assert wanted.abs().sum() > 0
    module.checkpointing = True
    with pytest.raises(UnsupportedModel, match="gradient checkpointing"), model.edit(edit):
        model(x).sum().backward()
    module.zero_grad()
    with model.edit(inn.Apply("block:out", torch.tanh)):  # an edit of every call is the same in backward
        model(x).sum().backward()
    assert module.block.weight.grad.abs().sum() > 0


# -- one-line refusals ------------------------------------------------------------------------------------------------


def test_what_is_no_module_and_what_is_no_name() -> None:
    code = """
import interneuron as inn, torch
for use in (lambda: inn.wrap([1]), lambda: inn.wrap(torch.nn.Linear(2, 2)).read(5)):
    try:
        use()
    except inn.core.errors.InterneuronError as error:
        print(type(error).__name__, error)
"""
    # In a process of its own: the run-time type checks of this test suite would refuse these calls first.
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    wrapped, read = run.stdout.splitlines()
    assert wrapped.startswith("InputError wrap() was given list: expected an nn.Module. Pass the module itself")
    assert read.startswith("SiteNotFound a site is a name or a Site, got int: e.g. ")

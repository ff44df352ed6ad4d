"""The position language and the selection by axis name: what each form means, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import LETTERS, Letters, shared, tiny_llama, tokens, vector

import interneuron as inn
from interneuron.core.errors import AxisError, InputError, PositionError
from interneuron.model.positions import Span, Token
from interneuron.model.selection import Selection

SITE = "layers.0.resid_post"
IDS = tokens(2, 6)
LEFT = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])


@pytest.fixture(scope="module")
def model() -> Any:
    return inn.wrap(shared("llama"), tokenizer=Letters())


def moved(model: Any, inputs: Any, **spec: Any) -> torch.Tensor:
    """Which positions an edit at this selection moves, as booleans [B, T]."""
    with torch.no_grad(), model.read(SITE) as before:
        model(inputs)
    with torch.no_grad(), model.edit(inn.Add(SITE, vector()).at(**spec)), model.read(SITE) as after:
        model(inputs)
    return (before[SITE] != after[SITE]).any(-1)


def logits_of(model: Any, inputs: Any, edit: Any, **options: Any) -> torch.Tensor:
    with model.edit(edit):
        out = model.generate(
            inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True, output_logits=True, **options
        )
    return torch.stack(out.logits, 1)


@pytest.mark.parametrize(
    ("pos", "rows"),
    [
        (0, [[0], [2]]),
        (-1, [[5], [5]]),
        ([0, 2], [[0, 2], [2, 4]]),
        ([[1], [0, 3]], [[1], [2, 5]]),
        ([[], [1]], [[], [3]]),
        (slice(1, 3), [[1, 2], [3, 4]]),
        (slice(-2, None), [[4, 5], [4, 5]]),
        (slice(None, -3), [[0, 1, 2], [2]]),
        (torch.tensor(1), [[1], [3]]),
        (np.int64(1), [[1], [3]]),
        (torch.tensor([0, 1]), [[0, 1], [2, 3]]),
        (torch.tensor([[0], [1]]), [[0], [3]]),
        (range(2), [[0, 1], [2, 3]]),
        ((0, slice(3, None)), [[0, 3, 4, 5], [2, 5]]),
    ],
)
def test_positions_count_real_tokens_of_a_left_padded_row(model: Any, pos: Any, rows: list[list[int]]) -> None:
    got = moved(model, {"input_ids": IDS, "attention_mask": LEFT}, pos=pos)
    real = [sorted(set(row)) for row in rows]
    assert [[t for t in range(6) if LEFT[b, t] and got[b, t]] for b in range(2)] == real
    assert not got[1, :2].any(), "padding was touched"


def test_right_padding_is_never_counted_or_touched(model: Any) -> None:
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    got = moved(model, {"input_ids": IDS, "attention_mask": mask}, pos=[-1, -2])
    assert got.nonzero().tolist() == [[0, 4], [0, 5], [1, 2], [1, 3]]
    assert not moved(model, {"input_ids": IDS, "attention_mask": mask}, pos=slice(None))[1, 4:].any()


def test_a_mask_given_by_position_counts_like_one_given_by_name(model: Any) -> None:
    named = moved(model, {"input_ids": IDS, "attention_mask": LEFT}, pos=0)
    assert torch.equal(named, moved(model, (IDS, LEFT), pos=0))
    assert named.nonzero().tolist() == [[0, 0], [1, 2]]


def test_spans_and_tokens_are_found_in_each_row(model: Any) -> None:
    text = ["abcabc", "xxcabx"]
    assert moved(model, text, pos="ab").nonzero().tolist() == [[0, 0], [0, 1], [0, 3], [0, 4], [1, 3], [1, 4]]
    assert moved(model, text, pos=Span("ab", -1)).nonzero().tolist() == [[0, 3], [0, 4], [1, 3], [1, 4]]
    assert moved(model, text, pos=Span("ca", 0)).nonzero().tolist() == [[0, 2], [0, 3], [1, 2], [1, 3]]
    assert moved(model, text, pos=Token("x")).nonzero().tolist() == [[1, 0], [1, 1], [1, 5]]
    assert moved(model, text, pos=Token(LETTERS.index("a"))).nonzero().tolist() == [[0, 0], [0, 3], [1, 3]]


def test_a_growing_sequence_given_pass_by_pass_is_a_new_sequence_each_time(model: Any) -> None:
    ids = tokens(1, 5)
    edit = inn.Add(SITE, vector()).at(pos=-1)
    with torch.no_grad(), model.edit(edit):
        grown = [model(ids[:, :n]).logits for n in (3, 4, 5)]
    for n, got in zip((3, 4, 5), grown, strict=True):
        with torch.no_grad(), model.edit(edit):
            assert torch.equal(got, model(ids[:, :n]).logits)


def test_two_long_lists_of_positions_are_not_confused_within_a_pass() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    model = inn.wrap(LlamaForCausalLM(config).eval())
    one = torch.arange(1200)
    other = one.clone()
    other[600] = 1300
    edits = [inn.Add("embed", torch.ones(16)).at(pos=one), inn.Replace(SITE, torch.zeros(16)).at(pos=other)]
    with torch.no_grad(), model.edit(*edits), model.read(SITE) as acts:
        model(tokens(1, 1400))
    zero = (acts[SITE][0] == 0).all(-1)
    assert zero[1300]
    assert not zero[600]


def test_a_selection_is_a_copy_of_what_it_was_given(model: Any) -> None:
    heads = [0]
    selection = Selection().merge({"head": heads, "pos": torch.tensor([1, 2])})
    heads.append(3)
    assert selection == Selection().merge({"heads": [0], "position": [1, 2]})
    assert hash(selection) == hash(Selection().merge({"head": (0,), "pos": range(1, 3)}))


@pytest.mark.parametrize(
    "way", [{}, {"cache_implementation": "static"}, {"prefill_chunk_size": 2}, {"use_cache": False}]
)
@pytest.mark.parametrize("spec", [{"pos": [0, 2]}, {"phase": "generated", "pos": 0}, {"pos": slice(-2, None)}])
def test_left_padding_is_known_whoever_states_it(model: Any, way: Any, spec: Any) -> None:
    ids = IDS.clone()
    ids[1, :2] = 0
    edit = inn.Add(SITE, vector(), alpha=2.0).at(**spec)
    want = logits_of(model, {"input_ids": ids, "attention_mask": LEFT}, edit)
    torch.testing.assert_close(logits_of(model, ids, edit, **way), want, atol=1e-4, rtol=0)  # inferred from padding
    torch.testing.assert_close(logits_of(model, ids, edit, attention_mask=LEFT, **way), want, atol=1e-4, rtol=0)


def test_a_conversation_continued_from_a_cache_keeps_its_positions(model: Any) -> None:
    from transformers import DynamicCache

    ids = tokens(1, 8)
    edit = inn.Add(SITE, vector(), alpha=2.0).at(pos=6)
    cache = DynamicCache()
    with torch.no_grad():
        model.module(ids[:, :4], past_key_values=cache)
    torch.testing.assert_close(
        logits_of(model, ids, edit, past_key_values=cache), logits_of(model, ids, edit), atol=1e-4, rtol=0
    )


def test_rows_are_prompts_also_when_each_has_beams(model: Any) -> None:
    edit = inn.Add(SITE, vector(), alpha=2.0).at(row=1)
    options = {"num_beams": 2, "max_new_tokens": 3, "return_dict_in_generate": True, "output_scores": True}
    plain = model.generate(IDS, **options)
    with model.edit(edit), model.read(model.site(SITE).at(row=1), model.site("embed").at(row=[1])) as acts:
        out = model.generate(IDS, **options)
    assert torch.equal(out.sequences_scores[0], plain.sequences_scores[0])
    assert not torch.equal(out.sequences_scores[1], plain.sequences_scores[1])
    assert acts[SITE].shape == (2, 8, 32)
    assert acts["embed"].shape == (2, 8, 32)


def test_reads_use_the_same_selection_and_join_over_a_generation(model: Any) -> None:
    site = model.site(SITE)
    with model.read(SITE) as acts:
        out = model.generate(IDS, max_new_tokens=3)
    whole = acts[SITE]
    assert whole.shape[:2] == (2, 8)
    with torch.no_grad(), model.read(SITE) as once:
        model(out[:, :-1])
    torch.testing.assert_close(whole, once[SITE], atol=1e-5, rtol=0)
    for spec, want in [
        ({"pos": -1}, whole[:, 5]), ({"pos": [0, 7]}, whole[:, [0, 7]]), ({"pos": slice(4, None)}, whole[:, 4:]),
        ({"phase": "generated"}, whole[:, 6:]), ({"phase": "prompt"}, whole[:, :6]),
        ({"phase": "generated", "pos": 1}, whole[:, 7]), ({"row": 1}, whole[1]), ({"row": [1], "pos": 0}, whole[1:, 0]),
    ]:  # fmt: skip
        with model.read(site.at(**spec)) as acts:
            model.generate(IDS, max_new_tokens=3)
        assert torch.equal(acts[SITE], want), spec


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ({"pos": 1.5}, AxisError, "pos=1.5"),
        ({"pos": True}, AxisError, "pos=True"),
        ({"pos": []}, AxisError, "not empty"),
        ({"pos": torch.tensor([True, False])}, AxisError, "nonzero"),
        ({"pos": {1, 2}}, AxisError, "expected an int"),
        ({"pos": -7}, PositionError, "before the start of row 0, whose prompt has 6"),
        ({"pos": [-1, -5]}, PositionError, "before the start of row 1, whose prompt has 4"),
        ({"pos": [[0]]}, PositionError, "given for 1 rows, the batch has 2"),
        ({"pos": [[0], 1]}, PositionError, "one list per row"),
        ({"pos": [["a"], [1]]}, PositionError, "per row are ints"),
        ({"pos": slice(0, 4, 2)}, PositionError, "step of 1"),
        ({"phase": "generated", "pos": -1}, PositionError, "the end is not known"),
        ({"phase": "generated", "pos": slice(-2, None)}, PositionError, "the end is not known"),
        ({"phase": "generated", "pos": "ab"}, PositionError, "never match"),
        ({"phase": "later"}, PositionError, "'prompt', 'generated'"),
        ({"pos": "zzz"}, PositionError, "'zzz'.*is not in the prompt"),
        ({"pos": Span("", 0)}, PositionError, "is not in the prompt"),
        ({"pos": Token("ab")}, PositionError, "2 tokens"),
        ({"head": 0}, AxisError, "no axis 'head'"),
        ({"query": 0}, AxisError, "no axis 'query'"),
        ({"row": 2}, AxisError, r"outside 0..1"),
        ({"row": "a"}, AxisError, "not an index"),
    ],
)  # fmt: skip
def test_what_means_nothing_is_refused(model: Any, spec: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words), torch.no_grad(), model.edit(inn.Add(SITE, vector()).at(**spec)):
        model({"input_ids": IDS, "attention_mask": LEFT})


def test_text_positions_need_a_tokenizer_and_ids() -> None:
    model = inn.wrap(tiny_llama())
    with pytest.raises(InputError, match="needs a tokenizer"), model.edit(inn.Add(SITE, vector()).at(pos="a")):
        model(IDS)
    with pytest.raises(InputError, match="needs a tokenizer"), model.edit(inn.Add(SITE, vector()).at(pos=Token("a"))):
        model(IDS)
    with pytest.raises(PositionError, match="no token ids"), model.edit(inn.Add(SITE, vector()).at(pos=Token(3))):
        model({"inputs_embeds": torch.zeros(1, 3, 32)})


def test_an_axis_is_chosen_once(model: Any) -> None:
    with pytest.raises(AxisError, match="already selected"):
        inn.Add(SITE, vector()).at(pos=0).at(pos=1)
    with pytest.raises(AxisError, match="named twice with different selections"):
        model.read(model.site(SITE).at(pos=0), model.site(SITE).at(pos=1))

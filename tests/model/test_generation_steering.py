"""Steering during generation equals recomputing the whole sequence without a cache, row by row, without padding.

The reference knows nothing of the library: plain PyTorch hooks on the plain module, one unpadded row at a time, and a
position mask written down from the definition of the position language.
"""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import D_HEAD, HEADS, LETTERS, VOCAB, WIDTH, Letters, shared, vector
from torch import Tensor

import interneuron as inn
from interneuron.core.errors import SiteDidNotFire
from interneuron.model.positions import Span, Token

WRAPPED: dict[str, Any] = {}


def wrapped(kind: str) -> Any:
    if kind not in WRAPPED:
        WRAPPED[kind] = inn.wrap(shared(kind), tokenizer=Letters())
    return WRAPPED[kind]


@dataclasses.dataclass(frozen=True)
class Case:
    kind: str
    rows: list[list[int]]
    site: str
    layer: int
    operation: str
    head: list[int] | None
    pos: Any
    phase: str
    mode: str
    new: int

    def edit(self) -> Any:
        name = f"layers.{self.layer}.{self.site}"
        width = D_HEAD if self.site == "attn.z" else WIDTH
        v = vector(width, 7)
        made = {
            "add": lambda: inn.Add(name, v, alpha=0.7),
            "scale": lambda: inn.Scale(name, 0.3),
            "project": lambda: inn.Project(name, v),
            "clamp": lambda: inn.Clamp(name, v, 1.5),
        }[self.operation]()
        spec = {"phase": self.phase}
        if self.pos is not None:
            spec["pos"] = self.pos
        if self.head is not None:
            spec["head"] = self.head
        return made.at(**spec)


# -- the reference: definitions only ----------------------------------------------------------------------------------


def positions(case: Case, row: int, ids: list[int]) -> list[bool]:
    """Which tokens of one unpadded row the case means; `ids` is the row so far, its prompt comes first."""
    n_prompt = len(case.rows[row])
    chosen = []
    for t in range(len(ids)):
        generated = t >= n_prompt
        in_phase = {"all": True, "prompt": not generated, "generated": generated}[case.phase]
        at = t - n_prompt if case.phase == "generated" else t
        chosen.append(in_phase and means(case.pos, row, at, t, ids, n_prompt))
    return chosen


def means(pos: Any, row: int, at: int, t: int, ids: list[int], n_prompt: int) -> bool:
    if pos is None:
        return True
    if isinstance(pos, int):
        return at == (pos if pos >= 0 else n_prompt + pos)
    if isinstance(pos, slice):
        start = 0 if pos.start is None else pos.start if pos.start >= 0 else n_prompt + pos.start
        stop = 10**9 if pos.stop is None else pos.stop if pos.stop >= 0 else n_prompt + pos.stop
        return start <= at < stop
    if isinstance(pos, Token):
        return ids[t] == (pos.token if isinstance(pos.token, int) else LETTERS.index(pos.token))
    if isinstance(pos, Span):
        text = "".join(LETTERS[i] for i in ids[:n_prompt])
        starts = [i for i in range(len(text)) if text.startswith(pos.text, i)]
        starts = starts if pos.which == "all" else [starts[int(pos.which)]]
        return any(start <= t < start + len(pos.text) for start in starts)
    if pos and isinstance(pos[0], list):
        return any(means(item, row, at, t, ids, n_prompt) for item in pos[row])
    return any(means(item, row, at, t, ids, n_prompt) for item in pos)


def rewritten(case: Case, x: Tensor) -> Tensor:
    u = vector(x.shape[-1], 7)
    if case.operation == "add":
        return x + 0.7 * u
    if case.operation == "scale":
        return 0.3 * x
    u = u / u.norm()
    along = (x * u).sum(-1, keepdim=True)
    return x - along * u if case.operation == "project" else x + (1.5 - along) * u


class Reference:
    """Plain hooks on the plain module for one unpadded row (or its beams)."""

    def __init__(self, case: Case, row: int) -> None:
        self.case, self.row, self.ids, self.touched = case, row, torch.empty(0), False

    def change(self, x: Tensor) -> Tensor:
        case = self.case
        chosen = torch.tensor([positions(case, self.row, ids) for ids in self.ids.tolist()])
        self.touched |= bool(chosen.any())
        mask = chosen.reshape(*chosen.shape, *[1] * (x.ndim - 2))
        if case.head is not None:
            heads = torch.tensor([h in case.head for h in range(HEADS)])
            mask = mask & heads[None, None, :, None]
        return torch.where(mask, rewritten(case, x), x)

    def __enter__(self) -> Reference:
        case, module = self.case, shared(self.case.kind)
        base = module.model if case.kind == "llama" else module.transformer
        block = (base.layers if case.kind == "llama" else base.h)[case.layer]
        attention = block.self_attn if case.kind == "llama" else block.attn

        def look(module: Any, args: Any, kwargs: Any) -> None:
            self.ids = kwargs["input_ids"]

        def out(module: Any, args: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (self.change(output[0]), *output[1:])
            return self.change(output)

        def into(module: Any, args: Any) -> Any:
            heads = args[0].reshape(*args[0].shape[:2], HEADS, D_HEAD)
            return (self.change(heads).flatten(-2), *args[1:])

        self.stack = ExitStack()
        handles = [module.register_forward_pre_hook(look, with_kwargs=True)]
        if case.site == "attn.z":
            target = attention.o_proj if case.kind == "llama" else attention.c_proj
            handles.append(target.register_forward_pre_hook(into))
        else:
            target = {"resid_post": block, "attn.out": attention, "mlp.out": block.mlp}[case.site]
            handles.append(target.register_forward_hook(out))
        for handle in handles:
            self.stack.callback(handle.remove)
        return self

    def __exit__(self, *error: Any) -> None:
        self.stack.close()


def options_of(case: Case) -> dict[str, Any]:
    options = {"max_new_tokens": case.new, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    if case.mode.startswith("beams"):
        options |= {"num_beams": 2, "num_return_sequences": 2 if case.mode == "beams-all" else 1, "output_scores": True}
    return options


def reference_generation(case: Case) -> tuple[list[list[list[int]]], Any, bool]:
    """New tokens of each row, logits (greedy) or scores (beams) of each row, and whether any position was meant."""
    new, numbers, touched = [], [], False
    for r, row in enumerate(case.rows):
        with Reference(case, r) as reference:
            out = shared(case.kind).generate(torch.tensor([row]), use_cache=False, **options_of(case))
        new.append(out.sequences[:, len(row) :].tolist())
        numbers.append(out.sequences_scores if case.mode.startswith("beams") else torch.stack(out.logits, 1)[0])
        touched |= reference.touched
    return new, numbers, touched


# -- ours -------------------------------------------------------------------------------------------------------------


def padded(rows: list[list[int]], side: str) -> tuple[Tensor, Tensor]:
    longest = max(map(len, rows))
    left = side == "left"
    ids = [[5] * (longest - len(row)) + row if left else row + [5] * (longest - len(row)) for row in rows]
    mask = [
        [0] * (longest - len(row)) + [1] * len(row) if left else [1] * len(row) + [0] * (longest - len(row))
        for row in rows
    ]
    return torch.tensor(ids), torch.tensor(mask)


def our_generation(case: Case) -> tuple[list[list[list[int]]], Any]:
    ids, mask = padded(case.rows, "left")
    options = options_of(case)
    if case.mode == "no-cache":
        options["use_cache"] = False
    if case.mode == "static":
        options["cache_implementation"] = "static"
    if case.mode.startswith("chunks"):
        options["prefill_chunk_size"] = int(case.mode[-1])
    model = wrapped(case.kind)
    with model.edit(case.edit()):
        out = model.generate({"input_ids": ids, "attention_mask": mask}, **options)
    new = out.sequences[:, ids.shape[1] :].reshape(len(case.rows), -1, case.new).tolist()
    if case.mode.startswith("beams"):
        return new, out.sequences_scores.reshape(len(case.rows), -1)
    return new, torch.stack(out.logits, 1)


def our_decoding(case: Case) -> tuple[list[list[list[int]]], Any]:
    """A hand-written greedy loop over the model's own cache."""
    from transformers import DynamicCache

    ids, mask = padded(case.rows, "left")
    model, cache = wrapped(case.kind), DynamicCache()
    tokens, logits = [], []
    with torch.no_grad(), model.edit(case.edit()):
        where = (mask.cumsum(1) - 1).clamp(min=0)
        for _ in range(case.new):
            out = model({"input_ids": ids, "attention_mask": mask}, past_key_values=cache, position_ids=where)
            logits.append(out.logits[:, -1])
            ids = logits[-1].argmax(-1, keepdim=True)
            tokens.append(ids)
            mask = torch.cat([mask, torch.ones_like(ids)], 1)
            where = where[:, -1:] + 1
    return torch.cat(tokens, 1)[:, None].tolist(), torch.stack(logits, 1)


def check_plain_pass(case: Case, side: str) -> None:
    """One forward pass over a padded batch against every row alone."""
    wanted, touched = [], False
    for r, row in enumerate(case.rows):
        with torch.no_grad(), Reference(case, r) as reference:
            wanted.append(shared(case.kind)(input_ids=torch.tensor([row])).logits[0])
        touched |= reference.touched
    ids, mask = padded(case.rows, side)
    where = (mask.cumsum(1) - 1).clamp(min=0)
    model = wrapped(case.kind)

    def ours() -> Tensor:
        with torch.no_grad(), model.edit(case.edit()):
            return model({"input_ids": ids, "attention_mask": mask}, position_ids=where).logits

    if not touched:
        with pytest.raises(SiteDidNotFire, match="never matched"):
            ours()
        return
    logits = ours()
    for r in range(len(case.rows)):
        torch.testing.assert_close(logits[r][mask[r].bool()], wanted[r], atol=1e-4, rtol=0)


def check_case(case: Case) -> None:
    if case.mode in ("left", "right"):
        check_plain_pass(case, case.mode)
        return
    new, numbers, touched = reference_generation(case)
    run = our_decoding if case.mode == "by-hand" else our_generation
    if not touched:
        with pytest.raises(SiteDidNotFire, match="never matched"):
            run(case)
        return
    ours, our_numbers = run(case)
    assert ours == new
    for got, want in zip(our_numbers, numbers, strict=True):
        torch.testing.assert_close(got, want, atol=1e-4, rtol=0)


# -- the cases --------------------------------------------------------------------------------------------------------


def draw_pos(rng: Random, rows: list[list[int]], phase: str) -> Any:
    """Any form of the position language; negative numbers reach at most as far back as the shortest row."""
    low = 0 if phase == "generated" else -min(map(len, rows))

    def one() -> int:
        return rng.randint(low, 9)

    def bound() -> int | None:
        return rng.choice([None, one()])

    form = rng.choice(["all", "int", "list", "per row", "slice", "token", "token text", "mixed"])
    token = rng.choice(rows[rng.randrange(len(rows))])
    return {
        "all": lambda: None,
        "int": one,
        "list": lambda: [one() for _ in range(rng.randint(1, 3))],
        "per row": lambda: [[one() for _ in range(rng.randint(0, 2))] for _ in rows],
        "slice": lambda: slice(bound(), bound()),
        "token": lambda: Token(rng.choice([token, rng.randrange(3, VOCAB)])),
        "token text": lambda: Token(LETTERS[token]),
        "mixed": lambda: [one(), slice(bound(), bound()), Token(token)],
    }[form]()


@st.composite
def cases(draw: Any, mode: str) -> Case:
    """One seed decides the case, so that rare combinations are as likely as plain ones."""
    rng = Random(draw(st.integers(0, 2**40)))
    rows = [[rng.randrange(3, VOCAB) for _ in range(rng.randint(3, 8))] for _ in range(rng.randint(1, 3))]
    phase = rng.choice(["all", "all", "prompt", "generated"])
    pos = draw_pos(rng, rows, phase)
    if phase != "generated" and rng.random() < 0.25:
        text = [rng.randrange(3, VOCAB) for _ in range(rng.randint(1, 2))]
        for row in rows:
            at = rng.randint(0, len(row))
            row[at:at] = text
        pos = Span("".join(LETTERS[i] for i in text), rng.choice(["all", 0, -1]))
    site = rng.choice(["resid_post", "attn.out", "mlp.out", "attn.z"])
    return Case(
        kind=rng.choice(["llama", "gpt2"]), rows=rows, site=site, layer=rng.randrange(2),
        operation=rng.choice(["add", "scale", "project", "clamp"]),
        head=rng.choice([None, [0], [1, 3]]) if site == "attn.z" else None,
        pos=pos, phase=phase, mode=mode, new=rng.randint(1, 5),
    )  # fmt: skip


MODES = ("cache", "no-cache", "static", "chunks2", "chunks3", "beams", "beams-all", "by-hand", "left", "right")


@pytest.mark.parametrize("mode", MODES)
def test_steering_equals_recomputing_every_row_alone(mode: str) -> None:
    @settings(max_examples=20, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(case=cases(mode))
    def check(case: Case) -> None:
        check_case(case)

    check()


def tinystories(shared_data: Path) -> tuple[Any, Any]:
    folder = shared_data / "models" / "tinystories-260k"
    if not folder.is_dir():
        pytest.skip("no tinystories-260k among the real data")
    model = inn.load(folder)
    return model, model.module


@pytest.mark.parametrize("case", [{"pos": -1}, {"phase": "generated"}, {"pos": slice(2, None)}, {"phase": "prompt"}])
def test_a_real_model_steered_in_a_padded_batch_writes_what_each_row_alone_writes(shared_data: Path, case: Any) -> None:
    model, module = tinystories(shared_data)
    texts = ["Once upon a time", "The little dog ran to the big", "Tom"]
    edit = inn.Add("layers.2.resid_post", vector(model.d_model), alpha=1.5).at(**case)
    with model.edit(edit):
        batch = model.generate(texts, max_new_tokens=8, do_sample=False)
        alone = [model.generate(text, max_new_tokens=8, do_sample=False) for text in texts]
    assert batch == alone
    plain = model.generate(texts, max_new_tokens=8, do_sample=False)
    assert plain != batch
    ids = torch.tensor([model.tokenizer(texts[1])["input_ids"]])
    n_prompt = ids.shape[1]

    def steer(part: Any, args: Any, output: Any) -> Any:
        x = (output[0] if isinstance(output, tuple) else output).clone()
        place = {"pos=-1": [n_prompt - 1], "phase=generated": range(n_prompt, 99), "phase=prompt": range(n_prompt)}
        key = ", ".join(f"{k}={v}" for k, v in case.items())
        where = [t for t in place.get(key, range(2, 99)) if t < x.shape[1]]
        x[:, where] += 1.5 * vector(model.d_model)
        return (x, *output[1:]) if isinstance(output, tuple) else x

    handle = module.model.layers[2].register_forward_hook(steer)
    try:
        want = module.generate(ids, use_cache=False, max_new_tokens=8, do_sample=False)
    finally:
        handle.remove()
    assert model.tokenizer.decode(want[0], skip_special_tokens=True) == batch[1]

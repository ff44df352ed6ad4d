"""One position language for prompts, generated tokens, batches, paddings and caches.

    pos=3            token 3 of the row, counted from 0 over real tokens (padding is never counted or touched)
    pos=-1           the last token of the prompt; in a plain pass, the last real token of the row
    pos=[0, 3]       several tokens of every row          pos=[[0], [2, 3]]   one list per row of the batch
    pos=slice(2, -1) a range; an open end runs on through the generated tokens
    pos="Paris"      every token that overlaps this text of the prompt;  pos=Span("Paris", 0) only its first occurrence
    pos=Token("the") every token that is this one, in prompt and continuation
    phase="generated"  only tokens the model produced; then pos=0 is the first of them

The meaning does not change with left or right padding, KV cache on or off, chunked prefill, beams or batch order:
positions count real tokens of a row, and the prompt is what the row held when generation began. A generated token is
the position at which that token is fed back in; the first new token is produced at the last prompt position.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interneuron.core.errors import PositionError
from interneuron.model.selection import Phase
from interneuron.model.spans import Span, Token, span_tokens, token_id


class Stream:
    """What is known of the token sequence flowing through one part of a model (its decoder, its encoder).

    `begin` is called with the arguments of every forward pass and decides whether the pass starts a new sequence or
    continues one held in a KV cache. Everything else is computed only when a selection asks for it.
    """

    def __init__(self, tokenizer: Any = None) -> None:
        self.tokenizer = tokenizer
        self.batch: int | None = None
        self.length = 0
        self.past = 0
        self.continuing = False
        self.serial = 0
        self.rows: int | None = None
        self._ids: Tensor | None = None
        self._mask: Tensor | None = None
        self._cache: Any = None
        self._history: list[Tensor] = []
        self._prompt: Tensor | None = None
        self._prompt_columns = 0
        self._fixed: tuple[Tensor, list[Tensor] | None] | None = None
        self.fresh = False  # the caller says that the next pass without a cache is a sequence of its own
        self._memo: dict[Any, Any] = {}
        self._spans: dict[Span, list[list[int]]] = {}

    # -- following the passes -------------------------------------------------------------------------------------

    def begin(self, ids: Tensor | None, length: int, batch: int | None, mask: Any, cache: Any) -> None:
        """Note a forward pass: its token ids (or None), columns, batch size, 2-d attention mask and cache object."""
        past = 0
        if cache is not None:
            past = _cache_length(cache)
            if not past and cache is self._cache:
                past = self.past + self.length
        restart = past == 0 and (self.fresh or not self._extends(ids, length, batch))
        self.fresh = False
        self.continuing = not restart
        self.serial += 1
        self._memo.clear()
        self.batch, self.length, self.past, self._cache = batch, length, past, cache
        self._mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
        if restart or not past:
            self._history = []
        if restart:
            self._spans.clear()
            self._prompt = None
            self._prompt_columns = length
        elif self._prompt_columns == 0:  # a cache from before this context: what it holds is the prompt
            self._prompt_columns = past
        self._ids = ids
        self._forget_after(past)
        if ids is not None:
            self._history.append(ids)

    def _forget_after(self, past: int) -> None:
        """Drop token ids that the cache holds no more: a cache that was cropped goes on from an earlier point."""
        known = sum(ids.shape[1] for ids in self._history)
        if known > past:
            self._history = [torch.cat(self._history, dim=1)[:, :past]] if past else []

    def _extends(self, ids: Tensor | None, length: int, batch: int | None) -> bool:
        """True when generation without a cache feeds the whole sequence again, one column longer."""
        if self._fixed is not None:
            return self.serial > 0 and batch == self.batch and length > self.prompt_columns
        old = self._ids
        return (
            ids is not None
            and old is not None
            and self.past == 0
            and ids.shape[0] == old.shape[0]
            and ids.shape[1] == old.shape[1] + 1
            and torch.equal(ids[:, :-1], old)
        )

    def fix_prompt(self, real: Bool[Tensor, "B columns"], ids: list[Tensor] | None = None) -> None:
        """State the prompt before generation begins: where its real tokens are, and each row's tokens if known."""
        self._fixed = (real, ids)
        self.rows = int(real.shape[0])
        self.forget()

    def release_prompt(self) -> None:
        """End the generation announced by `fix_prompt`."""
        self._fixed = None
        self.rows = None
        self.forget()

    def forget(self) -> None:
        """Drop what is known of the current sequence, so that the next pass starts a new one."""
        self._cache, self._ids, self._prompt, self._history = None, None, None, []
        self.batch, self.past, self.length, self._prompt_columns, self.serial = None, 0, 0, 0, 0
        self._memo.clear()
        self._spans.clear()

    def block(self, rows: slice) -> Stream:
        """The same pass, seen by a block of rows of the batch."""
        memo = ("block", rows.start, rows.stop)
        if memo not in self._memo:
            part = Stream(self.tokenizer)
            part.__dict__.update(self.__dict__)
            part.batch = rows.stop - rows.start
            part._memo, part._spans, part._prompt = {}, {}, None
            part._mask = None if self._mask is None else self._mask[rows]
            part._ids = None if self._ids is None else self._ids[rows]
            part._history = [ids[rows] for ids in self._history]
            self._memo[memo] = part
        return self._memo[memo]

    # -- where tokens are -----------------------------------------------------------------------------------------

    @property
    def prompt_columns(self) -> int:
        """Columns of the prompt, padding included."""
        return self._fixed[0].shape[1] if self._fixed is not None else self._prompt_columns

    def pass_phase(self) -> str:
        """`prompt`, `generated` or `mixed`: what the columns of the current pass are."""
        if self.past >= self.prompt_columns:
            return "generated"
        return "prompt" if self.past + self.length <= self.prompt_columns else "mixed"

    def real(self, device: torch.device) -> Bool[Tensor, "B columns"]:
        """True at real tokens, for all columns up to the end of this pass."""
        total = self.past + self.length
        stated = self._stated(device)
        if stated is not None:  # everything after the prompt is real
            stated = torch.nn.functional.pad(stated, (0, max(0, total - stated.shape[1])), value=True)
            return stated[:, :total]
        if self._mask is not None and self._mask.shape[0] == self.batch and self._mask.shape[1] >= self.length:
            mask = self._mask[:, :total].to(device).bool()
            if mask.shape[1] < total:  # the mask covers this pass only
                mask = torch.nn.functional.pad(mask, (total - mask.shape[1], 0), value=True)
            return mask
        return torch.ones(self.batch or 1, total, dtype=torch.bool, device=device)

    def _stated(self, device: torch.device) -> Bool[Tensor, "B columns"] | None:
        """Real tokens of the prompt as stated by `fix_prompt`, one row for every beam or sample of it."""
        if self._fixed is None or (self.batch or 0) % len(self._fixed[0]):
            return None
        return self._fixed[0].to(device).repeat_interleave((self.batch or 1) // len(self._fixed[0]), 0)

    def index(self, device: torch.device) -> Int[Tensor, "B columns"]:
        """Number of each column's token within its row (padding: -1)."""
        real = self.real(device)
        return torch.where(real, real.long().cumsum(1) - 1, torch.full_like(real, -1, dtype=torch.long))

    def prompt_lengths(self, device: torch.device) -> Int[Tensor, " B"]:
        """Real tokens of each row's prompt."""
        stated = self._stated(device)
        if stated is not None:
            return stated.sum(1)
        if self._prompt is None:
            self._prompt = self.real(device)[:, : self._prompt_columns].sum(1)
        return self._prompt.to(device)

    # -- resolving a choice ---------------------------------------------------------------------------------------

    def select(
        self, choice: Any, phase: Phase, columns: int, device: torch.device, whole: bool = False
    ) -> Bool[Tensor, "B columns"] | bool:
        """Which of the last `columns` columns a choice means: True (all), False (none) or a mask.

        whole: the columns are the whole sequence so far (the key axis), not just this pass.
        """
        if choice is None and phase == "all":
            return True
        plain = self._is_plain(columns, whole)
        self._check_keys(choice, whole)
        if choice is None and not plain and not whole:
            kind = self.pass_phase()
            if kind != "mixed":
                return kind == phase
        memo = (repr(choice), phase, columns, whole, device)
        if memo not in self._memo:
            source = plain_stream(columns, self.batch) if plain else self
            mask = source._mask_of(choice, phase, device)[:, -columns:]
            self._memo[memo] = False if not bool(mask.any()) else mask
        return self._memo[memo]

    def _is_plain(self, columns: int, whole: bool) -> bool:
        """Whether an axis of so many columns counts no tokens of this stream."""
        total = self.past + self.length if whole else self.length
        if whole and columns != total and self._cache is not None:
            raise PositionError(
                f"the key axis holds {columns} columns for a sequence of {total} tokens: a sliding or static KV cache "
                "keeps other columns than tokens, so key positions mean nothing there. Select by query, or run with a "
                "DynamicCache() of a model without a sliding window, or without a cache."
            )
        return columns != total

    def _check_keys(self, choice: Any, whole: bool) -> None:
        """Refuse tokens on the key axis while beams change rows between passes."""
        tokens = [item for item in (choice if isinstance(choice, list) else [choice]) if isinstance(item, Token)]
        if whole and self.past and tokens and beam_search_runs():
            raise PositionError(
                f"{tokens[0]} on the key axis during beam search: beams change rows, so the tokens behind cached keys "
                "are not known. Select keys by number or text, or generate with num_beams=1."
            )

    def ranks(self, choice: Any, phase: Phase, columns: int, device: torch.device, whole: bool = False) -> Tensor:
        """Number of each selected column among all that were selected so far in its row; -1 elsewhere. [B, columns]"""
        plain = self._is_plain(columns, whole)
        self._check_keys(choice, whole)
        mask = (plain_stream(columns, self.batch) if plain else self)._mask_of(choice, phase, device)
        return torch.where(mask, mask.long().cumsum(1) - 1, -1)[:, -columns:]

    def _mask_of(self, choice: Any, phase: Phase, device: torch.device) -> Bool[Tensor, "B columns"]:
        if self._fixed is None and self._cache is None and beam_search_runs():
            raise PositionError(
                "module.generate(...) with beams and without a KV cache: the prompt cannot be told from what was "
                "generated, since every pass is a new sequence. Call model.generate(...), which states the prompt."
            )
        index, prompt = self.index(device), self.prompt_lengths(device)[:, None]
        real = index >= 0
        in_phase = real if phase == "all" else real & ((index < prompt) if phase == "prompt" else (index >= prompt))
        if choice is None:
            return in_phase
        base = index - prompt if phase == "generated" else index
        return in_phase & self._choose(choice, base, prompt, phase, device)

    def _choose(self, choice: Any, base: Tensor, prompt: Tensor, phase: Phase, device: torch.device) -> Tensor:
        if isinstance(choice, str):
            choice = Span(choice)
        if isinstance(choice, int):
            if choice < 0:
                self._check_negative(choice, prompt, phase)
                return base == prompt + choice
            return base == choice
        if isinstance(choice, slice):
            self._check_slice(choice, phase)
            return _in_slice(choice, base, prompt)
        if isinstance(choice, Token):
            return self._token_mask(choice, base.shape[1], device)
        if isinstance(choice, Span):
            if phase == "generated":
                raise PositionError(
                    f"the span {choice.text!r} with phase='generated': spans are pieces of the prompt, so it would "
                    "never match. Leave phase out, or use Token(...) for tokens the model produces."
                )
            return self._span_mask(choice, base, device)
        if isinstance(choice[0], list):
            return self._per_row(choice, base, prompt, phase, device)
        return torch.stack([self._choose(item, base, prompt, phase, device) for item in choice]).any(0)

    def _per_row(self, rows: Sequence[Any], base: Tensor, prompt: Tensor, phase: Phase, device: Any) -> Tensor:
        wanted = self.rows or base.shape[0]
        if len(rows) not in (wanted, base.shape[0]) or not all(isinstance(row, list) for row in rows):
            raise PositionError(f"positions are given for {len(rows)} rows, the batch has {wanted}: one list per row.")
        group = base.shape[0] // len(rows)
        mask = torch.zeros_like(base, dtype=torch.bool)
        for r, row in enumerate(rows):
            part = slice(r * group, (r + 1) * group)
            for item in row:
                if not isinstance(item, int):
                    raise PositionError(f"{item!r} in the list of row {r}: positions per row are ints. Give numbers.")
                mask[part] |= self._choose(item, base[part], prompt[part], phase, device)
        return mask

    def _check_slice(self, choice: slice, phase: Phase) -> None:
        if phase == "generated" and min(choice.start or 0, choice.stop or 0) < 0:
            self._check_negative(min(choice.start or 0, choice.stop or 0), torch.empty(0), phase)

    def _check_negative(self, choice: int, prompt: Tensor, phase: Phase) -> None:
        if phase == "generated":
            raise PositionError(
                f"pos={choice} with phase='generated': the end is not known while generating. Count from 0, "
                "or leave phase out for positions relative to the end of the prompt."
            )
        short = prompt + choice < 0
        if bool(short.any()):
            row = int(short.flatten().nonzero()[0])
            raise PositionError(
                f"pos={choice} lies before the start of row {row}, whose prompt has {int(prompt[row])} tokens: "
                "choose a position inside every row, or give one list per row."
            )

    def _ids_of_sequence(self) -> Tensor:
        if not self._history:
            raise PositionError("this pass carries no token ids, so text and token positions mean nothing: use ints.")
        return torch.cat(self._history, dim=1)

    def _token_mask(self, token: Token, columns: int, device: torch.device) -> Tensor:
        ids = self._ids_of_sequence().to(device)
        mask = ids == token_id(token.token, self.tokenizer)
        if mask.shape[1] < columns:
            mask = torch.nn.functional.pad(mask, (columns - mask.shape[1], 0))
        return mask[:, -columns:]

    def _span_mask(self, span: Span, base: Tensor, device: torch.device) -> Tensor:
        if span not in self._spans:
            self._spans[span] = [span_tokens(span, row, self.tokenizer) for row in self._prompt_rows()]
        rows = self._spans[span]
        group = base.shape[0] // len(rows)
        mask = torch.zeros_like(base, dtype=torch.bool)
        for b in range(base.shape[0]):
            for token in rows[b // group]:
                mask[b] |= base[b] == token
        return mask

    def _prompt_rows(self) -> list[Tensor]:
        if self._fixed is not None and self._fixed[1] is not None:
            return self._fixed[1]
        ids = self._ids_of_sequence()
        if ids.shape[1] < self.prompt_columns:
            raise PositionError("the text of the whole prompt is not known here (part of it is in a cache): use ints.")
        real = self.real(ids.device)[:, : self.prompt_columns]
        return [row[keep] for row, keep in zip(ids[:, : real.shape[1]], real, strict=True)]


def beam_search_runs() -> bool:
    """Whether a beam search of transformers is what calls the model: it reorders rows between passes, and says so to
    nobody but the cache."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "_beam_search" and frame.f_globals.get("__name__", "").startswith("transformers."):
            return True
        frame = frame.f_back
    return False


def plain_stream(columns: int, batch: int | None) -> Stream:
    """A stream for tensors whose positions are no tokens of this pass (image patches, say): no padding, all prompt."""
    stream = Stream()
    stream.begin(None, columns, batch, None, None)
    return stream


def _cache_length(cache: Any) -> int:
    length = getattr(cache, "get_seq_length", None)
    if callable(length):
        try:
            return int(length())
        except (ValueError, IndexError, TypeError):  # caches of state-space layers hold no sequence
            return 0
    return int(cache[0][0].shape[-2]) if isinstance(cache, (tuple, list)) and cache else 0


def _in_slice(choice: slice, base: Tensor, prompt: Tensor) -> Tensor:
    if choice.step not in (None, 1):
        raise PositionError(f"{choice} has a step: expected a step of 1. Give the positions as a list.")
    mask = torch.ones_like(base, dtype=torch.bool)
    for bound, test in ((choice.start, torch.ge), (choice.stop, torch.lt)):
        if bound is not None:
            mask &= test(base, bound if bound >= 0 else prompt + bound)
    return mask

"""Positions named by text or by token: which tokens of a row overlap a piece of text, and which id a token has."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxtyping import Int
from torch import Tensor

from interneuron.core.errors import InputError, PositionError


@dataclasses.dataclass(frozen=True)
class Span:
    """Tokens of the prompt that overlap a piece of its text.

    which: `"all"` occurrences, or the index of one (negative from the end). Raises PositionError when absent.
    """

    text: str
    which: int | str = "all"


@dataclasses.dataclass(frozen=True)
class Token:
    """Every position that holds this token, given as id or as text that is exactly one token."""

    token: int | str


def token_id(token: int | str, tokenizer: Any) -> int:
    """The id of a token given as id or as text. Raises PositionError unless the text is exactly one token."""
    if isinstance(token, int):
        return token
    if tokenizer is None:
        raise InputError(f"Token({token!r}) needs a tokenizer: wrap the model with tokenizer=..., or give the id.")
    ids = tokenizer(token, add_special_tokens=False)["input_ids"]
    if len(ids) == 1:
        return int(ids[0])
    raise PositionError(f"{token!r} is {len(ids)} tokens ({ids}), expected one: use Span({token!r}) or give an id.")


def span_tokens(span: Span, ids: Int[Tensor, " T"], tokenizer: Any) -> list[int]:
    """Numbers of the tokens that overlap a text span of one row. Raises PositionError when the text is absent."""
    if tokenizer is None:
        raise InputError(f"the span {span.text!r} needs a tokenizer: wrap the model with tokenizer=..., or use ints.")
    ends, text = char_ends(ids.tolist(), tokenizer)
    starts = [at for at in range(len(text)) if text.startswith(span.text, at)]
    if span.which != "all":
        try:
            starts = [starts[int(span.which)]]
        except IndexError:
            starts = []
    if not starts or not span.text:
        raise PositionError(f"the text {span.text!r} (occurrence {span.which}) is not in the prompt {text[:80]!r}.")
    chosen = []
    for at in starts:
        stop = at + len(span.text)
        chosen += [t for t in range(len(ends)) if ends[t] > at and (ends[t - 1] if t else 0) < stop]
    return sorted(set(chosen))


def char_ends(ids: list[int], tokenizer: Any) -> tuple[list[int], str]:
    """Where each token ends in the decoded text: found by decoding growing prefixes, so any tokenizer works."""
    decode: Callable[..., str] = tokenizer.decode
    ends = [len(decode(ids[: t + 1], clean_up_tokenization_spaces=False)) for t in range(len(ids))]
    return ends, decode(ids, clean_up_tokenization_spaces=False)

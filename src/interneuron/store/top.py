"""The rows on which a direction or a feature is strongest, with the text around them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interneuron.core.errors import InputError, ShapeError
from interneuron.store.documents import Runs, runs
from interneuron.store.reader import Store

_CHUNK_BYTES = 16 << 20


@dataclass(frozen=True)
class Hit:
    """One row: where it is, its score, and the tokens around it (`before`, `token`, `after`).

    With a tokenizer `text` is the passage with the token in brackets.
    """

    row: int
    doc: int
    pos: int
    score: float
    before: list[int]
    token: int
    after: list[int]
    text: str = ""


def top(store: Store, site: str, direction: Any, k: int = 20, context: int = 10, tokenizer: Any = None) -> list[Hit]:
    """The k rows of `site` with the highest score, best first; of equal scores the earlier row first.

    Args:
        store: The store.
        site: Whose rows are scored.
        direction: A tensor of the row's shape (score = dot product), or a function from rows [N, *shape] to scores [N],
            for example `lambda x: dictionary.encode(x)[:, 17]` for one feature.
        k: How many.
        context: Tokens before and after.
        tokenizer: To show text.

    Raises:
        ShapeError: a direction of another shape, or scores that are not one number a row.
    """
    if k < 1:
        raise InputError(f"k is {k}; expected 1 or more.")
    rows = store[site]
    score = _scorer(direction, rows.column.shape, site)
    step = max(1, _CHUNK_BYTES // rows.column.row_bytes)
    best_score, best_row = torch.empty(0, dtype=torch.float64), torch.empty(0, dtype=torch.int64)
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        scores = torch.as_tensor(score(block)).detach().double().cpu()
        if scores.shape != (len(block),):
            raise ShapeError(f"scores have shape {tuple(scores.shape)}, expected ({len(block)},): one number a row.")
        scores = torch.nan_to_num(scores, nan=-torch.inf)
        keep = torch.topk(scores, min(k, len(scores))).indices
        best_score = torch.cat([best_score, scores[keep]])
        best_row = torch.cat([best_row, keep + start])
        order = np.lexsort((best_row.numpy(), -best_score.numpy()))[:k]
        best_score, best_row = best_score[order], best_row[order]
    found = runs(store)
    return [
        _hit(store, found, row, value, context, tokenizer)
        for row, value in zip(best_row.tolist(), best_score.tolist(), strict=True)
    ]


def _scorer(direction: Any, shape: tuple[int, ...], site: str) -> Callable[[Tensor], Tensor]:
    if not isinstance(direction, Tensor) and callable(direction):
        return direction
    vector = torch.as_tensor(direction).detach().float().cpu()
    if tuple(vector.shape) != shape:
        raise ShapeError(
            f"the direction has shape {tuple(vector.shape)}, rows of {site!r} have {shape}. Give one of that shape."
        )
    flat = vector.reshape(-1)
    return lambda x: x.reshape(len(x), -1).float() @ flat


def _hit(store: Store, found: Runs, row: int, score: float, context: int, tokenizer: Any) -> Hit:
    key = store.keys([row])[0]
    doc, pos = int(key["doc"]), int(key["pos"])
    tokens = dict(_around(store, found, doc, pos, context))
    before = [tokens[p] for p in sorted(tokens) if p < pos]
    after = [tokens[p] for p in sorted(tokens) if p > pos]
    token = int(key["token"])
    text = ""
    if tokenizer is not None and token >= 0:
        text = f"{tokenizer.decode(before)}[{tokenizer.decode([token])}]{tokenizer.decode(after)}"
    return Hit(row, doc, pos, score, before, token, after, text)


def _around(store: Store, found: Runs, doc: int, pos: int, context: int) -> list[tuple[int, int]]:
    """(position, token) of the rows of a document near `pos`, also across the pieces it was cut into."""
    a, b = np.searchsorted(found.doc, [doc, doc + 1])
    near: list[tuple[int, int]] = []
    for i in range(a, b):
        first = max(pos - context, int(found.pos[i]))
        last = min(pos + context + 1, int(found.pos[i] + found.length[i]))
        if first < last:
            start = int(found.row[i]) + first - int(found.pos[i])
            keys = store.keys(slice(start, start + last - first))
            near += [(int(k["pos"]), int(k["token"])) for k in keys]
    return near

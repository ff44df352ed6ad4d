"""Packing documents into rows: several to a row, attention cut between them, positions restarting at each `<bos>`.

A document in a packed row computes exactly what it computes alone, so evaluation and training look alike.
Shapes: B rows, T tokens a row. Rows are filled best-fit: a document goes to the fullest row that still has room.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import words as W
from .document import Document


@dataclass(frozen=True, slots=True)
class Rows:
    """`tokens` Int[B T] (0 = pad), `positions` Int[B T], `segments` Int[B T] (document number in the row, pad = -1)."""

    tokens: np.ndarray
    positions: np.ndarray
    segments: np.ndarray

    @property
    def n_tokens(self) -> int:
        return int((self.segments >= 0).sum())


def encode(doc: Document) -> list[int]:
    """Ids of a document with `<bos>` and `<eos>`."""
    ids = W.vocabulary()
    return [1, *(ids[w] for w in doc.words), 2]


def pack(documents: list[list[int]], n_rows: int, width: int) -> tuple[Rows, list[int]]:
    """Fill `n_rows` rows of `width` tokens; returns the rows and the indices of documents that found no room."""
    room = [width] * n_rows
    rows: list[list[list[int]]] = [[] for _ in range(n_rows)]
    left: list[int] = []
    for i in sorted(range(len(documents)), key=lambda j: (-len(documents[j]), j)):
        n = len(documents[i])
        best = min((r for r in range(n_rows) if room[r] >= n), key=lambda r: room[r], default=None)
        if best is None:
            left.append(i)
            continue
        rows[best].append(documents[i])
        room[best] -= n
    tokens = np.zeros((n_rows, width), np.int64)
    positions = np.zeros((n_rows, width), np.int64)
    segments = np.full((n_rows, width), -1, np.int64)
    for r, docs in enumerate(rows):
        at = 0
        for s, ids in enumerate(docs):
            n = len(ids)
            tokens[r, at : at + n] = ids
            positions[r, at : at + n] = np.arange(n)
            segments[r, at : at + n] = s
            at += n
    return Rows(tokens, positions, segments), sorted(left)

"""Small captures with known rows, for the crash tests."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from interneuron.store import Column, Store, StoreWriter
from interneuron.store.system import System

COLUMNS = (Column("a", "float32", (7,)), Column("b", "int8", (5,)))
LATER = Column("late", "float16", (3,))
BATCH, BATCHES = 12, 9
PART_BYTES = 30 * (16 + 28 + 9)  # rows_per_part = 30, so parts of three batches of 12 rows


@functools.lru_cache(4096)
def rows(column: Column, start: int, n: int) -> np.ndarray:
    """The true rows of a column: every number tells its row and place, so that no wrong byte can pass."""
    r = np.arange(start, start + n)[:, None]
    values = ((r * 131 + np.arange(column.width)[None] * 17 + len(column.name)) % 251 - 125).astype(np.float32)
    values[:, 0] = 127  # fixes the int8 scale at 1, so that int8 is exact
    values.flags.writeable = False
    return values


def capture(
    path: str,
    system: System,
    columns: tuple[Column, ...] = COLUMNS,
    acknowledged: list[int] | None = None,
    n: int = BATCHES,
    **options: Any,
) -> None:
    """Record all batches, resuming when something is there."""
    options = {"part_bytes": PART_BYTES, "threads": 0, "block_bytes": 0, "resume": True, **options}
    if acknowledged is not None:
        options["on_commit"] = acknowledged.append
    with StoreWriter(path, columns, {"model": "toy"}, system=system, **options) as writer:
        for i in range(n):
            values = {c.name: rows(c, i * BATCH, BATCH) for c in columns}
            writer.append(values, token=np.arange(i * BATCH, (i + 1) * BATCH), pos=np.arange(BATCH), doc=i)


def wrong_rows(store: Store) -> int:
    """How many rows differ from the truth (reading everything)."""
    truth = np.arange(store.n_rows)
    bad = store.keys()["token"] != truth
    for site in store.sites:
        column = store.column(site)
        bad |= (store[site][:].float().numpy() != rows(column, 0, store.n_rows)).any(1)
    return int(bad.sum())

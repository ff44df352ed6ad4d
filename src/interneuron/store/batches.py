"""Batches of rows for training: fully random, block-shuffled for cold disks, or in order; torch datasets of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from interneuron.core.errors import InputError
from interneuron.core.seeds import numpy_rng
from interneuron.store.reader import Rows, Store
from interneuron.store.rows import as_tensor

Shuffle = bool | Literal["blocks"]
BLOCK_ROWS = 256
POOL_BLOCKS = 256  # blocks mixed with each other by shuffle="blocks"


def iterate(
    store: Store,
    site: str | list[str],
    batch_size: int = 4096,
    shuffle: Shuffle = True,
    seed: int = 0,
    drop_last: bool = False,
    worker: tuple[int, int] = (0, 1),
) -> Iterator[Any]:
    """One pass over the rows of a site, as tensors [N, *shape]; over several sites, as dicts of tensors.

    Args:
        store: The store.
        site: One site or a list of them; a list gives the same rows of each.
        batch_size: Rows in a batch; the last one may have fewer.
        shuffle: True draws each batch from all rows (needs 8 bytes of memory a row). "blocks" reads runs of 256
            neighbouring rows in random order and mixes 256 such runs at a time: nearly as mixed, and a disk reads it at
            full speed. False keeps the order of the store.
        seed: Decides the order, together with nothing else; use another for each epoch.
        drop_last: Leave out a smaller last batch.
        worker: `(k, n)`: every n-th batch, from the k-th on.

    Rows within a randomly drawn batch stand in the order of the store, which costs nothing and reads faster.
    """
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; expected 1 or more.")
    if shuffle not in (True, False, "blocks"):
        raise InputError(f"shuffle is {shuffle!r}; expected True, False or 'blocks'.")
    columns = {name: store[name] for name in ([site] if isinstance(site, str) else site)}
    stop = len(store) // batch_size if drop_last else -(-len(store) // batch_size)
    picks = _picks(len(store), batch_size, shuffle, seed)
    for i, pick in zip(range(stop), picks, strict=False):
        if i % worker[1] != worker[0]:
            continue
        out = {name: _get(rows, pick) for name, rows in columns.items()}
        yield out[site] if isinstance(site, str) else out


def _get(rows: Rows, pick: slice | np.ndarray) -> Tensor:
    if isinstance(pick, slice):
        return as_tensor(rows.raw(pick.start, pick.stop), rows.column)
    return rows.take(pick)


def _picks(n: int, batch_size: int, shuffle: Shuffle, seed: int) -> Iterator[slice | np.ndarray]:
    if shuffle is False:
        for start in range(0, n, batch_size):
            yield slice(start, min(n, start + batch_size))
    elif shuffle is True:
        order = numpy_rng(seed, "rows").permutation(n)
        for start in range(0, n, batch_size):
            yield np.sort(order[start : start + batch_size])
    else:
        yield from _block_picks(n, batch_size, seed)


def _block_picks(n: int, batch_size: int, seed: int) -> Iterator[np.ndarray]:
    rng = numpy_rng(seed, "blocks")
    order = rng.permutation(-(-n // BLOCK_ROWS))
    rest = np.empty(0, np.int64)
    for at in range(0, len(order), POOL_BLOCKS):
        rows = (order[at : at + POOL_BLOCKS, None] * BLOCK_ROWS + np.arange(BLOCK_ROWS)).reshape(-1)
        pool = np.concatenate([rest, rng.permutation(rows[rows < n])])
        whole = len(pool) // batch_size * batch_size
        for start in range(0, whole, batch_size):
            yield np.sort(pool[start : start + batch_size])
        rest = pool[whole:]
    if len(rest):
        yield np.sort(rest)


class BatchDataset(IterableDataset[Any]):
    """Batches for a `DataLoader(..., batch_size=None)`; its workers share the batches out among themselves.

    Call `set_epoch` before each pass for another order.
    """

    def __init__(
        self, path: str, site: str | list[str], batch_size: int = 4096, shuffle: Shuffle = True, seed: int = 0
    ):
        self.path, self.site, self.batch_size, self.shuffle, self.seed = path, site, batch_size, shuffle, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        worker = (info.id, info.num_workers) if info is not None else (0, 1)
        seed = int(numpy_rng(self.seed, "epoch", self.epoch).integers(1 << 62))
        # Opened here, not before: each worker process needs maps of its own.
        store = Store.open(self.path)
        yield from iterate(store, self.site, self.batch_size, self.shuffle, seed, worker=worker)

    def __len__(self) -> int:
        return math.ceil(len(Store.open(self.path)) / self.batch_size)


class RowDataset(Dataset[Tensor]):
    """Single rows by index, for samplers of one's own; a DataLoader fetches a whole batch at once."""

    def __init__(self, path: str, site: str) -> None:
        self.path, self.site = path, site
        self._rows: Rows | None = None

    def _open(self) -> Rows:
        if self._rows is None:
            self._rows = Store.open(self.path)[self.site]
        return self._rows

    def __len__(self) -> int:
        return len(self._open())

    def __getitem__(self, index: int) -> Tensor:
        return self._open()[int(index)]

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        return list(torch.unbind(self._open().take(indices)))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rows": None}

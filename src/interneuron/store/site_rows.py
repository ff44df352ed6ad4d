"""The rows of one site: slices, single rows and gathers over all parts of a store."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from interneuron.core.errors import CorruptStore
from interneuron.store.layout import Column
from interneuron.store.manifest import Part
from interneuron.store.rows import as_tensor
from interneuron.store.shards import ShardFile

if TYPE_CHECKING:
    from interneuron.store.reader import Store


class Rows:
    """The rows of one site over all parts: `rows[a:b]`, `rows[i]`, `rows[indices]` give tensors of their own memory."""

    def __init__(self, store: Store, column: Column, number: int) -> None:
        self.column, self._number, self._store = column, number, store
        self._parts = store._manifest.parts
        self._starts = [part.start for part in self._parts]
        self._first = np.array(self._starts, np.int64)
        self._open: dict[int, Any] = {}

    def __len__(self) -> int:
        return self._store.n_rows

    @property
    def shape(self) -> tuple[int, ...]:
        """[rows, *shape of one row]."""
        return (len(self), *self.column.shape)

    @property
    def dtype(self) -> str:
        """Dtype on disk; int8 rows are given as float32."""
        return self.column.dtype

    def __getitem__(self, key: Any) -> Tensor:
        if isinstance(key, (int, np.integer)):
            return self.take([key])[0]
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            if step == 1:
                return as_tensor(self.raw(start, max(start, stop)), self.column)
            key = np.arange(start, stop, step)
        return self.take(key)

    def raw(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """Rows `start:stop` in the row dtype of the disk; `out` may give the place, a byte array [n, row_bytes]."""
        place = np.empty((stop - start, self.column.row_bytes), np.uint8) if out is None else out
        at = start
        while at < stop:
            i = bisect_right(self._starts, at) - 1
            part = self._parts[i]
            end = min(stop, part.start + part.rows)
            self._shard(i).read(at - part.start, end - part.start, place[at - start : end - start])
            at = end
        return self.column.rows_of(place)

    def take(self, rows: Any) -> Tensor:
        """Single rows in the order given, as a tensor [N, *shape]."""
        return as_tensor(self.take_raw(rows), self.column)

    def take_raw(self, rows: Any) -> np.ndarray:
        """Single rows in the order given, in the row dtype of the disk."""
        index = self._index(rows)
        part = np.searchsorted(self._first, index, "right") - 1
        if len(index) and (part[1:] < part[:-1]).any():
            shards = {i: self._shard(i) for i in np.flatnonzero(np.bincount(part)).tolist()}
            if all(isinstance(shard, ShardFile) for shard in shards.values()):
                return self.column.rows_of(self._gather(index, part, shards))
        return self.column.rows_of(self._scatter(index, part))

    def _gather(self, index: np.ndarray, part: np.ndarray, shards: dict[int, ShardFile]) -> np.ndarray:
        """Rows in any order in one go, from maps that lie apart in memory: each row is found by its address.

        Row r of part i lies at address[i] + (r - start[i]) * width. Seen as rows at *every* byte from the lowest map
        on, all maps are one array, and a single NumPy gather reads it; only addresses of checked rows are touched.
        """
        width = self.column.row_bytes
        address = np.zeros(len(self._parts), np.int64)
        for i, shard in shards.items():
            if not shard.is_checked:
                shard.check(index[part == i] - self._starts[i])
            address[i] = shard.raw.ctypes.data
        low = min(shards, key=address.__getitem__)
        place = (address - address[low] - self._first * width)[part] + index * width
        first = shards[low].raw.reshape(-1)[:width].view(f"V{width}")
        rows = np.lib.stride_tricks.as_strided(first, (int(place.max()) + 1,), (1,), writeable=False)
        return rows[place].view(np.uint8).reshape(len(index), width)

    def _scatter(self, index: np.ndarray, part: np.ndarray) -> np.ndarray:
        """Gather part by part; when the indices ascend, each part's rows are one stretch of the result."""
        place = np.empty((len(index), self.column.row_bytes), np.uint8)
        ascending = bool((part[1:] >= part[:-1]).all())
        order = np.arange(len(part)) if ascending else np.argsort(part, kind="stable")
        part = part[order]
        cuts = [0, *(np.flatnonzero(np.diff(part)) + 1).tolist(), len(part)]
        for a, b in pairwise(cuts if len(part) else []):
            i, rows = int(part[a]), order[a:b]
            where = place[a:b] if ascending else np.empty((b - a, place.shape[1]), np.uint8)
            self._shard(i).take(index[rows] - self._starts[i], where)
            if not ascending:
                place[rows] = where
        return place

    def _index(self, rows: Any) -> np.ndarray:
        index = np.asarray(rows if not isinstance(rows, Tensor) else rows.numpy())
        if index.dtype == bool:
            index = np.flatnonzero(index)
        index = index.astype(np.int64, copy=False).reshape(-1)
        n = len(self)
        if len(index):
            low, high = int(index.min()), int(index.max())
            if low < -n or high >= n:
                raise IndexError(
                    f"row {low if low < -n else high} is not in the store; expected {-n} to {n - 1}. Look at "
                    "store.n_rows."
                )
            if low < 0:
                index = np.where(index < 0, index + n, index)
        return index

    def _shard(self, i: int) -> Any:
        shard = self._open.get(i)
        if shard is None:
            shard = self._open[i] = self._store._open_shard(self._parts[i], self._number)
        return shard

    def verify(self) -> Iterator[tuple[Part, str]]:
        """Check every shard; yields (part, problem) for each that is damaged."""
        for i, part in enumerate(self._parts):
            try:
                self._shard(i).verify()
            except CorruptStore as error:
                yield part, str(error)

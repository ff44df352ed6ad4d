"""Reading shards: mapped rows, each 64 KiB block checked against its CRC the first time it is touched."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from interneuron.core.errors import CorruptStore
from interneuron.store.checksums import CRC_BLOCK, crc32
from interneuron.store.journal import DATA
from interneuron.store.layout import PAGE, Column, Header, root_hash
from interneuron.store.manifest import Manifest, Part
from interneuron.store.system import System, map_pages

_WINDOW = 1 << 20  # bytes that are mapped, checked and copied at a time, so that the cache still has them


class ShardFile:
    """The rows of one column in one part, on a local disk."""

    def __init__(self, system: System, folder: str, manifest: Manifest, part: Part, number: int, check: bool) -> None:
        self.column: Column = manifest.columns[number]
        self.path = os.path.join(folder, DATA, part.file(number))
        expected = Header(manifest.id, self.column, part.writer, part.number, part.rows)
        try:
            self._buffer: Any = system.map(self.path)
        except OSError as error:
            raise CorruptStore(
                f"{self.path}: a shard of {part.rows} rows cannot be read ({error.strerror}). Restore it from a copy."
            ) from error
        data = memoryview(self._buffer)
        if len(data) != expected.file_bytes:
            raise damaged(self.path, f"{len(data)} bytes long, expected {expected.file_bytes}")
        page = bytes(data[:PAGE])
        table = bytes(data[expected.table_offset :])
        check_root(page, table, part.roots[number], expected, self.path)
        self._table = np.frombuffer(table, "<u4", expected.n_blocks).tolist()
        self._data = data[PAGE : expected.table_offset]
        self.raw = np.frombuffer(self._data, np.uint8, part.rows * self.column.row_bytes).reshape(part.rows, -1)
        self._seen = np.zeros(expected.n_blocks, bool)
        self._all = not check

    def read(self, start: int, stop: int, out: np.ndarray) -> None:
        """Copy rows `start:stop` as bytes into `out` [n, row_bytes]."""
        if self._all:
            out[:] = self.raw[start:stop]
            return
        width = self.column.row_bytes
        step = max(1, _WINDOW // width)
        for a in range(start, stop, step):
            b = min(stop, a + step)
            self._check(range(a * width // CRC_BLOCK, -(-b * width // CRC_BLOCK)))
            out[a - start : b - start] = self.raw[a:b]

    def take(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Copy single rows (indices inside the shard) as bytes into `out` [n, row_bytes]."""
        self.check(rows)
        np.take(self.raw, rows, axis=0, out=out, mode="clip")

    @property
    def is_checked(self) -> bool:
        """Was every block checked, or is none to be?"""
        return self._all

    def check(self, rows: np.ndarray) -> None:
        """Check the blocks in which rows lie, those that were not yet."""
        if not self._all:
            width = self.column.row_bytes
            first, last = rows * width // CRC_BLOCK, (rows * width + width - 1) // CRC_BLOCK
            span = int((last - first).max()) if len(rows) else 0
            blocks = np.unique(np.minimum(first[:, None] + np.arange(span + 1), last[:, None]))
            self._check(blocks[~self._seen[blocks]].tolist())

    def verify(self) -> None:
        """Check every block again, whatever was checked before; `CorruptStore` when one is damaged."""
        self._seen[:] = False
        self._all = False
        step = _WINDOW // CRC_BLOCK
        for b in range(0, len(self._table), step):
            self._check(range(b, min(b + step, len(self._table))))

    def _check(self, blocks: Any) -> None:
        data, table, seen = self._data, self._table, self._seen
        if isinstance(blocks, range):
            map_pages(self._buffer, PAGE + blocks.start * CRC_BLOCK, PAGE + blocks.stop * CRC_BLOCK)
        for b in blocks:
            if not seen[b]:
                if crc32(data[b * CRC_BLOCK : (b + 1) * CRC_BLOCK]) != table[b]:
                    raise damaged(
                        self.path, f"block {b} (bytes from {PAGE + b * CRC_BLOCK}) does not match its checksum"
                    )
                seen[b] = True
        self._all = self._all or bool(seen.all())


def check_root(page: bytes, table: bytes, root: str, expected: Header, path: str) -> None:
    """Compare header and table with the manifest, and the header with what it must say."""
    if root_hash(page, table) != root:
        raise damaged(path, "header or checksums are not those of the manifest (damaged, swapped or stale file)")
    header = Header.unpack(page, path)
    if header != expected:
        raise damaged(path, f"the header says {header}, the manifest {expected}")


def damaged(path: str, what: str) -> CorruptStore:
    """The one error for damaged shards."""
    return CorruptStore(f"{path}: {what}. Restore this file from a copy, or delete the store and record again.")

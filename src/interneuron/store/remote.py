"""Reading a store over fsspec (s3, gs, http, hf, memory, ...): only the blocks that are needed, each one checked.

Objects are fetched in checksummed blocks of 64 KiB, neighbouring ones in one request, and kept in memory up to a limit.
Writing happens on a local disk; copy the finished folder up with any tool.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from interneuron.core.errors import CorruptStore, StoreError, need
from interneuron.store.checksums import CRC_BLOCK, crc32
from interneuron.store.journal import DATA
from interneuron.store.layout import PAGE, Header
from interneuron.store.manifest import Manifest, Part
from interneuron.store.shards import check_root, damaged
from interneuron.store.system import System

_GAP = 4  # blocks that are fetched along rather than asked for separately


class RemoteSystem(System):
    """The reading half of a `System`, over fsspec."""

    def __init__(self, url: str, cache_bytes: int) -> None:
        super().__init__(direct=False)
        fsspec = need("fsspec", "remote")
        try:
            self.fs, _ = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise StoreError(
                f"{url}: fsspec cannot open it ({error}). Install the package it names, or check the address."
            ) from error
        self._cache: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._room = max(cache_bytes // CRC_BLOCK, 1)

    def exists(self, path: str) -> bool:
        """Is there such an object?"""
        return bool(self.fs.exists(path))

    def read(self, path: str) -> bytes:
        """The whole of a small object, as it is now."""
        self.fs.invalidate_cache()
        return self.fs.cat_file(path)

    def open_shard(self, folder: str, manifest: Manifest, part: Part, number: int, check: bool) -> RemoteShard:
        """A shard to read rows from."""
        return RemoteShard(self, f"{folder}/{DATA}/{part.file(number)}", manifest, part, number, check)

    def blocks(self, shard: RemoteShard, wanted: np.ndarray) -> dict[int, bytes]:
        """Blocks by number, from memory or by as few requests as sensible."""
        out: dict[int, bytes] = {}
        missing = []
        for b in wanted.tolist():
            block = self._cache.get((shard.path, b))
            if block is None:
                missing.append(b)
            else:
                self._cache.move_to_end((shard.path, b))
                out[b] = block
        if missing:
            cuts = np.flatnonzero(np.diff(missing) > _GAP) + 1
            spans = [(int(s[0]), int(s[-1]) + 1) for s in np.split(np.array(missing), cuts)]
            starts = [PAGE + a * CRC_BLOCK for a, _ in spans]
            ends = [min(PAGE + b * CRC_BLOCK, shard.header.table_offset) for _, b in spans]
            try:
                fetched = self.fs.cat_ranges([shard.path] * len(spans), starts, ends)
            except OSError as error:
                raise StoreError(f"{shard.path}: reading failed ({error}). Try again.") from error
            for (a, b), data in zip(spans, fetched, strict=True):
                for i in range(a, b):
                    block = bytes(data[(i - a) * CRC_BLOCK : (i - a + 1) * CRC_BLOCK])
                    shard.accept(i, block)
                    out[i] = block
                    self._keep((shard.path, i), block)
        return out

    def _keep(self, key: tuple[str, int], block: bytes) -> None:
        self._cache[key] = block
        while len(self._cache) > self._room:
            self._cache.popitem(last=False)


class RemoteShard:
    """The rows of one column in one part, elsewhere. Same methods as `ShardFile`."""

    def __init__(
        self, system: RemoteSystem, path: str, manifest: Manifest, part: Part, number: int, check: bool
    ) -> None:
        self.system, self.path, self._check = system, path, check
        self.column = manifest.columns[number]
        self.header = Header(manifest.id, self.column, part.writer, part.number, part.rows)
        try:
            size = system.fs.size(path)
            if size != self.header.file_bytes:
                raise damaged(path, f"{size} bytes long, expected {self.header.file_bytes}")
            page, table = system.fs.cat_ranges(
                [path, path], [0, self.header.table_offset], [PAGE, self.header.file_bytes]
            )
        except OSError as error:
            raise CorruptStore(
                f"{path}: a shard of {part.rows} rows cannot be read ({error}). Restore it from a copy."
            ) from error
        check_root(bytes(page), bytes(table), part.roots[number], self.header, path)
        self._table = np.frombuffer(table, "<u4", self.header.n_blocks).tolist()

    def accept(self, block: int, data: bytes) -> None:
        """Check a block that came in."""
        if self._check and crc32(data) != self._table[block]:
            raise damaged(
                self.path, f"block {block} (bytes from {PAGE + block * CRC_BLOCK}) does not match its checksum"
            )

    def read(self, start: int, stop: int, out: np.ndarray) -> None:
        """Copy rows `start:stop` as bytes into `out` [n, row_bytes]."""
        width = self.column.row_bytes
        first, last = start * width // CRC_BLOCK, -(-stop * width // CRC_BLOCK)
        at = start * width - first * CRC_BLOCK
        target, done, step = out.reshape(-1), 0, 256
        for a in range(first, last, step):
            numbers = np.arange(a, min(a + step, last))
            blocks = self.system.blocks(self, numbers)
            data = b"".join(blocks[b] for b in numbers.tolist())
            piece = np.frombuffer(data, np.uint8)[at : at + len(target) - done]
            target[done : done + len(piece)] = piece
            done, at = done + len(piece), 0

    def take(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Copy single rows (indices inside the shard) as bytes into `out` [n, row_bytes]."""
        width = self.column.row_bytes
        first, last = rows * width // CRC_BLOCK, (rows * width + width - 1) // CRC_BLOCK
        span = int((last - first).max()) if len(rows) else 0
        wanted = np.unique(np.minimum(first[:, None] + np.arange(span + 1), last[:, None]))
        blocks = self.system.blocks(self, wanted)
        for i, (row, a, b) in enumerate(zip(rows.tolist(), first.tolist(), last.tolist(), strict=True)):
            data = blocks[a] if a == b else b"".join(blocks[j] for j in range(a, b + 1))
            at = row * width - a * CRC_BLOCK
            out[i] = np.frombuffer(data, np.uint8, width, at)

    def verify(self) -> None:
        """Fetch and check every block."""
        for a in range(0, self.header.n_blocks, 256):
            numbers = np.arange(a, min(a + 256, self.header.n_blocks))
            for b in numbers.tolist():
                self.system._cache.pop((self.path, b), None)
            self.system.blocks(self, numbers)

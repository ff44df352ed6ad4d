"""One column's way to disk: rows gather in a ring of page-aligned buffers and leave them while the next one fills."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

import numpy as np

from interneuron.store.checksums import CRC_BLOCK, crc_table
from interneuron.store.layout import PAGE, Column, Header, padded, root_hash
from interneuron.store.system import System, page_buffer, pwrite_all, retry

P = ParamSpec("P")
T = TypeVar("T")

_SMALL, _LARGE, _DEPTH = 2 * CRC_BLOCK, 8 << 20, 8


class Inline(Executor):
    """Runs what is submitted at once, in the caller's thread: the order of system calls is then fixed."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Call `fn` now."""
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:  # handed to whoever waits, as a pool does
            future.set_exception(error)
        return future


@dataclass
class OpenShard:
    """A shard being written under its temporary name; `writes` are those that may still be under way."""

    path: str
    handle: int
    column: Column
    table: bytearray = field(default_factory=bytearray)
    writes: list[Future[None]] = field(default_factory=list)
    allocated: int = 0

    def finish(self, system: System, header: Header) -> str:
        """Wait for the rows, write table and header, make the file durable, close it; return its root hash."""
        for write in self.writes:
            write.result()
        table = bytes(self.table)
        page = page_buffer(PAGE)
        page[:] = header.pack()
        end = page_buffer(padded(len(table)))
        end[: len(table)] = table
        pwrite_all(system, self.handle, end, header.table_offset)
        pwrite_all(system, self.handle, page, 0)
        if self.allocated > header.file_bytes:
            retry(lambda: system.truncate(self.handle, header.file_bytes))
        retry(lambda: system.fsync(self.handle))
        self.close(system)
        return root_hash(bytes(page), table)

    def close(self, system: System) -> None:
        """Close the file, once."""
        if self.handle >= 0:
            handle, self.handle = self.handle, -1
            system.close(handle)


class Lane:
    """Rows of one column in memory and the shard they go to.

    `reserve` hands out the place where the next rows belong, so that a capture can write them there directly; `advance`
    says that they are in, and checksums them while the processor's cache still has them. A full buffer is written by
    the pool while the next one of the ring fills.
    """

    def __init__(self, system: System, column: Column, pool: Executor, buffers: list[memoryview]) -> None:
        self.system, self.column, self.pool = system, column, pool
        self._buffers = buffers
        self._busy: list[Future[None] | None] = [None] * len(buffers)
        self._dtype, self._row_bytes = column.numpy, column.row_bytes
        self._expected = 0
        self._now = 0
        self._fill = self._summed = 0  # bytes in the present buffer: rows, and those that are checksummed
        self._flushed = 0
        self._shard: OpenShard | None = None

    @property
    def memory(self) -> int:
        """Bytes of all buffers."""
        return sum(len(b) for b in self._buffers)

    def start(self, path: str, rows: int) -> None:
        """Open a new shard at `path`, for about `rows` rows."""
        self._expected = PAGE + padded(rows * self._row_bytes)
        self._shard = OpenShard(path, self.system.create(path), self.column)
        self._fill = self._summed = self._flushed = 0
        self._free(self._now)

    def reserve(self, rows: int) -> np.ndarray:
        """The place of the next `rows` rows: a writable array of the column's row dtype."""
        need = rows * self._row_bytes
        if self._fill + need > len(self._buffers[self._now]):
            self._turn(need)
        return np.frombuffer(self._buffers[self._now], self._dtype, rows, self._fill)

    def advance(self, rows: int) -> None:
        """The reserved rows are written."""
        self._fill += rows * self._row_bytes
        self._checksum(self._fill // CRC_BLOCK * CRC_BLOCK)

    def finish(self) -> OpenShard:
        """Send off the last rows and hand the shard over; the lane may then start another."""
        shard, buffer = self._shard, self._buffers[self._now]
        assert shard is not None
        end = padded(self._fill)
        buffer[self._fill : end] = bytes(end - self._fill)
        self._checksum(end)
        self._flush(end)
        self._now = (self._now + 1) % len(self._buffers)
        self._shard = None
        return shard

    def abandon(self) -> OpenShard | None:
        """Give up the open shard: wait until nothing writes to it and close it."""
        shard, self._shard = self._shard, None
        for future in [*self._busy, *(shard.writes if shard is not None else ())]:
            if future is not None:
                future.exception()
        if shard is not None:
            shard.close(self.system)
        return shard

    def _free(self, which: int) -> None:
        future, self._busy[which] = self._busy[which], None
        if future is not None:
            future.result()

    def _turn(self, need: int) -> None:
        """Flush whole checksum blocks, carry the rest to the next buffer and go on there."""
        whole = self._fill // CRC_BLOCK * CRC_BLOCK
        rest, old, other = self._fill - whole, self._buffers[self._now], (self._now + 1) % len(self._buffers)
        if not self._flushed and self._shard is not None:  # more is to come than one buffer
            self._shard.allocated = self._expected
            self._shard.writes.append(self.pool.submit(self.system.allocate, self._shard.handle, self._expected))
        self._flush(whole)
        self._free(other)
        if rest + need > len(self._buffers[other]):
            self._buffers[other] = page_buffer(rest + need + CRC_BLOCK)
        self._buffers[other][:rest] = old[whole : self._fill]
        self._now, self._fill, self._summed = other, rest, 0

    def _checksum(self, end: int) -> None:
        if end > self._summed and self._shard is not None:
            self._shard.table += crc_table(self._buffers[self._now][self._summed : end]).tobytes()
            self._summed = end

    def _flush(self, n: int) -> None:
        if not n:
            return
        shard, data = self._shard, self._buffers[self._now][:n]
        assert shard is not None
        write = self.pool.submit(pwrite_all, self.system, shard.handle, data, PAGE + self._flushed)
        # Good ones are let go: small objects that outlive a batch would tear the memory between its tensors.
        shard.writes = [w for w in shard.writes if not w.done() or w.exception()] + [write]
        self._busy[self._now] = write
        self._flushed += n


def make_lanes(system: System, columns: Sequence[Column], pool: Executor, block_bytes: int) -> list[Lane]:
    """One lane for each column; their buffers lie in one block of memory and hold equally many rows.

    A column's share of `block_bytes` is cut into two to eight buffers of about 8 MiB: a disk is fastest with several
    large writes under way. Where the share is small, two buffers of 128 KiB or more.
    """
    width = sum(column.row_bytes for column in columns)
    sizes = []
    for column in columns:
        share = max(block_bytes * column.row_bytes // width, 2 * _SMALL)
        count = min(_DEPTH, max(2, share // _LARGE))
        sizes.append((count, min(share // count, 2 * _LARGE) // PAGE * PAGE))
    memory, at = page_buffer(sum(count * size for count, size in sizes)), 0
    lanes = []
    for column, (count, size) in zip(columns, sizes, strict=True):
        lanes.append(Lane(system, column, pool, [memory[at + i * size : at + (i + 1) * size] for i in range(count)]))
        at += count * size
    return lanes

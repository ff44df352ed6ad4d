"""One column's way to disk: rows gather in two page-aligned buffers and leave them while the other one fills."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

import numpy as np

from interneuron.store.checksums import CRC_BLOCK, crc_table
from interneuron.store.layout import PAGE, Column, Header, padded, root_hash
from interneuron.store.system import System, page_buffer, pwrite_all, retry

P = ParamSpec("P")
T = TypeVar("T")


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
    says that they are in. A full buffer is checksummed while the processor's cache still has it, and written by the
    pool while the other one fills.
    """

    def __init__(self, system: System, column: Column, pool: Executor, buffer_bytes: int) -> None:
        self.system, self.column, self.pool = system, column, pool
        size = max(padded(buffer_bytes), 2 * CRC_BLOCK)
        self._buffers = [page_buffer(size), page_buffer(size)]
        self._busy: list[Future[None] | None] = [None, None]
        self._dtype, self._row_bytes = column.numpy, column.row_bytes
        self._expected = 0
        self._now = 0
        self._fill = 0
        self._flushed = 0
        self._shard: OpenShard | None = None

    @property
    def memory(self) -> int:
        """Bytes of both buffers."""
        return sum(len(b) for b in self._buffers)

    def start(self, path: str, rows: int) -> None:
        """Open a new shard at `path`, for about `rows` rows."""
        self._expected = PAGE + padded(rows * self._row_bytes)
        self._shard = OpenShard(path, self.system.create(path), self.column)
        self._fill = self._flushed = 0
        self._free(self._now)

    def reserve(self, rows: int) -> np.ndarray:
        """The place of the next `rows` rows: a writable array of the column's row dtype."""
        need = rows * self._row_bytes
        if self._fill + need > len(self._buffers[self._now]):
            self._turn(need)
        view = self._buffers[self._now][self._fill : self._fill + need]
        return np.frombuffer(view, self._dtype, rows)

    def advance(self, rows: int) -> None:
        """The reserved rows are written."""
        self._fill += rows * self._row_bytes

    def finish(self) -> OpenShard:
        """Send off the last rows and hand the shard over; the lane may then start another."""
        shard, buffer = self._shard, self._buffers[self._now]
        assert shard is not None
        end = padded(self._fill)
        buffer[self._fill : end] = bytes(end - self._fill)
        self._flush(end)
        self._now = 1 - self._now
        self._shard = None
        return shard

    def abandon(self) -> OpenShard | None:
        """Give up the open shard: wait until nothing writes to it and close it."""
        for future in self._busy:
            if future is not None:
                future.exception()
        shard, self._shard = self._shard, None
        if shard is not None:
            shard.close(self.system)
        return shard

    def _free(self, which: int) -> None:
        future, self._busy[which] = self._busy[which], None
        if future is not None:
            future.result()

    def _turn(self, need: int) -> None:
        """Flush whole checksum blocks, carry the rest to the other buffer and go on there."""
        whole = self._fill // CRC_BLOCK * CRC_BLOCK
        rest, old, other = self._fill - whole, self._buffers[self._now], 1 - self._now
        if not self._flushed and self._shard is not None:  # more is to come than one buffer
            self._shard.allocated = self._expected
            self.system.allocate(self._shard.handle, self._expected)
        self._flush(whole)
        self._free(other)
        if rest + need > len(self._buffers[other]):
            self._buffers[other] = page_buffer(rest + need + CRC_BLOCK)
        self._buffers[other][:rest] = old[whole : self._fill]
        self._now, self._fill = other, rest

    def _flush(self, n: int) -> None:
        if not n:
            return
        shard, data = self._shard, self._buffers[self._now][:n]
        assert shard is not None
        shard.table += crc_table(data).tobytes()
        write = self.pool.submit(pwrite_all, self.system, shard.handle, data, PAGE + self._flushed)
        # Finished ones are let go: small objects that outlive a batch would tear the memory between its tensors.
        shard.writes = [w for w in shard.writes if w is self._busy[1 - self._now]] + [write]
        self._busy[self._now] = write
        self._flushed += n

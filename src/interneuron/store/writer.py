"""Writing a store: rows in, durable parts out.

The protocol, in order, for each part: rows stream to shards under temporary names; checksums and header; fsync of each
shard; rename; fsync of the folder; one record appended to the manifest; fsync of the manifest; only then is the part
acknowledged. Nothing ever points at bytes that are not durable. Parts are committed one after another by one thread
while the next part is being filled, so at most one finished part is not yet acknowledged.

Parts end at batch borders that depend only on the rows, and nothing random or timed is written; therefore a capture
that was killed and resumed leaves the same bytes as one that was not.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Any

import numpy as np

from interneuron.core.errors import FingerprintMismatch, StoreError
from interneuron.store.entry import create, join, missing
from interneuron.store.journal import DATA, Journal
from interneuron.store.lanes import Inline, OpenShard, make_lanes
from interneuron.store.layout import KEY_COLUMN, Column, Header, check_writer
from interneuron.store.manifest import Part, fill_record, part_record
from interneuron.store.rows import encode_rows
from interneuron.store.system import System, taught

PART_BYTES = 256 << 20
BLOCK_BYTES = 64 << 20


class StoreWriter:
    """Appends rows to a store, or adds columns to the rows it has.

    Use as a context manager: leaving it well seals the store, leaving it by an exception (also Ctrl-C) leaves the
    acknowledged parts and drops the unfinished one.

    Args:
        path: Folder of the store; made if absent.
        columns: The sites to write. With an existing store either exactly its columns (resume) or only new ones (the
            rows are then those the store has, and must be given again in the same batches).
        identity: What the rows are: model, tokenizer, data, ...; JSON values. Must equal that of an existing store.
        resume: Allow an existing store; without it one is refused.
        writer: Name of one of several concurrent writers; None means to be the only one.
        part_bytes: A part is committed at the first batch border at which its rows (all columns) reach this size.
        block_bytes: Memory for rows on their way to disk, over all columns together; a buffer grows if a single batch
            needs more.
        threads: How many writes may be under way beside the caller's work; 0 does all in the caller's thread.
        on_commit: Called with the number of rows after each acknowledged part.

    Raises:
        StoreError: another writer is active, the store exists, or the disk refuses.
        FingerprintMismatch: the store holds something else.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        columns: Sequence[Column],
        identity: Mapping[str, Any] | None = None,
        *,
        resume: bool = False,
        writer: str | None = None,
        part_bytes: int = PART_BYTES,
        block_bytes: int = BLOCK_BYTES,
        threads: int = 4,
        system: System | None = None,
        on_commit: Callable[[int], None] | None = None,
    ) -> None:
        self.path, self.system = os.fspath(path), system or System()
        self.writer, self.shared = check_writer(writer or "w"), writer is not None
        self.on_commit = on_commit
        self._locks = ExitStack()
        self._broken = False
        self._journal = Journal(self.system, self.path, self.shared)
        self._open_store(list(columns), dict(identity or {}), resume, part_bytes)
        m = self._journal.manifest
        self.columns = [m.columns[m.numbers[c.name]] for c in columns]
        self.filling = len(columns) < len(m.numbers) or bool(missing(m, self.columns, self.writer))
        lanes = ([] if self.filling else [KEY_COLUMN]) + self.columns
        self._start_threads(threads)
        self._numbers = [0 if c is KEY_COLUMN else m.numbers[c.name] for c in lanes]
        self._lanes = make_lanes(self.system, lanes, self._pool, block_bytes)
        self._begin_session()

    # --- opening ---

    def _open_store(self, columns: list[Column], identity: dict[str, Any], resume: bool, part_bytes: int) -> None:
        kept = "nothing was changed"
        try:
            for folder in (self.path, os.path.join(self.path, DATA)):
                self.system.mkdir(folder)
            self._lock()
            journal = self._journal
            commit = self.system.lock(os.path.join(self.path, "commit.lock"), wait=60) if self.shared else None
            try:
                if not self.system.exists(journal.path):
                    create(self._journal, columns, identity, part_bytes)
                else:
                    join(self._journal, columns, identity, resume or self.shared, self.writer)
                journal.sweep(f"{self.writer}-" if self.shared else "")
            finally:
                if commit is not None:
                    commit.release()
        except OSError as error:
            self._locks.close()
            raise taught(error, self.path, "opening the store for writing", kept) from error
        except BaseException:
            self._locks.close()
            raise

    def _lock(self) -> None:
        path = os.path.join(self.path, "lock")
        self._locks.callback(self.system.lock(path, shared=self.shared, wait=0.5).release)
        if self.shared:
            own = os.path.join(self.path, f"{self.writer}.lock")
            self._locks.callback(self.system.lock(own, role=f"writing as {self.writer!r}").release)

    def _start_threads(self, threads: int) -> None:
        self._pool: Executor = ThreadPoolExecutor(threads, "store-write") if threads else Inline()
        self._committer: Executor = ThreadPoolExecutor(1, "store-commit") if threads else Inline()
        self._commit: Future[None] | None = None

    # --- the state of this session ---

    def _begin_session(self) -> None:
        m = self._journal.manifest
        self._todo = missing(m, self.columns, self.writer) if self.filling else []
        done = [p for i, p in enumerate(m.parts) if p.writer == self.writer and i not in self._todo]
        self._stored = [(p.cursor, p.data) for p in done]
        self._cursor, self._hash = 0, ""
        self._ask: str | None = None
        self._rows, self._batches = 0, []
        self._part_number = len(done)
        self._started = False
        self.rows_per_part = int(m.identity["rows_per_part"])
        self.acknowledged = sum(p.rows for p in done)

    @property
    def complete(self) -> bool:
        """Is there nothing left to write: rows sealed and every column filled?"""
        m = self._journal.manifest
        return not missing(m, self.columns, self.writer) and self.writer in m.sealed and bool(m.of_writer(self.writer))

    @property
    def memory(self) -> int:
        """Bytes held for rows on their way to disk."""
        return sum(lane.memory for lane in self._lanes)

    def has(self, digest: bytes) -> bool:
        """Is the next batch stored already? Call it once per batch, in order; `digest` stands for the batch's inputs.

        Raises:
            FingerprintMismatch: the inputs are not those whose rows the store holds.
        """
        self._hash = hashlib.sha256(self._hash.encode() + digest).hexdigest()
        self._cursor += 1
        while self._stored and self._stored[0][0] < self._cursor:
            self._stored.pop(0)
        if not self._stored:
            self._ask = self._hash
            return False
        cursor, data = self._stored[0]
        if cursor == self._cursor and data != self._hash:
            raise FingerprintMismatch(
                f"{self.path}: the inputs of the first {cursor} batches are not those that were recorded (hash "
                f"{self._hash[:12]} against {data[:12]}). Give the same data and tokenizer, or choose another folder."
            )
        return True

    # --- rows ---

    def reserve(self, rows: int) -> dict[str, np.ndarray]:
        """Places for the next `rows` rows, by column name (row table under `keys`), to be filled before `push`.

        Each is a writable array of the column's row dtype (`Column.numpy`), valid until `push`.
        """
        self._check()
        try:
            if not self._started:
                self._start_part()
            return {lane.column.name: lane.reserve(rows) for lane in self._lanes}
        except OSError as error:
            raise self._fail(error) from error

    def push(self, rows: int, batch: tuple[int, int] | None = None) -> None:
        """The reserved rows are filled: take them. `batch` = (sequences, length) of the forward pass they came from."""
        self._check()
        if self._ask is None:
            raise StoreError(f"{self.path}: push without a batch; call has(digest) before each batch.")
        self._ask = None
        shape = list(batch or (rows, 1))
        try:
            for lane in self._lanes:
                lane.advance(rows)
            self._rows += rows
            if self._batches and self._batches[-1][1:] == shape:
                self._batches[-1][0] += 1
            else:
                self._batches.append([1, *shape])
            if self._part_is_full():
                self._end_part()
        except OSError as error:
            raise self._fail(error) from error

    def append(self, values: Mapping[str, Any], token: Any = -1, pos: Any = 0, doc: Any = 0) -> None:
        """Write one batch of rows given as arrays or tensors; a convenience over `has`, `reserve` and `push`."""
        rows = len(next(iter(values.values())))
        keys = np.zeros(rows, KEY_COLUMN.numpy)
        keys["token"], keys["pos"], keys["doc"] = token, pos, doc
        if self.has(hashlib.sha256(keys.tobytes()).digest()):
            return
        places = self.reserve(rows)
        if KEY_COLUMN.name in places:
            places[KEY_COLUMN.name][:] = keys
        for column in self.columns:
            encode_rows(values[column.name], column, places[column.name])
        self.push(rows)

    # --- parts ---

    def _part_is_full(self) -> bool:
        if not self.filling:
            return self._rows >= self.rows_per_part
        expected = self._journal.manifest.parts[self._todo[0]].rows if self._todo else 0
        if self._rows > expected:
            raise FingerprintMismatch(
                f"{self.path}: the batches do not end where those of the recorded rows did ({self._rows} rows against "
                f"{expected}). Give the same data and batch options as at the first capture."
            )
        return self._rows == expected

    def _target(self) -> tuple[str, int, int]:
        """Writer and number of the part being written, and the rows it will have, more or less."""
        if not self.filling:
            return self.writer, self._part_number, self.rows_per_part
        if not self._todo:
            raise FingerprintMismatch(
                f"{self.path}: more rows than were recorded. Give the same data as at the first capture."
            )
        part = self._journal.manifest.parts[self._todo[0]]
        return part.writer, part.number, part.rows

    def _start_part(self) -> None:
        writer, number, rows = self._target()
        stub = Part(writer, number, 0, 0, {}, [], 0, "")
        for lane, column in zip(self._lanes, self._numbers, strict=True):
            lane.start(os.path.join(self.path, DATA, stub.file(column) + ".tmp"), rows)
        self._started = True

    def _end_part(self) -> None:
        writer, number, _ = self._target()
        self._wait()
        shards = {n: lane.finish() for n, lane in zip(self._numbers, self._lanes, strict=True)}
        part = Part(writer, number, self._rows, 0, {}, self._batches, self._cursor, self._hash)
        index = self._todo.pop(0) if self.filling else -1
        if self.filling and self._journal.manifest.parts[index].data != self._hash:
            for shard in shards.values():
                shard.close(self.system)
            raise FingerprintMismatch(
                f"{self.path}: the inputs differ from those whose rows the store holds (part {index}). Give the "
                "same data, "
                f"tokenizer and batch options as at the first capture."
            )
        self._commit = self._committer.submit(self._commit_part, part, shards, index)
        self._rows, self._batches, self._started = 0, [], False
        self._part_number += 1
        if isinstance(self._committer, Inline):
            self._wait()

    def _commit_part(self, part: Part, shards: dict[int, OpenShard], index: int) -> None:
        folder, m = os.path.join(self.path, DATA), self._journal.manifest
        ends = {}
        try:
            for n, shard in shards.items():
                header = Header(m.id, m.columns[n], part.writer, part.number, part.rows)
                ends[n] = self._pool.submit(shard.finish, self.system, header)
            part.roots |= {n: end.result() for n, end in ends.items()}
        finally:
            wait(ends.values())
            for shard in shards.values():
                with suppress(OSError):
                    shard.close(self.system)
        for n, shard in shards.items():
            self.system.rename(shard.path, os.path.join(folder, part.file(n)))
        self.system.fsync_dir(folder)
        self._journal.append(part_record(part) if index < 0 else fill_record(index, part.roots))
        self.acknowledged += part.rows
        if self.on_commit:
            self.on_commit(self.acknowledged)

    def _wait(self) -> None:
        if self._commit is not None:
            commit, self._commit = self._commit, None
            commit.result()

    # --- the end ---

    def close(self) -> None:
        """Commit what is left, seal the store and let go of it."""
        if self._broken or not self._locks:
            return
        try:
            if self._rows and not self.filling:
                self._end_part()
            self._wait()
            if self._rows or self._todo:
                raise FingerprintMismatch(
                    f"{self.path}: the data ended {len(self._todo)} parts before the recorded rows did. Give the "
                    "same data "
                    f"as at the first capture; this call can be resumed."
                )
            if any(cursor > self._cursor for cursor, _ in self._stored):
                raise FingerprintMismatch(
                    f"{self.path}: the data ended after {self._cursor} batches, but more are stored. Give the "
                    "same data."
                )
            self._seal()
        except OSError as error:
            raise self._fail(error) from error
        except BaseException:
            self.abort()
            raise
        self._release()

    def _seal(self) -> None:
        m = self._journal.manifest
        if m.sealed.get(self.writer, -1) != m.records - 1:
            self._journal.append({"kind": "seal", "writer": self.writer}, head=True)

    def abort(self) -> None:
        """Give up the unfinished part, keep all acknowledged ones and let go of the store; it can be resumed."""
        if self._broken:
            return
        self._broken = True
        with suppress(BaseException):
            self._wait()
        for lane in self._lanes:
            with suppress(BaseException):
                shard = lane.abandon()
                # Only the unfinished file goes: a record whose fsync failed may still name the finished ones.
                if shard is not None:
                    self.system.unlink(shard.path)
        self._release()

    def _release(self) -> None:
        self._pool.shutdown()
        self._committer.shutdown()
        self._broken = True
        self._locks.close()

    def _check(self) -> None:
        if self._broken:
            raise StoreError(f"{self.path}: this writer is closed. Open the store again with resume=True.")

    def _fail(self, error: OSError) -> StoreError:
        self.abort()
        return taught(error, self.path, "writing", f"{self.acknowledged} rows are safe")

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

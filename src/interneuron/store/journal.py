"""The manifest on disk: creating it, appending to it, and bringing it in order after a crash."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from interneuron.core.errors import CorruptStore
from interneuron.store.manifest import HEAD, MANIFEST, Manifest, encode, head_bytes, parse, replay
from interneuron.store.system import System, append_all, replace_file, retry

DATA = "data"
STATS = "stats"


def load(system: System, folder: str) -> Manifest:
    """Read and check a store's log."""
    path = os.path.join(folder, MANIFEST)
    head_path = os.path.join(folder, HEAD)
    head = system.read(head_path) if system.exists(head_path) else None
    return parse(system.read(path), path, head)


class Journal:
    """The log of one store as a writer holds it.

    Args:
        system: The operating system.
        folder: The store.
        shared: Other writers append too, so every append first reads what they added, under the commit lock.
    """

    def __init__(self, system: System, folder: str, shared: bool = False) -> None:
        self.system, self.folder, self.shared = system, folder, shared
        self.path = os.path.join(folder, MANIFEST)
        self.manifest = Manifest(self.path)
        self._data = b""

    def create(self, records: list[dict[str, Any]]) -> None:
        """Write a new log durably with its first records."""
        data, previous = b"", ""
        for record in records:
            line, previous = encode(record, previous)
            data += line
        replace_file(self.system, self.path, data)
        self.system.fsync_dir(os.path.dirname(os.path.abspath(self.folder)))
        self._data, self.manifest = data, replay(data, self.path)

    def open(self) -> None:
        """Read the log and write it anew without a torn end.

        A log that an unclean end left behind may sit in the page cache without being on disk (a failed fsync marks
        pages clean), so it is not trusted as it is: the whole records go to a fresh file that is synced before more is
        built on them.
        """
        self.manifest = load(self.system, self.folder)
        self._data = self.system.read(self.path)[: self.manifest.bytes]
        replace_file(self.system, self.path, self._data)
        self.note_head()

    def note_head(self) -> None:
        """Record how far the log is durable."""
        replace_file(self.system, os.path.join(self.folder, HEAD), head_bytes(self.manifest))

    def append(self, make: Callable[[Manifest], dict[str, Any]] | dict[str, Any], head: bool = False) -> None:
        """Append one record and make it durable. `make` may build it from the log as it is under the lock."""
        lock = (
            self.system.lock(os.path.join(self.folder, "commit.lock"), wait=60, role="committing")
            if self.shared
            else None
        )
        try:
            if self.shared:
                self.refresh()
            line, digest = encode(make(self.manifest) if callable(make) else make, self.manifest.hash)
            handle = self.system.append(self.path)
            try:
                append_all(self.system, handle, line)
                retry(lambda: self.system.fsync(handle))
            finally:
                self.system.close(handle)
            self._take(line, digest)
            if head:
                self.note_head()
        finally:
            if lock is not None:
                lock.release()

    def _take(self, line: bytes, digest: str) -> None:
        m = self.manifest
        m.apply(json.loads(line[74:]))
        self._data += line
        m.hash, m.bytes = digest, m.bytes + len(line)
        m.ends[m.bytes] = digest

    def refresh(self) -> None:
        """Take in what other writers appended; cut off what a killed one left torn. Call it under the commit lock."""
        data = self.system.read(self.path)
        if data == self._data:
            return
        self.manifest = parse(data, self.path)
        self._data = data[: self.manifest.bytes]
        if self.manifest.torn:
            replace_file(self.system, self.path, self._data)

    def rewrite(self, records: list[dict[str, Any]]) -> None:
        """Replace the log by other records that mean the same (compaction)."""
        head = os.path.join(self.folder, HEAD)
        with suppress(FileNotFoundError):
            self.system.unlink(head)  # first: it names an end that the new log does not have
        self.system.fsync_dir(self.folder)
        self.create(records)
        self.note_head()

    def sweep(self, prefix: str = "") -> int:
        """Delete shards that no record names and temporary files, of one writer only if `prefix` is given."""
        keep, gone = self.manifest.files(), 0
        data = os.path.join(self.folder, DATA)
        for name in self.system.listdir(data):
            if name not in keep and name.startswith(prefix):
                self.system.unlink(os.path.join(data, name))
                gone += 1
        for name in () if prefix else self.system.listdir(self.folder):
            if name in (MANIFEST + ".tmp", HEAD + ".tmp"):
                self.system.unlink(os.path.join(self.folder, name))
                gone += 1
        return gone


def repair(folder: str, system: System | None = None) -> int:
    """Cut a damaged log back to its last whole record, keep the old one as `manifest.damaged`, return the rows left.

    Shards of the rows given up stay where they are until a writer next opens the store.

    Raises:
        CorruptStore: not even the first record is whole.
    """
    system = system or System()
    journal = Journal(system, folder)
    lock = system.lock(os.path.join(folder, "lock"), wait=1.0, role="repairing")
    try:
        data = system.read(journal.path)
        manifest = replay(data, journal.path)
        if not manifest.id:
            raise CorruptStore(f"{journal.path}: the first record is damaged. Restore the manifest from a copy.")
        replace_file(system, os.path.join(folder, "manifest.damaged"), data)
        replace_file(system, journal.path, data[: manifest.bytes])
        journal.manifest = manifest
        journal.note_head()
        return manifest.rows
    finally:
        lock.release()

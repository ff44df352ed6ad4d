"""Disks that misbehave: one that forgets what was not synced, one whose calls fail, one that kills the process."""

from __future__ import annotations

import errno
import os
import random
import signal
from collections.abc import Callable
from typing import Any

from interneuron.store.system import System

SECTOR = 512


class PowerCut(BaseException):
    """The lights go out; nothing may catch it and go on."""


class Inode:
    """A file: what is durable, what is current, and the writes in between."""

    __slots__ = ("durable", "now", "pending")

    def __init__(self, durable: bytes = b"") -> None:
        self.durable, self.now, self.pending = durable, bytearray(durable), []

    def write(self, offset: int, data: bytes) -> None:
        if offset > len(self.now):
            self.now.extend(bytes(offset - len(self.now)))
        self.now[offset : offset + len(data)] = data
        self.pending.append((offset, data))

    def truncate(self, size: int = 0) -> None:
        del self.now[size:]
        self.pending.append((size, None))

    def sync(self) -> None:
        self.durable, self.pending = bytes(self.now), []

    def after_crash(self, rng: random.Random, keep: float) -> Inode:
        """What a cut may leave: each unsynced write is absent, whole, or torn sector by sector."""
        if not self.pending:
            return Inode(self.durable)
        content = bytearray(self.durable)
        for offset, data in self.pending:
            fate = rng.random()
            if data is None:
                if fate < keep:
                    del content[offset:]
                continue
            if fate < keep * 0.7:
                _put(content, offset, data)
            elif fate < keep:
                _tear(content, offset, data, rng, len(self.durable))
        return Inode(bytes(content))


def _put(content: bytearray, offset: int, data: bytes) -> None:
    if offset > len(content):
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(data)] = data


def _tear(content: bytearray, offset: int, data: bytes, rng: random.Random, durable: int) -> None:
    end = offset + len(data)
    if rng.random() < 0.5:
        end = rng.randrange(offset, end + 1)  # the new length is durable only up to here
    if rng.random() < 0.3 and end > len(content):
        content.extend(bytes(end - len(content)))  # length durable, bytes not: zeros
    at = offset
    while at < end:
        stop = min(end, (at // SECTOR + 1) * SECTOR)
        fate = rng.random()
        if fate < 0.5:
            _put(content, at, data[at - offset : stop - offset])
        elif fate < 0.6 and at >= durable:
            _put(content, at, rng.randbytes(stop - at))  # a stale block of another file (never over durable bytes)
        at = stop


class SimDisk(System):
    """A file system in memory that knows what a power cut may undo.

    POSIX at its worst: bytes not synced may be there, torn or absent; names not synced by `fsync_dir` may be there or
    not, each on its own. `honest_fsync=False` and `honest_dirs=False` are the negative controls: a store without fsync,
    and one without fsync of folders.
    """

    def __init__(self, honest_fsync: bool = True, honest_dirs: bool = True) -> None:
        super().__init__(direct=False)
        self.dirs: dict[str, dict[str, Any]] = {"/": {}}
        self.durable: dict[str, dict[str, Any]] = {"/": {}}
        self.moves: dict[str, list[Callable[[dict[str, Any]], None]]] = {"/": []}
        self.handles: dict[int, Inode] = {}
        self.calls, self.cut_at = 0, -1
        self.dead = False
        self.honest_fsync, self.honest_dirs = honest_fsync, honest_dirs
        self.trace: list[str] = []

    def _tick(self, what: str) -> None:
        if self.dead:
            raise PowerCut
        if self.calls == self.cut_at:
            self.dead = True
            raise PowerCut
        self.calls += 1
        self.trace.append(what)

    def _at(self, path: str) -> tuple[str, str]:
        folder, name = os.path.split(path)
        if folder not in self.dirs:
            raise FileNotFoundError(errno.ENOENT, "no such folder", folder)
        return folder, name

    def _change(self, folder: str, move: Callable[[dict[str, Any]], None]) -> None:
        move(self.dirs[folder])
        self.moves[folder].append(move)

    def _inode(self, path: str) -> Inode:
        folder, name = os.path.split(path)
        found = self.dirs.get(folder, {}).get(name)
        if not isinstance(found, Inode):
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        return found

    def _open(self, inode: Inode) -> int:
        handle = len(self.handles) + 3
        self.handles[handle] = inode
        return handle

    # --- the System interface ---

    def create(self, path: str) -> int:
        self._tick(f"create {path}")
        folder, name = self._at(path)
        inode = self.dirs[folder].get(name)
        if inode is None:
            inode = Inode()
            self._change(folder, lambda d, i=inode: d.__setitem__(name, i))
        else:
            inode.truncate()
        return self._open(inode)

    create_plain = create

    def append(self, path: str) -> int:
        self._tick(f"append {path}")
        return self._open(self._inode(path))

    def pwrite(self, handle: int, data: memoryview | bytes, offset: int) -> int:
        self._tick("pwrite")
        self.handles[handle].write(offset, bytes(data))
        return len(data)

    def write(self, handle: int, data: memoryview | bytes) -> int:
        self._tick("write")
        inode = self.handles[handle]
        inode.write(len(inode.now), bytes(data))
        return len(data)

    def allocate(self, handle: int, size: int) -> None:
        self._tick("allocate")
        inode = self.handles[handle]
        if size > len(inode.now):
            inode.write(len(inode.now), bytes(size - len(inode.now)))

    def truncate(self, handle: int, size: int) -> None:
        self._tick("truncate")
        self.handles[handle].truncate(size)

    def fsync(self, handle: int) -> None:
        self._tick("fsync")
        if self.honest_fsync:
            self.handles[handle].sync()

    def close(self, handle: int) -> None:
        self.handles.pop(handle, None)

    def rename(self, old: str, new: str) -> None:
        self._tick(f"rename {new}")
        inode = self._inode(old)
        (folder, a), (_, b) = self._at(old), self._at(new)

        def move(d: dict[str, Any]) -> None:
            d.pop(a, None)
            d[b] = inode

        self._change(folder, move)

    def unlink(self, path: str) -> None:
        self._tick(f"unlink {path}")
        self._inode(path)
        folder, name = self._at(path)
        self._change(folder, lambda d: d.pop(name, None))

    def rmdir(self, path: str) -> None:
        self._tick(f"rmdir {path}")
        if self.dirs[path]:
            raise OSError(errno.ENOTEMPTY, "folder not empty", path)
        folder, name = self._at(path)
        self._change(folder, lambda d: d.pop(name, None))
        del self.dirs[path]

    def mkdir(self, path: str) -> None:
        self._tick(f"mkdir {path}")
        if path in self.dirs:
            return
        folder, name = self._at(path)
        self.dirs[path], self.durable[path], self.moves[path] = {}, {}, []
        self._change(folder, lambda d: d.__setitem__(name, path))

    def fsync_dir(self, path: str) -> None:
        self._tick(f"fsync_dir {path}")
        if self.honest_fsync and self.honest_dirs:
            self.durable[path], self.moves[path] = dict(self.dirs[path]), []

    def listdir(self, path: str) -> list[str]:
        if path not in self.dirs:
            raise FileNotFoundError(errno.ENOENT, "no such folder", path)
        return sorted(self.dirs[path])

    def exists(self, path: str) -> bool:
        folder, name = os.path.split(path)
        return name in self.dirs.get(folder, {})

    def read(self, path: str) -> bytes:
        return bytes(self._inode(path).now)

    def map(self, path: str) -> Any:
        return memoryview(bytearray(self._inode(path).now))

    def lock(self, path: str, shared: bool = False, wait: float = 0.0, role: str = "writing") -> Any:
        class Nobody:
            def release(self) -> None:
                """Only one process lives on this disk."""

        return Nobody()

    # --- the cut ---

    def after_crash(self, rng: random.Random) -> SimDisk:
        """One of the states in which the disk may be found when the power is back."""
        keep = rng.choice((0.0, 1.0, 0.5, rng.random()))
        names = rng.choice((0.0, 1.0, 0.5, rng.random()))
        new = SimDisk()
        new.dirs, new.durable, new.moves = {}, {}, {}
        copies: dict[int, Inode] = {}

        def revive(path: str) -> None:
            listing = dict(self.durable[path])
            for move in self.moves[path]:
                if rng.random() < names:
                    move(listing)
            for name, what in listing.items():
                if isinstance(what, Inode):
                    if id(what) not in copies:
                        copies[id(what)] = what.after_crash(rng, keep)
                    listing[name] = copies[id(what)]
                else:
                    revive(what)
            new.dirs[path], new.durable[path], new.moves[path] = listing, dict(listing), []

        revive("/")
        return new

    def files(self) -> dict[str, bytes]:
        """Every file by path."""
        return {
            os.path.join(folder, name): bytes(inode.now)
            for folder, names in self.dirs.items()
            for name, inode in names.items()
            if isinstance(inode, Inode)
        }


class Counted(System):
    """The real disk, with a hook before and after each call that changes something."""

    CALLS = (
        "create",
        "create_plain",
        "append",
        "pwrite",
        "write",
        "truncate",
        "fsync",
        "close",
        "rename",
        "unlink",
        "mkdir",
        "fsync_dir",
    )

    def __init__(self, direct: bool = True) -> None:
        super().__init__(direct)
        self.names: dict[int, str] = {}
        self.calls: list[str] = []

    def before(self, call: str, args: tuple[Any, ...]) -> Any:
        """Called first; a value other than None is returned in place of the call's own."""

    def after(self, call: str) -> None:
        """Called when the call is done."""

    def _label(self, call: str, args: tuple[Any, ...]) -> str:
        where = self.names.get(args[0], "?") if isinstance(args[0], int) else args[-1]
        name = os.path.basename(str(where))
        kind = "shard" if ".act" in name else name.replace(".tmp", "")
        return f"{call} {kind if kind in ('shard', 'manifest.log', 'manifest.head', 'data') else 'store'}"


def _wrap(call: str) -> Any:
    def method(self: Counted, *args: Any) -> Any:
        label = self._label(call, args)
        self.calls.append(label)
        instead = self.before(label, args)
        if instead is not None:
            return instead
        result = getattr(System, call)(self, *args)
        if call in ("create", "create_plain", "append"):
            self.names[result] = args[0]
        self.after(label)
        return result

    return method


for _call in Counted.CALLS:
    setattr(Counted, _call, _wrap(_call))


class Faulty(Counted):
    """Call number `at` fails with `error`; `"short"` takes half of a write, `"short then full"` fails after that."""

    def __init__(self, at: int, error: int | str, repeat: bool = False) -> None:
        super().__init__(direct=False)
        self.at, self.error, self.repeat, self.fired = at, error, repeat, ""

    def before(self, call: str, args: tuple[Any, ...]) -> Any:
        n = len(self.calls) - 1
        if self.fired and self.repeat and not call.startswith(("close", "unlink")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if n != self.at:
            return None
        self.fired = call
        if isinstance(self.error, int):
            if call.startswith("close"):
                System.close(self, args[0])  # the descriptor is gone even when close reports an error
            raise OSError(self.error, os.strerror(self.error))
        if call.startswith("pwrite"):
            half = len(args[1]) // 2
            return System.pwrite(self, args[0], args[1][:half], args[2])
        if call.startswith("write"):
            return System.write(self, args[0], args[1][: len(args[1]) // 2])
        return None


class Killing(Counted):
    """The process dies at the n-th passage of one named point."""

    def __init__(self, point: str, nth: int) -> None:
        super().__init__(direct=False)
        self.point, self.left = point, nth

    def _pass(self, point: str) -> None:
        if point == self.point:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def before(self, call: str, args: tuple[Any, ...]) -> Any:
        self._pass(f"before {call}")

    def after(self, call: str) -> None:
        self._pass(f"after {call}")

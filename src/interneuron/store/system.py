"""The few calls by which a store touches the operating system, in one replaceable object.

Everything the store writes or reads on a local disk goes through a `System`. Tests put others in its place: one that
fails at the n-th call, one that forgets what was not synced, one that kills the process at a named point.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from interneuron.core.errors import StoreError
from interneuron.core.files import fsync_dir
from interneuron.store.checksums import CRC_BLOCK
from interneuron.store.layout import PAGE
from interneuron.store.locks import FileLock

DIRECT = getattr(os, "O_DIRECT", 0)
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
_HUGE = 1 << 21
_RANGE_WRITE = 2
_POPULATE_READ = 22  # Linux 5.14: map a range of pages at once, reading ahead as far as it goes


@functools.cache
def _fallocate() -> Any:
    """The system call itself: `os.posix_fallocate` writes a byte to every page where the file system lacks it."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    call = getattr(libc, "fallocate64", None) or getattr(libc, "fallocate", None)
    if call is not None:
        call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return call


@functools.cache
def _sync_file_range() -> Any:
    """The system call, or None where there is none."""
    call = getattr(ctypes.CDLL(None), "sync_file_range", None) if sys.platform == "linux" else None
    if call is not None:
        call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return call


class System:
    """Files of the local disk.

    Shards are written with `O_DIRECT` where the file system has it (no page-cache copy: several times the rate of
    buffered writes followed by fsync) and through the page cache elsewhere; both end with fsync.
    """

    def __init__(self, direct: bool = True) -> None:
        self.direct = bool(direct and DIRECT)

    def create(self, path: str) -> int:
        """Open a new or emptied file for page-aligned writes, past the page cache where possible."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0)
        if self.direct:
            try:
                return os.open(path, flags | DIRECT, 0o644)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                    raise
                self.direct = False  # this file system has no direct writes: buffered from here on
        return os.open(path, flags, 0o644)

    def create_plain(self, path: str) -> int:
        """Open a new or emptied small file through the page cache."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o644)

    def append(self, path: str) -> int:
        """Open an existing file for appending."""
        return os.open(path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0))

    def pwrite(self, handle: int, data: memoryview | bytes, offset: int) -> int:
        """Write at `offset`; return how many bytes were taken, which may be fewer than given."""
        taken = os.pwrite(handle, data, offset)
        # Through the page cache the disk would idle until fsync: let it begin at once. Only a help, and no promise.
        if not self.direct and taken >= CRC_BLOCK and (begin := _sync_file_range()) is not None:
            begin(handle, offset, taken, _RANGE_WRITE)
        return taken

    def write(self, handle: int, data: memoryview | bytes) -> int:
        """Write at the end of a file opened by `append`."""
        return os.write(handle, data)

    def allocate(self, handle: int, size: int) -> None:
        """Let a file be `size` bytes long, on space of its own, before they are written; where that works.

        Writes that need not lengthen the file or look for space run 1.5 to 4 times as fast and in parallel. It is only
        a help: a file system that cannot do it, or a disk with less room than the whole part would take, is no error.
        """
        call = _fallocate()
        if call is not None:
            call(handle, 0, 0, size)

    def truncate(self, handle: int, size: int) -> None:
        """Cut a file to its length."""
        os.ftruncate(handle, size)

    def fsync(self, handle: int) -> None:
        """Make the bytes of a file durable."""
        os.fsync(handle)

    def close(self, handle: int) -> None:
        """Close a file."""
        os.close(handle)

    def rename(self, old: str, new: str) -> None:
        """Rename, replacing `new`."""
        os.replace(old, new)

    def unlink(self, path: str) -> None:
        """Remove a file."""
        os.unlink(path)

    def rmdir(self, path: str) -> None:
        """Remove an empty folder."""
        os.rmdir(path)

    def mkdir(self, path: str) -> None:
        """Create a folder; one that exists is fine."""
        os.makedirs(path, exist_ok=True)

    def fsync_dir(self, path: str) -> None:
        """Make the names in a folder durable."""
        fsync_dir(path)

    def listdir(self, path: str) -> list[str]:
        """Names in a folder, sorted."""
        return sorted(os.listdir(path))

    def exists(self, path: str) -> bool:
        """Is there a file or folder of that name?"""
        return os.path.lexists(path)

    def read(self, path: str) -> bytes:
        """The whole of a small file."""
        with open(path, "rb") as file:
            return file.read()

    def lock(self, path: str, shared: bool = False, wait: float = 0.0, role: str = "writing") -> FileLock:
        """Take an advisory lock (see `locks.FileLock`)."""
        return FileLock(path, shared, wait, role)

    def map(self, path: str) -> Any:
        """The bytes of a file as a buffer that loads pages as they are touched.

        The mapping is private: a caller who writes into a row changes memory, never the file.
        """
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                return b""
            if os.name == "nt":
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            return mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE | _NORESERVE, mmap.PROT_READ | mmap.PROT_WRITE)


def page_buffer(n: int) -> memoryview:
    """Fresh zeroed memory of at least `n` bytes from a page border on, as direct writes need it."""
    unit = PAGE if n < _HUGE else _HUGE  # whole huge pages: fewer faults, and a direct write pins them at once
    size = max(PAGE, -(-n // unit) * unit)
    if os.name == "nt":
        return memoryview(mmap.mmap(-1, size))
    buffer = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if size >= _HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):
            buffer.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(buffer)


def map_pages(buffer: Any, start: int, stop: int) -> None:
    """Bring `start:stop` of a mapped file into memory in one go, not page by page as it is touched; only a help."""
    if sys.platform == "linux" and isinstance(buffer, mmap.mmap):
        first = start // PAGE * PAGE
        with suppress(OSError):
            buffer.madvise(_POPULATE_READ, first, min(stop, len(buffer)) - first)


def retry(call: Callable[[], Any]) -> Any:
    """Repeat a call that a signal interrupted (EINTR); Python does so for its own calls, other Systems may not."""
    for _ in range(100):
        with suppress(InterruptedError):
            return call()
    raise InterruptedError(errno.EINTR, "interrupted 100 times in a row")


def pwrite_all(system: System, handle: int, data: memoryview, offset: int) -> None:
    """Write all of `data` at `offset`, going on after short writes from the last whole page (direct writes need it)."""
    done = stuck = 0
    while done < len(data):
        taken = retry(functools.partial(system.pwrite, handle, data[done:], offset + done))
        step = taken if done + taken == len(data) else taken // PAGE * PAGE
        stuck = 0 if step else stuck + 1
        if stuck > 8:
            raise OSError(errno.EIO, "the disk takes no more bytes although it reports no error")
        done += step


def append_all(system: System, handle: int, data: bytes) -> None:
    """Append all of `data`, going on after short writes."""
    done = stuck = 0
    while done < len(data):
        taken = retry(functools.partial(system.write, handle, data[done:]))
        stuck = 0 if taken else stuck + 1
        if stuck > 8:
            raise OSError(errno.EIO, "the disk takes no more bytes although it reports no error")
        done += taken


def replace_file(system: System, path: str, data: bytes) -> None:
    """Put `data` at `path` durably and all at once: temporary file, fsync, rename, fsync of the folder."""
    temporary = path + ".tmp"
    handle = system.create_plain(temporary)
    try:
        append_all(system, handle, data)
        retry(lambda: system.fsync(handle))
    finally:
        system.close(handle)
    system.rename(temporary, path)
    system.fsync_dir(os.path.dirname(path) or ".")


def taught(error: OSError, path: str, doing: str, kept: str) -> StoreError:
    """The store's own error for a failed system call: what failed, what is safe, what to do."""
    advice = {
        errno.ENOSPC: "Free some space or choose another disk, then resume.",
        errno.EDQUOT: "Raise the quota or choose another disk, then resume.",
        errno.EROFS: "The file system is read-only: choose another folder.",
        errno.EACCES: "Give yourself write access or choose another folder.",
        errno.EIO: "The disk reports a fault: check it, copy the store elsewhere, then resume.",
    }.get(error.errno or 0, "Mend the cause, then resume.")
    return StoreError(f"{path}: {doing} failed ({error.strerror or error}); {kept}. {advice}")

"""A nameless file for tensors that are wanted back soon: slots are reused, and nothing is left behind, even by a kill.

The file has no name where the system allows it (Linux), so its space is freed when the last handle goes. Writes and
reads take threads of their own; the page cache stands between them and the disk.
"""

from __future__ import annotations

import os
import tempfile
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import IO, Any

from interneuron.core.errors import StoreError

PAGE = 4096


class SpillFile:
    """Slots in a temporary file under the folder `path` (None: the system's own), which is created if need be.

    Raises StoreError where no file can be made there.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = Path(tempfile.gettempdir() if path is None else path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=self.path, buffering=0)  # noqa: SIM115  (lives as long as the object)
        except OSError as error:
            raise StoreError(
                f"{self.path}: no temporary file can be made here ({error}). Give a folder one can write"
            ) from error
        self.writer, self.reader = (ThreadPoolExecutor(1, name) for name in ("spill-write", "spill-read"))
        self.write_seconds = 0.0
        """Seconds spent in writing so far."""
        self.written = self.read_back = 0
        self._end, self._free, self._lock = 0, dict[int, list[int]](), Lock()
        weakref.finalize(self, _close, self._file, self.writer, self.reader)

    def take(self, nbytes: int) -> int:
        """Offset of a slot for that many bytes."""
        size = _rounded(nbytes)
        with self._lock:
            if self._free.get(size):
                return self._free[size].pop()
            self._end += size
            return self._end - size

    def give(self, offset: int, nbytes: int) -> None:
        """Take a slot back."""
        with self._lock:
            self._free.setdefault(_rounded(nbytes), []).append(offset)

    def write(self, offset: int, data: memoryview) -> None:
        """Write bytes at a slot; OSError when the disk refuses."""
        start, done = time.perf_counter(), 0
        while done < len(data):
            done += os.pwrite(self._file.fileno(), data[done:], offset + done)
        self.write_seconds += time.perf_counter() - start
        self.written += len(data)

    def read(self, offset: int, into: memoryview) -> None:
        """Fill a buffer from a slot.

        Raises:
            StoreError: the file ends early.
        """
        done = 0
        while done < len(into):
            n = os.preadv(self._file.fileno(), [into[done:]], offset + done)
            if n == 0:
                raise StoreError(
                    f"{self.path}: the spill file ends at byte {offset + done}, expected {len(into) - done} more. "
                    "Look at the disk"
                )
            done += n
        self.read_back += len(into)


def _rounded(nbytes: int) -> int:
    return -(-nbytes // PAGE) * PAGE


def _close(file: IO[bytes], *pools: Any) -> None:
    for pool in pools:
        pool.shutdown(wait=False, cancel_futures=True)
    file.close()

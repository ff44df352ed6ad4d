"""Who may write: one exclusive writer, or several shared ones; a short lock orders their commits.

The locks are advisory `flock`s. The kernel lets go of them when the process ends, however it ends, so there is no stale
lock to judge and no heartbeat to wait for. The lock file names its holder for the error message only.
"""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from typing import Any

from interneuron.core.errors import MissingExtra, StoreError


class FileLock:
    """An advisory lock on `path`, taken on construction and held until `release`.

    Args:
        path: The lock file; created when absent, left in place, emptied on release.
        shared: Let other shared holders in, keep exclusive ones out.
        wait: Seconds to go on trying.
        role: What the holder does, for the message others get.
    """

    def __init__(self, path: str, shared: bool = False, wait: float = 0.0, role: str = "writing") -> None:
        try:
            import fcntl
        except ImportError as error:
            raise MissingExtra(
                f"{path}: writing a store needs file locks of a POSIX system. Write on Linux or macOS."
            ) from error
        self.path, self._own, self._fork = path, not shared, os.getpid()
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
        mode = fcntl.LOCK_NB | (fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        end = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(self._handle, mode)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    holder = _holder(self._handle)
                    os.close(self._handle)
                    raise StoreError(
                        f"{os.path.dirname(path)}: {holder} holds the store; expected to be the only one {role}. "
                        "Wait for "
                        f"it or stop it; to write with several processes, give each its own writer name."
                    ) from None
            except OSError as error:
                os.close(self._handle)
                raise StoreError(
                    f"{path}: this file system has no locks ({error.strerror}). Put the store elsewhere."
                ) from error
            time.sleep(min(0.02, wait))
        if self._own:
            self._say({"pid": os.getpid(), "host": socket.gethostname(), "role": role})

    def _say(self, who: dict[str, Any] | None) -> None:
        with suppress(OSError):
            os.ftruncate(self._handle, 0)
            if who:
                os.pwrite(self._handle, json.dumps(who).encode(), 0)

    def release(self) -> None:
        """Let go. Safe to call twice."""
        if self._handle >= 0:
            if self._own and os.getpid() == self._fork:
                self._say(None)
            os.close(self._handle)
            self._handle = -1


def _holder(handle: int) -> str:
    try:
        who = json.loads(os.pread(handle, 4096, 0))
        return f"process {int(who['pid'])} on {str(who['host'])[:60]}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"

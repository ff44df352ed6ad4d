"""Fixtures of the store's tests."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

RAM = Path("/dev/shm")
PREFIX = "interneuron-test-"


def is_running(pid: str) -> bool:
    """Is there a process of that number?"""
    return pid.isdigit() and Path("/proc", pid).exists()


@pytest.fixture(scope="session")
def _swept() -> None:
    """Remove the folders in memory of test runs that were killed: nobody else ever would."""
    for left in RAM.glob(f"{PREFIX}*"):
        if not is_running(left.name.removeprefix(PREFIX).split("-")[0]):
            shutil.rmtree(left, ignore_errors=True)


@pytest.fixture
def ram_path(tmp_path: Path, _swept: None) -> Iterator[Path]:
    """A temporary folder in memory where there is one: thousands of fsyncs then cost nothing."""
    if not os.access(RAM, os.W_OK):
        yield tmp_path
        return
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=RAM))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)

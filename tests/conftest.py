"""Shared by all tests: shapes and types are checked at run time, nothing is fetched, one thread per process."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import jaxtyping
import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

# Every function of the package checks its annotations, jaxtyping shapes included, on each call; names that exist for
# type checkers only (imported under TYPE_CHECKING) are left unchecked.
install_import_hook("interneuron", "typechecker.check")

# The same examples on every run, and no deadline: the machine may be busy.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_plugin_stays() -> Iterator[None]:
    """Forget the plug-in a test wrote: the next one writes its own under the same name."""
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "my_methods"]:
        del sys.modules[name]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of optional real data (small public weights and texts); skip the test where it is absent."""
    folder = Path(os.environ.get("INTERNEURON_SHARED", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set INTERNEURON_SHARED to a folder that has models/ and text/")
    return folder


@pytest.fixture(scope="session")
def child_cpu_seconds() -> Callable[[list[str]], float]:
    """Return a function that runs a command and says how much CPU time it used, whatever else the machine does."""

    def measure(command: list[str]) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    return measure


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Turn the run-time type checks off, so that the test meets the library as its users do.

    For tests of the errors that wrong arguments raise, and for timings.
    """
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)

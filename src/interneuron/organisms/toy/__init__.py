"""`toy`: small tasks with a known answer.

Each module has `make(seed, **dials)` for data with `.truth`; those that need a network have `trained(seed, **dials)`,
which trains on first use and keeps the result in the cache.

    from interneuron.organisms import toy
    organism = toy.modadd.trained(seed=0)
    organism.model, organism.data.truth, organism.card["passed"]
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

from .cache import Trained, toy_folder

_NOT_TASKS = ("__init__", "cache", "nets")


def tasks() -> list[str]:
    """The names of all toy tasks, read from the folder.

    >>> "modadd" in tasks()
    True
    """
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in _NOT_TASKS)


def __getattr__(name: str) -> ModuleType:
    if name in tasks():
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; its tasks are {', '.join(tasks())}.")


__all__ = ["Trained", "tasks", "toy_folder"]

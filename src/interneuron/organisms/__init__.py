"""Model organisms: small models and data generators whose truth is known.

    from interneuron import organisms as org
    org.list()                        # what ships, what is cached, what each can do
    org.path("lm")                    # a plain Hugging Face folder
    org.tinyworld, org.shapes, org.toy

An organism is one recipe file in `recipes/`; nothing is listed by hand. Shipped weights lie in `weights/<name>/`,
trained ones in `~/.cache/interneuron/organisms/<name>-<recipe hash>/` (or under the folder INTERNEURON_CACHE names).
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from .catalogue import Organism, path, resolve
from .catalogue import table as list  # the public name is `organisms.list()`

__all__ = ["Organism", "list", "path", "resolve", "shapes", "tinyworld", "toy"]
_WORLDS = ("tinyworld", "shapes", "toy", "brainsim", "recsys", "gridworld")


def __getattr__(name: str) -> Any:
    if name in _WORLDS and (Path(__file__).parent / name).is_dir():
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> Any:
    return sorted(__all__)

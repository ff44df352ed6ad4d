"""interneuron: read, understand and rewrite the activations of any PyTorch network.

    import interneuron as inn

    model = inn.load("lm")
    with model.read("layers.*.resid_post") as acts:
        model("the home of Dakolo is vienna .")

Names are imported on first use, so importing the package costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "model.load": ("wrap",),
    "model.model": ("Model", "Run"),
    "model.sites": ("Site",),
    "model.positions": ("Span", "Token"),
    "model.edits": (
        "Edit",
        "Edits",
        "Add",
        "Scale",
        "Replace",
        "Ablate",
        "Project",
        "Clamp",
        "Transport",
        "Apply",
        "Above",
    ),
    "model.edit_files": ("load_edit",),
    "model.family": ("Family", "Stack", "Part"),
    "loading": ("load",),
    "artifacts": ("Artifact", "Dictionary", "Direction", "Report", "load_artifact"),
    "store": ("Store", "record"),
    "core.cards": ("Card", "methods", "cite"),
    "core.errors": ("InterneuronError",),
}
_WHERE = {name: home for home, names in _HOMES.items() for name in names}
_ROOMS = (
    "artifacts", "claims", "core", "model", "organisms", "parts", "store", "testing",
    "measure", "decompose", "direction", "steer", "circuit", "explain", "sparse", "memory", "adapt", "forget", "layers",
    "generate", "brain", "bench",
)  # fmt: skip

__all__ = [*_WHERE, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        value = getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
        globals()[name] = value
        return value
    if name in _ROOMS:
        try:
            return importlib.import_module(f"{__name__}.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS])

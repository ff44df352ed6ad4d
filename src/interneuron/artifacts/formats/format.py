"""What a format is: its name, what it can hold, how to recognise, read and write it; and what reading gives back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Format:
    """One foreign format.

    name     what `--to` and `format=` take
    title    the tool and the file, in one line
    holds    what it can carry: "dictionary", "dictionaries", "transcoders", "direction", "edits", "latents", "store"
    detect   path -> whether it looks like this format; reads names, JSON and headers, never a whole tensor file
    reads    (path, notes, **options) -> value; appends to `notes` every decision it took; None when it cannot
    writes   (value, path, **options) -> path; None when it cannot
    extra    the optional extra it needs, "" for none
    """

    name: str
    title: str
    holds: tuple[str, ...]
    detect: Callable[[Path], bool]
    reads: Callable[..., Any] | None = None
    writes: Callable[..., Path] | None = None
    extra: str = ""


@dataclasses.dataclass(frozen=True)
class Imported:
    """What was read: the value, the name of the format, and every decision that was taken, in plain sentences."""

    value: Any
    format: str
    notes: tuple[str, ...] = ()

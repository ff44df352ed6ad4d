"""Which organisms there are, where their weights lie and what their cards say. Nothing here imports torch."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from interneuron.core.errors import MethodNotFound, did_you_mean
from interneuron.core.files import read_json

HERE = Path(__file__).parent
CHECKPOINTS = "checkpoints"
INT8 = "model.int8.safetensors"


def names() -> tuple[str, ...]:
    """The organisms that have a recipe, by name: `recipes/lm_base.py` is `lm-base`."""
    found = (p.stem for p in (HERE / "recipes").glob("*.py") if not p.stem.startswith("_"))
    return tuple(sorted(name.replace("_", "-") for name in found))


def recipe(name: str) -> Any:
    """The `RECIPE` of an organism.

    Raises MethodNotFound with the nearest name.
    """
    _known(name)
    return importlib.import_module(f"interneuron.organisms.recipes.{name.replace('-', '_')}").RECIPE


def recipe_hash(name: str) -> str:
    """The hash that names the cache folder of an organism."""
    value = recipe(name).hash
    return value() if callable(value) else value


def cache_folder() -> Path:
    """Where organisms trained on this machine are kept: INTERNEURON_CACHE, or `~/.cache/interneuron/organisms`."""
    chosen = os.environ.get("INTERNEURON_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "interneuron" / "organisms"


def shipped(name: str) -> Path:
    """Where the organism's weights would ship in the package."""
    return HERE / "weights" / name


def home(name: str) -> Path | None:
    """The folder with the organism's weights: the shipped one, else the cached one of today's recipe, else None."""
    if (shipped(name) / "config.json").exists():
        return shipped(name)
    root = cache_folder()
    if not root.is_dir() or not any(root.glob(f"{name}-*")):
        return None  # spares the import of the recipe, and with it torch
    cached = root / f"{name}-{recipe_hash(name)}"
    return cached if (cached / "config.json").exists() else None


def path(name: str, checkpoint: int | None = None) -> Path:
    """The plain Hugging Face folder of an organism, for `from_pretrained` or `inn.load`.

    Raises MethodNotFound for a name without a recipe, and for one that is neither shipped nor trained yet.
    """
    _known(name)
    folder = home(name)
    if folder is None:
        raise MethodNotFound(
            f"organism {name!r} is not shipped and not in {cache_folder()}. "
            f"Train it: python -m interneuron.organisms.train {name}"
        )
    if checkpoint is not None:
        return _checkpoint_folder(name, folder, checkpoint)
    return usable(name, folder)


def usable(name: str, folder: Path) -> Path:
    """The Hugging Face folder of an organism's folder: itself, or what its int8 weights unpack to in the cache."""
    return _unpacked(name, folder, folder / INT8) if (folder / INT8).exists() else folder


def resolve(name: str, checkpoint: int | None = None) -> Path | None:
    """`path(name)` for organisms, None for anything else (a Hugging Face id, say)."""
    if name not in names():
        if checkpoint is not None:
            raise MethodNotFound(
                f"{name!r} is not an organism, so it has no checkpoint {checkpoint}.{did_you_mean(name, names())}"
            )
        return None
    return path(name, checkpoint)


def _known(name: str) -> None:
    if name not in names():
        raise MethodNotFound(f"no organism {name!r}.{did_you_mean(name, names())} There are {', '.join(names())}.")


def _checkpoint_folder(name: str, folder: Path, checkpoint: int) -> Path:
    """The Hugging Face folder of one checkpoint."""
    files = series(folder)
    if not 0 <= checkpoint < len(files):
        have = f"0 to {len(files) - 1}" if files else "none"
        raise MethodNotFound(f"organism {name!r} has no checkpoint {checkpoint}: expected {have}.")
    return _unpacked(name, folder, files[checkpoint][1])


def _unpacked(name: str, folder: Path, source: Path) -> Path:
    """A Hugging Face folder of one int8 file, made in the cache at first use."""
    target = cache_folder() / f"{name}-{source.stem}-{_digest(source)}"
    if not (target / "model.safetensors").exists():
        from .publish import unpack_checkpoint

        unpack_checkpoint(folder, source, target)
    return target


def _digest(file: Path) -> str:
    from interneuron.core.files import sha256_file

    return sha256_file(file)[:12]


def series(folder: Path) -> list[tuple[int, Path]]:
    """(training tokens, file) of the checkpoints of a series, oldest first; the last is the finished model's own."""
    files = sorted((folder / CHECKPOINTS).glob("*.safetensors"))
    return [(int(f.stem), f) for f in files]


@dataclass(frozen=True)
class Organism:
    """What is known about one organism. `inn.load` puts it on the model as `model.organism`.

    name        of the recipe            checkpoint   number in the series, None for the finished model
    card        the stored card          capabilities the rows of its table
    tokens      seen in training (of this checkpoint)
    checkpoints tokens of each checkpoint that ships
    """

    name: str
    checkpoint: int | None = None

    def __post_init__(self) -> None:
        _known(self.name)

    @cached_property
    def folder(self) -> Path | None:
        return home(self.name)

    @cached_property
    def card(self) -> dict[str, Any]:
        """The card as stored beside the weights; empty for an organism that is not there."""
        file = self.folder / "card.json" if self.folder else None
        return read_json(file) if file is not None and file.exists() else {}

    @property
    def capabilities(self) -> list[dict[str, Any]]:
        return self.card.get("capabilities", [])

    @property
    def short(self) -> list[str]:
        """The gated tasks this organism does not reach."""
        return self.card.get("short", [])

    @cached_property
    def checkpoints(self) -> list[int]:
        return [tokens for tokens, _ in series(self.folder)] if self.folder else []

    @property
    def tokens(self) -> int | None:
        if self.checkpoint is not None:
            return self.checkpoints[self.checkpoint]
        return self.card.get("training", {}).get("tokens")

    @property
    def status(self) -> str:
        """`shipped`, `cached` or `absent`."""
        folder = self.folder
        return "absent" if folder is None else "shipped" if folder == shipped(self.name) else "cached"

    def tokenizer(self, stock: Any) -> Any:
        """The tokenizer to use in place of the stock one: for language organisms its errors name the unknown word."""
        if stock is None or not str(self.card.get("world", "tinyworld")).startswith("tinyworld"):
            return stock
        from .tinyworld import tokenizer, words

        return tokenizer.checked(stock) if stock.get_vocab() == words.vocabulary() else stock

    def capability(self, task: str) -> float:
        """The measured value of one row of the table."""
        rows = {row["task"]: row["value"] for row in self.capabilities}
        if task not in rows:
            raise MethodNotFound(f"organism {self.name!r}: its card has no task {task!r}.{did_you_mean(task, rows)}")
        return rows[task]


class Table(tuple[Organism, ...]):
    """All organisms; prints as a table."""

    __slots__ = ()

    def __repr__(self) -> str:
        lines = [("name", "class", "parameters", "status", "minutes", "short of")]
        lines += [_line(o) for o in self]
        widths = [max(len(line[i]) for line in lines) for i in range(5)]
        return "\n".join(
            "  ".join([*(c.ljust(w) for c, w in zip(li, widths, strict=False)), li[5]]).rstrip() for li in lines
        )


def _line(o: Organism) -> tuple[str, ...]:
    card = o.card
    parameters = f"{card['parameters'] / 1e6:.2f}M" if "parameters" in card else "-"
    minutes = card.get("training", {}).get("minutes")
    return (
        o.name, card.get("class", "-"), parameters, o.status, f"{minutes:.0f}" if minutes is not None else "-",
        ", ".join(o.short) or ("nothing" if card else "-"),
    )  # fmt: skip


def table() -> Table:
    """Every organism with its class, parameters, status, training minutes and the gates it misses."""
    return Table(_each())


def _each() -> Iterator[Organism]:
    for name in names():
        yield Organism(name)

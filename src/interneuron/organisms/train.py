"""`python -m interneuron.organisms.train NAME`: train an organism from its recipe, resumable, into the cache.

The run lives in `<cache>/<name>-<hash>/run/` and is saved every two minutes; killed at any time it goes on from there.
INTERNEURON_COMPILE=1 fuses the element-wise work with `torch.compile` (needs a C++ compiler; about a third faster).
At the end the weights are written as a Hugging Face folder next to it, checked, and the card stored beside them.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from interneuron.core.errors import InterneuronError, TrainingError

from . import catalogue


def train(name: str, folder: Path | None = None, until: int | None = None, check: bool = True) -> Path:
    """Train organism `name` (and first the one it starts from) and return its Hugging Face folder.

    Args:
        name: a recipe.
        folder: where the result goes; default the cache folder of this recipe.
        until: stop after so many tokens (nothing is published then).
        check: compute the capability table and write the card.
    """
    recipe = catalogue.recipe(name)
    folder = folder or catalogue.cache_folder() / f"{name}-{catalogue.recipe_hash(name)}"
    if hasattr(recipe, "batch_size"):
        from . import vision_training

        vision_training.train(recipe, folder)
        if check:
            vision_training.check(recipe, folder)
        return folder
    return _language(name, recipe, folder, until, check)


def _language(name: str, recipe: object, folder: Path, until: int | None, check: bool) -> Path:
    import torch

    from . import publish
    from .check import check as measure
    from .language import LanguageRecipe
    from .trainer import Trainer

    assert isinstance(recipe, LanguageRecipe)
    start = None
    if recipe.align is not None:
        base = catalogue.home(recipe.align.base) or train(recipe.align.base)
        start = publish.read_weights(base)
    with _lock(folder):
        trainer = Trainer(recipe, folder / "run", start, compile=os.environ.get("INTERNEURON_COMPILE") == "1")
        trainer.resume()
        print(
            f"{name}: {recipe.end / 1e6:.1f}M tokens, about {recipe.minutes:.0f} min; run in {folder / 'run'}",
            file=sys.stderr,
        )
        trainer.run(until)
        if trainer.tokens < recipe.end:
            return folder
        publish.publish(recipe, folder / "run", folder, threads=torch.get_num_threads())
    if check:
        measure(name, folder=folder, write=True)
    return folder


class _lock:  # reads as a verb: with _lock(folder)
    """One training process per folder; a lock whose process is gone is taken over."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "run" / "lock"

    def __enter__(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(2):
            try:
                handle = os.open(self.file, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            except FileExistsError:
                self._clear()
                continue
            os.write(handle, str(os.getpid()).encode())
            os.close(handle)
            return
        raise TrainingError(f"training in {self.file.parent}: another process holds the lock; wait for it or stop it.")

    def _clear(self) -> None:
        """Remove a lock left by a process that is gone, else raise."""
        try:
            pid = int(self.file.read_text() or 0)
            os.kill(pid, 0)
        except (ValueError, ProcessLookupError, FileNotFoundError):
            self.file.unlink(missing_ok=True)
            return
        except PermissionError:
            pass
        raise TrainingError(f"training in {self.file.parent}: process {pid} is already at it; wait for it or stop it.")

    def __exit__(self, *_: object) -> None:
        self.file.unlink(missing_ok=True)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m interneuron.organisms.train", description="Train a model organism."
    )
    parser.add_argument("name", help="a recipe: " + ", ".join(catalogue.names()))
    parser.add_argument("--folder", type=Path, help="where the result goes (default: the cache)")
    parser.add_argument("--until", type=int, help="stop after so many tokens")
    parser.add_argument("--no-check", action="store_true", help="do not compute the capability table")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    try:
        folder = train(options.name, options.folder, options.until, not options.no_check)
    except InterneuronError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(f"{folder} ({(time.monotonic() - began) / 60:.1f} min)")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Train on first use: a folder per (task, dials, seed) that appears whole or not at all.

A build happens in a temporary folder beside its destination and is renamed when it is complete, under a lock that the
operating system releases if the process dies. Two processes that want the same model build it once; Ctrl-C leaves
nothing but an empty lock file.

The cache lies in `~/.cache/interneuron/organisms/toy`; the environment variable INTERNEURON_CACHE moves it.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from interneuron.core.errors import TrainingError
from interneuron.core.files import fsync_dir, load_tensors, read_json, save_tensors, write_json
from interneuron.organisms.catalogue import cache_folder


@dataclass(frozen=True)
class Trained:
    """A toy model with what is known of it.

    model   the network, in evaluation mode
    data    the generator's data for the same dials and seed (with `.truth`)
    card    seconds, gate values and requirement; `card["passed"]` says whether the gate was met
    """

    model: nn.Module
    data: Any
    card: dict[str, Any] = field(default_factory=dict)


def toy_folder() -> Path:
    """Where trained toy models are kept."""
    return cache_folder() / "toy"


def address(task: str, dials: Mapping[str, Any], source: ModuleType) -> Path:
    """The folder of one build: the task's name and a hash of its dials and of the code that makes it."""
    text = json.dumps({"task": task, **dials}, sort_keys=True) + inspect.getsource(source)
    return toy_folder() / f"{task}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def cached(
    task: str,
    dials: Mapping[str, Any],
    model: nn.Module,
    train: Callable[[nn.Module], dict[str, Any]],
    seconds: float,
    source: ModuleType | str,
) -> dict[str, Any]:
    """Fill `model` with the weights of a build, making the build first if nobody has. Returns its card.

    `train(model)` trains in place and returns the gate's measurements, with `"passed"` among them. `seconds` is what
    the build is expected to take on one core; builds over five seconds are announced on stderr.
    """
    from filelock import FileLock

    module = sys.modules[source] if isinstance(source, str) else source
    folder = address(task, dials, module)
    if not (folder / "card.json").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not (folder / "card.json").exists():
                _build(folder, task, dials, model, train, seconds)
    model.load_state_dict(load_tensors(folder / "model.safetensors"))
    model.eval()
    card: dict[str, Any] = read_json(folder / "card.json")
    return card


def _build(
    folder: Path,
    task: str,
    dials: Mapping[str, Any],
    model: nn.Module,
    train: Callable[[nn.Module], dict[str, Any]],
    seconds: float,
) -> None:
    if seconds > 5 and sys.stderr.isatty():
        print(f"training the toy organism {task} (about {seconds:.0f} s, once; kept in {folder})", file=sys.stderr)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        started, used = time.monotonic(), time.process_time()
        model.train()
        measured = train(model)
        if "passed" not in measured:
            raise TrainingError(
                f"toy task {task}: its training returned no 'passed'. Return the gate's outcome with it."
            )
        spent = {"seconds": round(time.monotonic() - started, 2), "cpu_seconds": round(time.process_time() - used, 2)}
        card = {"task": task, "dials": dict(dials), **spent, **measured}
        tensors: dict[str, Tensor] = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
        save_tensors(work / "model.safetensors", tensors)
        write_json(work / "card.json", card)
        os.rename(work, folder)
        fsync_dir(folder.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)

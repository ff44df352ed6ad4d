"""The data of a seed are the same bytes in another process, whatever that process drew before."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import torch

from interneuron.organisms import brainsim, toy
from interneuron.organisms import shapes as sh


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """All tensors of a value, in a fixed order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for key in sorted(value):
            yield from tensors(value[key])
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors(part)
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            if not name.startswith("_"):
                yield from tensors(getattr(value, name))


def digest(value: Any) -> str:
    """A hash of names, shapes and bytes."""
    h = hashlib.sha256()
    for tensor in tensors(value):
        h.update(str((tensor.shape, tensor.dtype)).encode())
        h.update(tensor.detach().contiguous().numpy().tobytes())
    return h.hexdigest()[:16]


def digests() -> dict[str, str]:
    """One hash for each generator that is new to no process."""
    made: dict[str, Any] = {f"toy.{name}": getattr(toy, name).make(3) for name in toy.tasks()}
    room = sh.views(20, 3)
    solids = sh.shapes3d(6, 3)
    made |= {
        "shapes3d": (solids, solids.views(sh.cameras("x")[0])), "voxels": sh.voxels(2, 3), "rooms": sh.rooms(3, 3),
        "views": (room, *room.render()), "spatial": sh.spatial(room, "side").answers, "blocks": sh.blocks("test"),
        "facets": sh.facets(8, 3).images, "signals": sh.signals(8, 3), "spikes": brainsim.spikes.make(3, steps=100),
        "calcium": brainsim.calcium.make(3), "eeg": brainsim.eeg.make(3, artefacts=brainsim.eeg.ARTEFACTS),
    }  # fmt: skip
    return {name: digest(value) for name, value in made.items()}


def test_another_process_makes_the_same_bytes() -> None:
    before = torch.random.get_rng_state()
    here = digests()
    assert torch.equal(torch.random.get_rng_state(), before)  # and nobody touched the global generator
    code = "import torch, random; torch.manual_seed(9); random.seed(9)\nimport test_same_bytes as t\nprint(t.digests())"
    where = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": where, "PYTHONHASHSEED": "77"},
    )  # fmt: skip
    assert run.stdout.strip().splitlines()[-1] == str(here)
    assert len(set(here.values())) == len(here)

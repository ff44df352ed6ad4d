"""What all scripts of this folder share: rows, comparison and command line. Needs torch and safetensors."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

D, F = 8, 20
TOLERANCE = 1e-6


def rows(n: int = 8) -> Tensor:
    """The inputs [n D]."""
    return torch.randn(n, D, generator=torch.Generator().manual_seed(11))


def fill(module: Any, seed: int = 3) -> None:
    """Random numbers in every parameter, thresholds and log-scales kept small and positive."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            values = torch.randn(parameter.shape, generator=rng) * 0.5
            parameter.copy_(values.abs() * 0.3 if "threshold" in name else values)


def note(folder: Path, x: Tensor, features: Tensor, output: Tensor) -> None:
    """Keep what the package computed beside its file."""
    tensors = {"x": x, "features": features, "output": output}
    save_file({k: v.detach().float().contiguous() for k, v in tensors.items()}, str(folder / "expected.safetensors"))


def compare(name: str, folder: Path, encode: Callable[[Tensor], Tensor], decode: Callable[[Tensor], Tensor]) -> bool:
    """Print the largest gap, relative to the largest value, between what the package computes on our file and what we
    wrote down; whether it is within the tolerance."""
    expected = load_file(str(folder / "expected.safetensors"))

    def gap(found: Tensor, wanted: Tensor) -> float:
        return float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1))

    with torch.no_grad():
        features, output = (
            gap(encode(expected["x"]), expected["features"]),
            gap(decode(expected["x"]), expected["output"]),
        )
    same = max(features, output) <= TOLERANCE
    print(json.dumps({"file": name, "features": features, "output": output, "same": same}))
    return same


def main(make: Callable[[Path], None], check: Callable[[Path], bool]) -> None:
    """`make FOLDER` or `check FOLDER`."""
    if len(sys.argv) != 3 or sys.argv[1] not in ("make", "check"):
        sys.exit(f"usage: {sys.argv[0]} make|check FOLDER")
    folder = Path(sys.argv[2])
    if sys.argv[1] == "make":
        folder.mkdir(parents=True, exist_ok=True)
        make(folder)
    elif not check(folder):
        sys.exit(1)

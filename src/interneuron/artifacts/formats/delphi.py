"""Delphi latents: a folder per hook point with `START_END.safetensors` and `config.json`.

`locations` [N 3] (batch, position, feature - START) as uint16 or uint32, `activations` [N], sometimes `tokens` [B T];
END is the last feature of the file, included.
"""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from interneuron.artifacts.formats import names
from interneuron.artifacts.formats.activation_stores import latents_from_store
from interneuron.artifacts.formats.format import Format
from interneuron.artifacts.latents import Latents
from interneuron.core import files
from interneuron.core.errors import ArtifactError, InputError, ShapeError
from interneuron.store import Store

CONFIG = "config.json"
_PART = re.compile(r"(\d{1,9})_(\d{1,9})\.safetensors")
_WHOLE = (torch.uint8, torch.uint16, torch.uint32, torch.int16, torch.int32, torch.int64)


def _parts(path: Path) -> list[tuple[int, int, Path]]:
    if not path.is_dir():
        return []
    return sorted((int(m[1]), int(m[2]), p) for p in path.iterdir() if (m := _PART.fullmatch(p.name)))


def _detect(path: Path) -> bool:
    found = _parts(path)
    if not found:
        return False
    return {"locations", "activations"} <= {entry.name for entry in files.read_tensor_header(found[0][2]).entries}


def _read(path: Path, notes: list[str], *, hookpoint: str = "", site: str = "") -> Latents:
    """hookpoint: the module path, when the folder's name is not it; site: our name, when it is known."""
    found = _parts(path)
    if not found:
        raise ArtifactError(f"{path}: holds no START_END.safetensors. Give the folder of one hook point.")
    places, values, tokens = [], [], None
    expected = found[0][0]
    for start, end, file in found:
        if start != expected or end < start:
            raise ArtifactError(
                f"{path}: features {expected} to {start - 1} are missing (or {file.name} overlaps). Download it again."
            )
        expected = end + 1
        t = files.load_tensors(file)
        odd = sorted(t.keys() - {"locations", "activations", "tokens"})
        if odd or not {"locations", "activations"} <= t.keys():
            raise ArtifactError(f"{file}: holds {sorted(t)[:6]}, expected locations, activations and perhaps tokens.")
        where, value = t["locations"], t["activations"]
        if where.dtype not in _WHOLE or where.ndim != 2 or where.shape[1] != 3 or tuple(value.shape) != (len(where),):
            raise ArtifactError(
                f"{file}: locations are {where.dtype} {list(where.shape)} beside {list(value.shape)} activations, "
                "expected whole numbers [N 3] beside [N]."
            )
        if not value.is_floating_point() or not bool(torch.isfinite(value).all()):
            raise ArtifactError(f"{file}: activations must be finite floats. Write them again.")
        where = where.to(torch.int64)
        if len(where) and int(where[:, 2].max()) > end - start:
            raise ArtifactError(
                f"{file}: names feature {int(where[:, 2].max())} of {end - start + 1}. They count from the start "
                "of the file."
            )
        places.append(where + torch.tensor([0, 0, start]))
        values.append(value)
        if "tokens" in t:
            own = t["tokens"].to(torch.int64)
            if tokens is not None and not torch.equal(own, tokens):
                raise ArtifactError(
                    f"{file}: its tokens differ from those of the files before. They are of different runs."
                )
            tokens = own
    config = files.read_json(path / CONFIG) if (path / CONFIG).is_file() else {}
    try:
        return Latents(
            locations=torch.cat(places), activations=torch.cat(values), tokens=tokens, n_features=expected,
            ranges=tuple((start, end) for start, end, _ in found),
            site=site or names.from_module(hookpoint or path.name, str(path), notes),
            fitted={"foreign": {"format": "delphi", "config": config}},
        )  # fmt: skip
    except ShapeError as error:
        raise ArtifactError(f"{path}: {error}") from error


def _write(value: Any, path: Path, *, n_splits: int = 1) -> Path:
    """n_splits: how many files, when it was not read from several."""
    if isinstance(value, Store):
        value = latents_from_store(value)
    if not isinstance(value, Latents) or not value.n_features:
        raise InputError(f"delphi holds Latents with a known number of features, got a {type(value).__name__}.")
    edges = torch.linspace(0, value.n_features, n_splits + 1).long().tolist()
    ranges = value.ranges or tuple((a, b - 1) for a, b in pairwise(edges))
    files.make_folder(path)
    for start, end in ranges:
        inside = (value.locations[:, 2] >= start) & (value.locations[:, 2] <= end)
        where = value.locations[inside] - torch.tensor([0, 0, start])
        small = not len(where) or int(where.max()) < 2**16
        part = {
            "locations": where.to(torch.uint16 if small else torch.uint32),
            "activations": _for_numpy(value.activations[inside]),
        }
        if value.tokens is not None:
            part["tokens"] = value.tokens
        files.save_tensors(path / f"{start}_{end}.safetensors", part)
    foreign = value.fitted.get("foreign", {})
    files.write_json(path / CONFIG, foreign.get("config", {}) if foreign.get("format") == "delphi" else {})
    return path


def _for_numpy(values: torch.Tensor) -> torch.Tensor:
    return values.float() if values.dtype == torch.bfloat16 else values  # its reader goes through NumPy, which has none


FORMAT = Format(
    name="delphi",
    title="Delphi latents: START_END.safetensors per range of features",
    holds=("latents",),
    detect=_detect,
    reads=_read,
    writes=_write,
)

"""TransformerLens intervention specs (its vLLM backend): JSON `{hook name: {"op", "factor" | "value", "pos"}}`.

    suppress  the whole site is 0        Ablate(site)
    scale     factor * x                 Scale(site, factor)
    add       x + value                  Add(site, value)
    set       value in place of x        Replace(site, value)

`pos` is an int or list of ints >= 0. One spec per hook.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interneuron.artifacts.direction import Direction
from interneuron.artifacts.formats import names
from interneuron.artifacts.formats.format import Format
from interneuron.core import files
from interneuron.core.errors import ArtifactError, InputError
from interneuron.model.edits import Ablate, Add, Edit, Edits, Replace, Scale, as_edits

MAX_JSON = 64 << 20
OPS = {"suppress": set(), "scale": {"factor"}, "add": {"value"}, "set": {"value"}}


def _detect(path: Path) -> bool:
    if not (path.is_file() and path.suffix == ".json"):
        return False
    found = files.read_json(path, MAX_JSON)
    return (
        isinstance(found, dict)
        and bool(found)
        and all(isinstance(v, dict) and v.get("op") in OPS for v in found.values())
    )


def _read(path: Path, notes: list[str], *, width: int = 0) -> Edits:
    """width: that of the sites, needed when a value is a single number."""
    return from_specs(files.read_json(path, MAX_JSON), notes, str(path), width)


def from_specs(specs: Any, notes: list[str] | None = None, what: str = "specs", width: int = 0) -> Edits:
    """The edits of a spec mapping held in memory."""
    notes = [] if notes is None else notes
    if not isinstance(specs, dict) or not specs:
        raise ArtifactError(f"{what}: expected an object from hook names to specs. It steers nothing.")
    return Edits(_edit(f"{what}: {str(hook)[:60]}", hook, spec, notes, width) for hook, spec in specs.items())


def _edit(what: str, hook: Any, spec: Any, notes: list[str], width: int) -> Edit:
    op = spec.get("op") if isinstance(spec, dict) else None
    if not isinstance(op, str) or op not in OPS:
        raise ArtifactError(f"{what}: op {str(op)[:30]!r} is unknown, expected one of {', '.join(OPS)}.")
    odd = sorted(spec.keys() - {"op", "pos", *OPS[op]}) or sorted(OPS[op] - spec.keys())
    if odd:
        raise ArtifactError(
            f"{what}: the keys {odd[:4]} are unknown or missing for op {op!r}. TransformerLens refuses it too."
        )
    site = names.from_hook(hook, what, notes)
    edit: Edit
    if op == "suppress":
        edit = Ablate(site)
    elif op == "scale":
        edit = Scale(site, _numbers(spec["factor"], what, 1, scalar=True))
    else:
        value = _numbers(spec["value"], what, width)
        if not isinstance(value, Tensor):
            raise ArtifactError(f"{what}: the value is one number for the whole width. Pass width=... to read it.")
        edit = Add(site, value) if op == "add" else Replace(site, value)
    pos = spec.get("pos")
    if pos is None:
        return edit
    chosen = pos if isinstance(pos, list) else [pos]
    if not chosen or not all(type(p) is int and p >= 0 for p in chosen):
        raise ArtifactError(f"{what}: pos is {str(pos)[:40]!r}, expected an int or list of ints >= 0.")
    return edit.at(pos=pos)


def _numbers(value: Any, what: str, width: int, scalar: bool = False) -> Any:
    items = value if isinstance(value, list) else [value]
    if not items or not all(type(n) in (int, float) and math.isfinite(n) for n in items):
        raise ArtifactError(f"{what}: {str(value)[:40]!r} is no finite number or list of them.")
    if scalar:
        if isinstance(value, list):
            raise ArtifactError(f"{what}: a factor is one number, got {len(items)}.")
        return float(value)
    if isinstance(value, list):
        if width and len(items) != width:
            raise ArtifactError(f"{what}: the value has {len(items)} numbers, the site is {width} wide.")
        return torch.tensor(items, dtype=torch.float32)
    return torch.full((width,), float(value)) if width else float(value)


def to_specs(value: Any) -> dict[str, dict[str, Any]]:
    """The spec mapping of a direction or of edits. Raises InputError for what the four ops cannot say."""
    specs: dict[str, dict[str, Any]] = {}
    for edit in as_edits(value.edit() if isinstance(value, Direction) else value):
        hook = names.to_hook(str(edit.site))
        if hook == str(edit.site) and not hook.startswith("blocks."):
            raise InputError(f"{edit.site!r} has no TransformerLens name. Use a site that has one.")
        if hook in specs:
            raise InputError(f"TransformerLens takes one spec per hook, {hook} has several. Add them up first.")
        specs[hook] = {**_spec(edit), **_pos(edit)}
    return specs


def _spec(edit: Edit) -> dict[str, Any]:
    if edit.gate is not None:
        raise InputError(f"TransformerLens specs have no gate; remove .when from {edit.kind} at {edit.site!r}.")
    if type(edit) is Add and edit.vector.ndim == 1:
        return {"op": "add", "value": (edit.vector.detach().cpu().float() * (edit.alpha * edit.strength)).tolist()}
    if edit.strength == 1:
        if type(edit) is Ablate and edit.how == "zero":
            return {"op": "suppress"}
        if type(edit) is Scale and not isinstance(edit.factor, Tensor):
            return {"op": "scale", "factor": float(edit.factor)}
        if type(edit) is Replace and edit.value.ndim == 1:
            return {"op": "set", "value": edit.value.detach().cpu().float().tolist()}
    raise InputError(
        f"TransformerLens specs know suppress, scale, add and set; {edit.kind} at {edit.site!r} has no form there."
    )


def _pos(edit: Edit) -> dict[str, Any]:
    if edit.selection.phase != "all" or set(edit.selection.axes) - {"pos"}:
        raise InputError(f"TransformerLens specs select positions only, not {edit.selection.describe()}.")
    choice = edit.selection.get("pos")
    if choice is None:
        return {}
    chosen = choice if isinstance(choice, list) else [choice]
    if not all(type(p) is int and p >= 0 for p in chosen):
        raise InputError(f"TransformerLens positions are ints >= 0 from the start, not pos={choice!r}.")
    return {"pos": choice}


def _write(value: Any, path: Path) -> Path:
    files.make_folder(path.parent)
    files.write_json(path, to_specs(value), MAX_JSON)
    return path


FORMAT = Format(
    name="transformer_lens",
    title="TransformerLens intervention specs: JSON from hook names to op, value, pos",
    holds=("direction", "edits"),
    detect=_detect,
    reads=_read,
    writes=_write,
)

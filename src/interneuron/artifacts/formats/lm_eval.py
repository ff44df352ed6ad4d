"""lm-evaluation-harness `--model steered`: a `.pt` (a pickle of plain values and tensors) or a CSV of dictionary
features.

    .pt    {module path of the base model: {"steering_vector" [D], "steering_coefficient", "action": add | clamp,
            "bias": [D] or None, "head_index": None}}
    .csv   loader, action, sparse_model, hookpoint, feature_index, steering_coefficient, head_index, sae_id, description

`add` adds coefficient * vector to the module's output. `clamp` sets the coordinate of (x - bias) along the unit vector
to the coefficient, which is the coordinate of x set to coefficient + bias . unit.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interneuron.artifacts.direction import Direction
from interneuron.artifacts.formats import names
from interneuron.artifacts.formats.format import Format
from interneuron.artifacts.formats.pickled_tensors import load_pickled_tensors, save_pickled_tensors
from interneuron.core import files
from interneuron.core.errors import ArtifactError, InputError
from interneuron.model.edits import Add, Clamp, Edit, Edits, as_edits

_KEYS = {"steering_vector", "steering_coefficient", "action", "bias", "head_index"}
COLUMNS = (
    "loader", "action", "sparse_model", "hookpoint", "feature_index", "steering_coefficient", "head_index", "sae_id",
    "description",
)  # fmt: skip


def _detect(path: Path) -> bool:
    if path.is_file() and path.suffix == ".csv":
        return {"loader", "feature_index", "steering_coefficient"} <= set(_header(path))
    if not (path.is_file() and path.suffix in (".pt", ".pth")):
        return False
    found = load_pickled_tensors(path, plain=True)
    return bool(found) and all(isinstance(v, dict) and "steering_vector" in v for v in found.values())


def _read(path: Path, notes: list[str], *, dictionaries: dict[str, Any] | None = None) -> Edits:
    """dictionaries: for a CSV, the dictionaries it names by sparse_model and hookpoint, already read."""
    if path.suffix == ".csv":
        return _read_csv(path, notes, dictionaries or {})
    found = load_pickled_tensors(path, plain=True)
    edits = [_edit(f"{path}: {hook[:60]}", hook, entry, notes) for hook, entry in found.items()]
    if not edits:
        raise ArtifactError(f"{path}: holds no module path. It steers nothing.")
    return Edits(edits)


def _edit(what: str, hook: str, entry: Any, notes: list[str]) -> Edit:
    if not isinstance(entry, dict) or not isinstance(entry.get("steering_vector"), Tensor):
        raise ArtifactError(f"{what}: has no steering_vector. It is no file of the steered model.")
    odd = sorted(entry.keys() - _KEYS)
    if odd:
        raise ArtifactError(
            f"{what}: the keys {odd[:4]} are unknown, expected {sorted(_KEYS)}. They could change what it does."
        )
    if entry.get("head_index") is not None:
        raise ArtifactError(
            f"{what}: steers head {entry['head_index']} of an output that has no head axis in Hugging Face models."
        )
    vector, bias, action = entry["steering_vector"], entry.get("bias"), entry.get("action")
    coefficient = entry.get("steering_coefficient", 1.0)
    if vector.ndim != 1 or not vector.is_floating_point() or not bool(torch.isfinite(vector).all()):
        raise ArtifactError(
            f"{what}: steering_vector is {vector.dtype} {list(vector.shape)}, expected finite floats [D]."
        )
    if isinstance(coefficient, bool) or not isinstance(coefficient, int | float):
        raise ArtifactError(f"{what}: steering_coefficient is {str(coefficient)[:30]!r}, expected a number.")
    site = names.from_module(hook, what, notes)
    if action == "add":
        if bias is not None:
            raise ArtifactError(f"{what}: action 'add' takes no bias; lm-eval refuses it too.")
        return Add(site, vector, alpha=float(coefficient))
    if action != "clamp":
        raise ArtifactError(f"{what}: action {str(action)[:30]!r} is unknown, expected add or clamp.")
    value = float(coefficient)
    if bias is not None:
        if bias.shape != vector.shape:
            raise ArtifactError(f"{what}: bias has shape {list(bias.shape)}, expected {list(vector.shape)}.")
        value += float(bias.double() @ (vector.double() / vector.double().norm()))
        notes.append(f"{hook}: clamped relative to a bias; the value became {value:.6g} relative to 0")
    return Clamp(site, vector, value)


def _header(path: Path) -> list[str]:
    line = files.read_bytes(path, 1 << 20).split(b"\n", 1)[0]
    return [cell.strip() for cell in next(csv.reader([line.decode("utf-8", "replace")]), [])]


def _read_csv(path: Path, notes: list[str], dictionaries: dict[str, Any]) -> Edits:
    try:
        rows = list(csv.DictReader(io.StringIO(files.read_bytes(path, 1 << 20).decode("utf-8"))))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ArtifactError(f"{path}: no readable CSV ({error}). Write it again.") from None
    edits: list[Edit] = []
    for number, row in enumerate(rows, start=2):
        what = f"{path}, line {number}"
        hook = row.get("hookpoint") or ""
        names_tried = (
            f"{row.get('sparse_model')}/{hook}",
            f"{row.get('sparse_model')}/{row.get('sae_id')}",
            str(row.get("sparse_model")),
        )
        dictionary = next((dictionaries[name] for name in names_tried if name in dictionaries), None)
        if dictionary is None:
            raise InputError(
                f"{what}: needs the dictionary {names_tried[0]!r}. Read it and pass "
                f"dictionaries={{{names_tried[0]!r}: ...}}."
            )
        try:
            index, coefficient = int(row["feature_index"]), float(row["steering_coefficient"])
            vector = dictionary.decoder[index]
        except (KeyError, TypeError, ValueError, IndexError):
            raise ArtifactError(f"{what}: feature_index or steering_coefficient is missing or out of range.") from None
        entry = {"steering_vector": vector, "steering_coefficient": coefficient, "action": row.get("action") or "add"}
        if entry["action"] == "clamp":
            entry["bias"] = dictionary.decoder_bias
        elif dictionary.center or bool((dictionary.decoder_bias != 0).any()):
            notes.append(
                f"line {number}: lm-eval passes the dictionary's bias with 'add' and then refuses it; left out here"
            )
        edits.append(_edit(what, hook or str(dictionary.site), entry, notes))
    return Edits(edits)


def _write(value: Any, path: Path, *, model: Any = None, alpha: float = 1.0) -> Path:
    """model: finds the module paths it has there; alpha: multiplies every coefficient of an `add`."""
    items = as_edits(value.edit() if isinstance(value, Direction) else value)
    out: dict[str, Any] = {}
    for edit in items:
        hook = names.to_module(str(edit.site), model)
        if hook in out:
            raise InputError(f"lm-eval has one entry per module, {edit.site!r} has several edits. Add them up first.")
        if edit.gate is not None or edit.selection:
            raise InputError(
                f"lm-eval steers every position: {edit.kind} at {edit.site!r} is restricted. Remove .at/.when."
            )
        if type(edit) is Add and edit.vector.ndim == 1:
            vector, coefficient, action = edit.vector, edit.alpha * edit.strength * alpha, "add"
        elif type(edit) is Clamp and edit.strength == 1 and not isinstance(edit.value, Tensor):
            vector, coefficient, action = edit.direction, float(edit.value), "clamp"
        else:
            raise InputError(
                f"lm-eval knows add and clamp of one vector; {edit.kind} at {edit.site!r} has no form there."
            )
        out[hook] = {
            "steering_vector": vector.detach().cpu().clone(), "steering_coefficient": float(coefficient),
            "action": action, "bias": None, "head_index": None,
        }  # fmt: skip
    if path.suffix not in (".pt", ".pth"):
        raise InputError(f"{path.name}: lm-eval looks at the ending, expected .pt. Rename it.")
    files.make_folder(path.parent)
    save_pickled_tensors(path, out)
    return path


FORMAT = Format(
    name="lm_eval",
    title="lm-evaluation-harness steered model: .pt (a pickle, opened for tensors only) or .csv",
    holds=("direction", "edits"),
    detect=_detect,
    reads=_read,
    writes=_write,
)

"""Edits on disk: a folder with `edit.json` and, beside it, `tensors-<SHA-256>.safetensors`.

Every kind of edit can be saved except `Apply`, whose function would have to be stored as code, and so can the gate
`Above`, every selection and the strength. What is loaded gives the same bits at the same site as what was saved.

The tensor file is written first, under a name made of its own hash, then `edit.json`, which names it, is replaced, so
an interruption leaves the whole old edit or the whole new one. Loading trusts nothing it reads.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from interneuron.core import files
from interneuron.core.errors import ArtifactError, EditError, InterneuronError, UnsafeFile, did_you_mean
from interneuron.model.edits import (
    Ablate,
    Above,
    Add,
    Clamp,
    Edit,
    Edits,
    Project,
    Replace,
    Scale,
    Transport,
    as_edits,
)
from interneuron.model.positions import Span, Token
from interneuron.model.selection import Phase, Selection

DOCUMENT = "edit.json"
FORMAT = "interneuron.edit"
VERSION = 1
MAX_BYTES = 8 << 30

_KINDS: dict[str, type[Edit]] = {c.__name__: c for c in (Add, Scale, Replace, Ablate, Project, Clamp, Transport)}
_COMMON = {field.name for field in dataclasses.fields(Edit)}
_KEYS = {"format", "version", "single", "edits", "tensors", "sha256"}
_EDIT_KEYS = {"kind", "site", "strength", "selection", "gate", "fields"}
_FILE = re.compile(r"tensors-([0-9a-f]{64})\.safetensors")


# --- writing ---


def save_edits(edits: Any, path: str | Path) -> Path:
    """Write an edit, a sum of edits or a list of them to the folder `path`, created if need be; return the folder.

    Raises:
        EditError: an `Apply`, a gate that is not `Above`, or nothing to save: they have no file form.
        ArtifactError: the folder cannot be written; what was saved there before is intact.
    """
    folder = Path(path)
    items = as_edits(edits)
    if not items:
        raise EditError("there is no edit to save: pass an Edit, a sum of edits or a list of them.")
    tensors: dict[str, Tensor] = {}
    described = [_describe(edit, str(i), tensors) for i, edit in enumerate(items)]
    single = isinstance(edits, Edit) or (isinstance(edits, Edits) and len(edits) == 1)
    try:
        files.make_folder(folder)
        name = f"tensors-{files.sha256_tensors(tensors)}.safetensors" if tensors else None
        if name is not None:
            files.save_tensors(folder / name, tensors)
        document = {"format": FORMAT, "version": VERSION, "single": single, "edits": described, "tensors": name}
        files.write_json(folder / DOCUMENT, {**document, "sha256": _seal(document)})
        for old in folder.iterdir():
            if _FILE.fullmatch(old.name) and old.name != name:
                old.unlink()
    except OSError as error:
        raise ArtifactError(
            f"{folder}: the edit cannot be written ({error.strerror or error}). "
            "What was saved there before is intact; free space or choose another folder."
        ) from error
    return folder


def _describe(edit: Edit, prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    if type(edit) is not _KINDS.get(edit.kind):
        raise EditError(
            f"{edit.kind} at {str(edit.site)!r} cannot be saved: it is a function, and loading one would run code. "
            f"Express it with {', '.join(_KINDS)}, or keep the function in your own program."
        )
    if edit.gate is not None and type(edit.gate) is not Above:
        raise EditError(
            f"the gate of {edit.kind} at {str(edit.site)!r} cannot be saved: it is a {type(edit.gate).__name__}, and "
            "loading one would run code. Use the gate Above(direction, threshold)."
        )
    return {
        "kind": edit.kind,
        "site": str(edit.site),
        "strength": edit.strength,
        "selection": _selection_out(edit.selection),
        "gate": None if edit.gate is None else _fields_out(edit.gate, f"{prefix}.gate", tensors),
        "fields": _fields_out(edit, prefix, tensors),
    }


def _fields_out(holder: Any, prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for field in dataclasses.fields(holder):
        if isinstance(holder, Edit) and field.name in _COMMON:
            continue
        value = getattr(holder, field.name)
        if isinstance(value, Tensor):
            name = f"{prefix}.{field.name}"
            tensors[name] = value.detach()
            value = {"tensor": name}
        out[field.name] = value
    return out


def _selection_out(selection: Selection) -> dict[str, Any]:
    return {"phase": selection.phase, "axes": {axis: _choice_out(choice) for axis, choice in selection.items()}}


def _choice_out(choice: Any) -> Any:
    if isinstance(choice, Span):
        return {"span": choice.text, "which": choice.which}
    if isinstance(choice, Token):
        return {"token": choice.token}
    if isinstance(choice, slice):
        return {"slice": [choice.start, choice.stop, choice.step]}
    if isinstance(choice, Tensor):
        return choice.tolist()
    if isinstance(choice, (list, tuple)):
        return [_choice_out(item) for item in choice]
    return choice


def _seal(document: dict[str, Any]) -> str:
    """SHA-256 over everything the document says, independent of spacing and key order."""
    return files.sha256_bytes(json.dumps(document, sort_keys=True, separators=(",", ":")).encode("ascii"))


# --- reading ---


def load_edit(path: str | Path, max_bytes: int = MAX_BYTES) -> Edit | Edits:
    """Read what `save_edits` wrote: one Edit where one was saved, else Edits. Tensors come back on the CPU.

    Raises:
        ArtifactError: no such folder, damaged, of another version, or not an edit.
        UnsafeFile: a file that is not what its name says, or larger than `max_bytes`.
    """
    folder = Path(path)
    what = str(folder / DOCUMENT)
    try:
        document = files.read_json(folder / DOCUMENT)
        _check_document(document, what)
        tensors: dict[str, Tensor] = {}
        if document["tensors"] is not None:
            sha = _FILE.fullmatch(document["tensors"])
            assert sha is not None
            tensors = files.load_tensors(folder / document["tensors"], max_bytes, sha256=sha.group(1))
    except OSError as error:
        raise ArtifactError(
            f"{folder}: no edit can be read here ({error.strerror or error}): expected a folder with {DOCUMENT}. "
            "Give the folder that edit.save(...) wrote."
        ) from error
    wanted: set[str] = set()
    edits = [_edit_in(item, tensors, wanted, f"{what}, edit {i}") for i, item in enumerate(document["edits"])]
    if wanted != tensors.keys():
        odd = sorted(wanted ^ tensors.keys())
        raise ArtifactError(f"{what}: the tensors {odd[:4]} are missing or not used. Save the edit again.")
    return edits[0] if document["single"] else Edits(edits)


def _check_document(document: Any, what: str) -> None:
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ArtifactError(f"{what}: not a saved edit, expected an object with format {FORMAT!r}. Check the path.")
    version = document.get("version")
    if type(version) is not int or version != VERSION:
        advice = "Upgrade interneuron." if type(version) is int and version > VERSION else "Save the edit again."
        raise ArtifactError(f"{what}: schema version {str(version)[:20]}, this release reads {VERSION}. {advice}")
    if document.keys() != _KEYS:
        odd = sorted(document.keys() ^ _KEYS)
        raise ArtifactError(f"{what}: the keys {str(odd)[:80]} are missing or unknown. Save the edit again.")
    if document["sha256"] != _seal({key: value for key, value in document.items() if key != "sha256"}):
        raise ArtifactError(
            f"{what}: its contents do not match the hash recorded in it; it was edited or damaged. "
            "Save the edit again; to change one, load, replace and save."
        )
    name = document["tensors"]
    if name is not None and not (isinstance(name, str) and _FILE.fullmatch(name)):
        raise UnsafeFile(
            f"{what}: the tensor file is called {str(name)[:100]!r}, expected 'tensors-<SHA-256>.safetensors' in the "
            "same folder. Do not use this edit."
        )
    items = document["edits"]
    single = document["single"]
    if not isinstance(items, list) or not items or type(single) is not bool or (single and len(items) != 1):
        raise ArtifactError(f"{what}: expected a list of edits, one where it says single. Save the edit again.")


def _edit_in(item: Any, tensors: dict[str, Tensor], wanted: set[str], what: str) -> Edit:
    if not isinstance(item, dict) or item.keys() != _EDIT_KEYS:
        raise ArtifactError(f"{what}: expected an object with exactly {sorted(_EDIT_KEYS)}. Save the edit again.")
    kind, site, strength = item["kind"], item["site"], item["strength"]
    cls = _KINDS.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise ArtifactError(
            f"{what}: the kind {str(kind)[:40]!r} is unknown, expected one of {', '.join(_KINDS)}."
            f"{did_you_mean(str(kind)[:40], _KINDS)} Upgrade interneuron or save the edit again."
        )
    if not isinstance(site, str) or not site or type(strength) not in (int, float):
        raise ArtifactError(f"{what}: the site must be text and the strength a number. Save the edit again.")
    gate = None if item["gate"] is None else _fields_in(Above, item["gate"], tensors, wanted, f"{what}, gate")
    fields = _fields_in(cls, item["fields"], tensors, wanted, what)
    try:
        selection = _selection_in(item["selection"], what)
        opened = None if gate is None else Above(**gate)
        return cls(site=site, selection=selection, gate=opened, strength=float(strength), **fields)
    except ArtifactError:
        raise
    except (InterneuronError, RuntimeError) as error:
        raise ArtifactError(f"{what}: {kind} cannot be built from it: {error} Save a sound edit again.") from error


def _fields_in(cls: Any, given: Any, tensors: dict[str, Tensor], wanted: set[str], what: str) -> dict[str, Any]:
    """The constructor's own arguments, each of a type its annotation allows."""
    fields = [f for f in dataclasses.fields(cls) if not (issubclass(cls, Edit) and f.name in _COMMON)]
    if not isinstance(given, dict) or given.keys() != {f.name for f in fields}:
        raise ArtifactError(f"{what}: expected the fields {[f.name for f in fields]}. Save the edit again.")
    out: dict[str, Any] = {}
    for field in fields:
        value = given[field.name]
        allowed = {word.strip() for word in str(field.type).split("|")}
        if isinstance(value, dict) and value.keys() == {"tensor"} and "Tensor" in allowed:
            name = value["tensor"]
            if not isinstance(name, str) or name not in tensors or name in wanted:
                raise ArtifactError(
                    f"{what}: {field.name} names the tensor {str(name)[:40]!r}, which is not in the file or is used "
                    "twice. Save the edit again."
                )
            wanted.add(name)
            out[field.name] = tensors[name]
        elif _word(value) in allowed or (type(value) is int and "float" in allowed):
            out[field.name] = value
        else:
            raise ArtifactError(
                f"{what}: {field.name} is {str(value)[:40]!r}, expected {' or '.join(sorted(allowed))}. "
                "Save the edit again."
            )
    return out


def _word(value: Any) -> str:
    return "None" if value is None else type(value).__name__


def _selection_in(given: Any, what: str) -> Selection:
    if not isinstance(given, dict) or given.keys() != {"phase", "axes"} or not isinstance(given["axes"], dict):
        raise ArtifactError(f"{what}: the selection must hold exactly 'phase' and 'axes'. Save the edit again.")
    if given["phase"] not in get_args(Phase):
        raise ArtifactError(
            f"{what}: phase={str(given['phase'])[:20]!r} is unknown, expected one of {get_args(Phase)}. "
            "Save the edit again."
        )
    axes = {axis: _choice_in(choice, what) for axis, choice in given["axes"].items()}
    return Selection().merge({**axes, "phase": given["phase"]})


def _choice_in(choice: Any, what: str) -> Any:
    if type(choice) in (int, str):
        return choice
    if isinstance(choice, list):
        return [_choice_in(item, what) for item in choice]
    if isinstance(choice, dict):
        keys = choice.keys()
        if keys == {"span", "which"} and isinstance(choice["span"], str) and type(choice["which"]) in (int, str):
            return Span(choice["span"], choice["which"])
        if keys == {"token"} and type(choice["token"]) in (int, str):
            return Token(choice["token"])
        bounds = choice.get("slice")
        whole = isinstance(bounds, list) and len(bounds) == 3 and keys == {"slice"}
        if whole and all(bound is None or type(bound) is int for bound in bounds):
            return slice(*bounds)
    raise ArtifactError(f"{what}: {str(choice)[:60]!r} is no choice along an axis. Save the edit again.")

"""EasySteer steering spec: JSON that names vector files, their strength, layers and where they apply.

    {"vectors": [{"source": "v.gguf", "algorithm": "direct", "scale": 2.0, "layers": [10, 11],
                  "apply": {"prompt_positions": [-1], "generation": "all"}}], "conflict": "sequential"}

`direct` adds scale * vector to the output of each block named. Sources are GGUF control vectors beside the spec; their
direction.0 is block 0 here, which llama.cpp has no place for. `apply` selects in the prompt and in what is generated
independently: "all" of it, or a selector of positions, a window or token ids; what it does not name is left alone.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from interneuron.artifacts.direction import Direction
from interneuron.artifacts.formats import gguf, names
from interneuron.artifacts.formats.format import Format
from interneuron.core import files
from interneuron.core.errors import ArtifactError, InputError, UnsafeFile
from interneuron.model.edits import Add, Edit, Edits, as_edits
from interneuron.model.positions import Token

_KEYS = {"source", "algorithm", "scale", "layers", "normalize", "apply", "params", "name"}
_PHASES = {"prompt": "prompt", "generation": "generated"}
_SELECTORS = ("positions", "window", "tokens")


def _detect(path: Path) -> bool:
    if not (path.is_file() and path.suffix == ".json"):
        return False
    found = files.read_json(path)
    listed = found.get("vectors") if isinstance(found, dict) else None
    return isinstance(listed, list) and bool(listed) and all(isinstance(v, dict) and "apply" in v for v in listed)


def _read(path: Path, notes: list[str]) -> Edits:
    spec = files.read_json(path)
    listed = spec.get("vectors") if isinstance(spec, dict) else None
    if not isinstance(listed, list) or not listed or not all(isinstance(v, dict) for v in listed):
        raise ArtifactError(f"{path}: expected an object with a list of vectors. It is no steering spec.")
    odd = sorted(spec.keys() - {"vectors", "conflict", "debug"})
    conflict = spec.get("conflict", "priority")
    if odd or conflict not in ("priority", "sequential", "error"):
        raise ArtifactError(
            f"{path}: keys {odd[:4]} or conflict={str(conflict)[:20]!r} are unknown. They could change what it does."
        )
    groups = [_vector(entry, path, f"{path}, vector {i}", notes) for i, entry in enumerate(listed)]
    if conflict != "sequential" and _meet(groups):
        raise ArtifactError(
            f"{path}: several vectors meet at one layer and conflict={conflict!r} lets only one act; edits here "
            "add up. "
            "Set conflict to 'sequential' if that is meant."
        )
    return Edits(edit for group in groups for edit in group)


def _meet(groups: list[list[Edit]]) -> bool:
    """Whether two vectors can act at the same site on the same token: phases are told apart, positions are not."""
    seen: set[tuple[str, str]] = set()
    for group in groups:
        own = {
            (str(edit.site), phase)
            for edit in group
            for phase in (_PHASES.values() if edit.selection.phase == "all" else (edit.selection.phase,))
        }
        if seen & own:
            return True
        seen |= own
    return False


def _vector(entry: dict[str, Any], path: Path, what: str, notes: list[str]) -> list[Edit]:
    odd = sorted(entry.keys() - _KEYS)
    if odd or entry.get("params"):
        raise ArtifactError(f"{what}: {odd[:4] or 'params'} not understood. It could change what the vector does.")
    if entry.get("algorithm", "direct") != "direct" or entry.get("normalize", False):
        raise ArtifactError(
            f"{what}: algorithm {str(entry.get('algorithm', 'direct'))[:20]!r} with "
            f"normalize={entry.get('normalize', False)} "
            "is not read, expected 'direct' without normalize."
        )
    source, scale, layers = entry.get("source"), entry.get("scale", 1.0), entry.get("layers")
    if (
        not isinstance(source, str)
        or not source
        or source.startswith("/")
        or ".." in Path(source).parts
        or "\\" in source
    ):
        raise UnsafeFile(
            f"{what}: source {str(source)[:60]!r} must be a file beside the spec, without '..'. Copy it there."
        )
    if type(scale) not in (int, float) or not math.isfinite(scale):
        raise ArtifactError(f"{what}: scale is {str(scale)[:30]!r}, expected a finite number.")
    direction = gguf.FORMAT.reads(path.parent / source, notes, first=0)  # pyrefly: ignore[not-callable]
    rows = dict(
        zip(direction.sites, direction.vector if direction.vector.ndim == 2 else direction.vector[None], strict=True)
    )
    if layers is not None:
        if not isinstance(layers, list) or not all(type(n) is int for n in layers):
            raise ArtifactError(f"{what}: layers {str(layers)[:40]} must be a list of numbers.")
        missing = [n for n in layers if f"layers.{n}.resid_post" not in rows]
        if missing:
            raise ArtifactError(
                f"{what}: {source} has no vector for the layers {missing[:6]}, only for {list(rows)[:6]}."
            )
        rows = {f"layers.{n}.resid_post": rows[f"layers.{n}.resid_post"] for n in layers}
    choices = _apply(entry.get("apply"), what)
    return [Add(site, row, alpha=float(scale)).at(**choice) for choice in choices for site, row in rows.items()]


def _apply(apply: Any, what: str) -> list[dict[str, Any]]:
    """What `.at(...)` takes, once per phase: phases never meet, so their union is the sum of two edits."""
    if not isinstance(apply, dict):
        raise ArtifactError(f"{what}: apply is {str(apply)[:40]!r}, expected an object. EasySteer refuses it too.")
    if "phases" in apply:
        raise ArtifactError(
            f"{what}: apply has 'phases', which EasySteer removed. Write prompt='all' and generation='all' instead."
        )
    known = {*_PHASES, *(f"{phase}_{kind}" for phase in _PHASES for kind in _SELECTORS)}
    odd = sorted(key for key, value in apply.items() if key not in known and value is not None)
    if odd:
        raise ArtifactError(f"{what}: the selectors {odd[:3]} have no form here. They change where it applies.")
    if apply.get("prompt") == apply.get("generation") == "all":
        return [{"phase": "all"}]
    choices = []
    for phase, ours in _PHASES.items():
        chosen = {kind: apply[f"{phase}_{kind}"] for kind in _SELECTORS if apply.get(f"{phase}_{kind}") is not None}
        if apply.get(phase) == "all":
            choices.append({"phase": ours})
        elif apply.get(phase) is not None:
            raise ArtifactError(f"{what}: {phase} is {str(apply[phase])[:20]!r}, expected 'all'. EasySteer agrees.")
        elif len(chosen) > 1:
            raise ArtifactError(f"{what}: the union of {sorted(chosen)} in the {phase} is not one choice. Split it.")
        elif chosen:
            ((kind, value),) = chosen.items()
            choices.append({"pos": _position(kind, value, phase, what), "phase": ours})
    if not choices:
        raise ArtifactError(f"{what}: apply selects nothing. Write prompt='all', generation='all' or a selector.")
    return choices


def _position(kind: str, value: Any, phase: str, what: str) -> Any:
    """What `.at(pos=...)` takes for one selector."""
    if not isinstance(value, list) or not value or not all(type(n) is int or n is None for n in value):
        raise ArtifactError(f"{what}: {phase}_{kind} is {str(value)[:40]}, expected a list of numbers.")
    if kind == "window":
        if len(value) != 2 or value[0] is None:
            raise ArtifactError(f"{what}: {phase}_window is {value}, expected [start, stop].")
    elif None in value:
        raise ArtifactError(f"{what}: {phase}_{kind} is {value}, expected numbers.")
    if (phase == "generation" or kind == "tokens") and any(n is not None and n < 0 for n in value):
        raise ArtifactError(f"{what}: {phase}_{kind} is {value}, expected numbers >= 0. EasySteer refuses it too.")
    if kind == "window":
        return slice(value[0], value[1])
    if kind == "positions":
        return value
    if len(value) > 1:
        raise ArtifactError(f"{what}: {phase}_tokens names several tokens; split it into one vector per token.")
    return Token(value[0])


def _write(value: Any, path: Path, *, model_hint: str = "", layer_count: int = 0) -> Path:
    groups: dict[str, tuple[dict[str, Any], float, dict[str, torch.Tensor]]] = {}
    singles = 0
    for edit in as_edits(value.edit() if isinstance(value, Direction) else value):
        names.layer_of(str(edit.site), "easysteer")
        if type(edit) is not Add or edit.gate is not None or edit.vector.ndim != 1:
            raise InputError(f"easysteer adds vectors here; {edit.kind} at {edit.site!r} has no form. Use Add.")
        clause, strength = _clause(edit), edit.alpha * edit.strength
        key = f"{clause}|{strength}"
        if key in groups and str(edit.site) in groups[key][2]:
            singles += 1
            key = f"{key}|{singles}"
        groups.setdefault(key, (clause, strength, {}))[2][str(edit.site)] = edit.vector.detach().cpu()
    vectors = []
    for i, (clause, strength, rows) in enumerate(groups.values()):
        name = f"{path.stem}.{i}.gguf"
        stacked = torch.stack(list(rows.values()))
        direction = Direction(
            stacked if len(rows) > 1 else stacked[0], site=tuple(rows) if len(rows) > 1 else next(iter(rows))
        )
        target = path.parent / name
        gguf.FORMAT.writes(direction, target, model_hint=model_hint, layer_count=layer_count, first=0)  # pyrefly: ignore[not-callable]
        layers = [names.layer_of(site, "easysteer") for site in rows]
        vectors.append({
            "source": name, "algorithm": "direct", "scale": strength, "layers": layers,
            "normalize": False, "apply": clause,
        })  # fmt: skip
    files.write_json(path, {"vectors": vectors, "conflict": "sequential"})
    return path


def _clause(edit: Edit) -> dict[str, Any]:
    if set(edit.selection.axes) - {"pos"}:
        raise InputError(f"easysteer selects positions only, not {edit.selection.describe()}.")
    phases = [theirs for theirs, ours in _PHASES.items() if edit.selection.phase in ("all", ours)]
    choice = edit.selection.get("pos")
    if choice is None:
        return dict.fromkeys(phases, "all")
    if len(phases) > 1:
        raise InputError(
            f"easysteer selects positions within a phase: add phase='prompt' or 'generated' to pos={choice!r}."
        )
    phase = phases[0]
    if isinstance(choice, slice) and choice.step in (None, 1):
        kind, value = "window", [choice.start or 0, choice.stop]
    elif isinstance(choice, Token) and isinstance(choice.token, int):
        kind, value = "tokens", [choice.token]
    else:
        kind, value = "positions", choice if isinstance(choice, list) else [choice]
        if not all(type(n) is int for n in value):
            raise InputError(f"easysteer has no form for pos={choice!r}. Give token numbers, a slice or inn.Token(id).")
    if phase == "generation" and any(n is not None and n < 0 for n in value):
        raise InputError(f"easysteer counts generated tokens from 0; pos={choice!r} counts from an end not yet known.")
    return {f"{phase}_{kind}": value}


FORMAT = Format(
    name="easysteer",
    title="EasySteer steering spec: JSON beside GGUF vectors",
    holds=("direction", "edits"),
    detect=_detect,
    reads=_read,
    writes=_write,
    extra="formats",
)

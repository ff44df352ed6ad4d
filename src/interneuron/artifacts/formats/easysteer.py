"""EasySteer steering spec: JSON that names vector files, their strength, layers and where they apply.

    {"vectors": [{"source": "v.gguf", "algorithm": "direct", "scale": 2.0, "layers": [10, 11],
                  "apply": {"phases": ["prompt", "generation"], "prompt_positions": [-1]}}], "conflict": "sequential"}

`direct` adds scale * vector to the output of each block named. Sources are GGUF control vectors beside the spec.
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
_PROMPT = {"prompt_positions", "prompt_window", "prompt_tokens"}
_GENERATED = {"generation_positions", "generation_window", "generation_tokens"}
_PHASES: dict[tuple[str, ...], str] = {
    ("prompt", "generation"): "all",
    ("prompt",): "prompt",
    ("generation",): "generated",
}


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
    edits = [edit for i, entry in enumerate(listed) for edit in _vector(entry, path, f"{path}, vector {i}", notes)]
    sites = [edit.site for edit in edits]
    if conflict != "sequential" and len(set(sites)) < len(sites):
        raise ArtifactError(
            f"{path}: several vectors meet at one layer and conflict={conflict!r} lets only one act; edits here "
            "add up. "
            "Set conflict to 'sequential' if that is meant."
        )
    return Edits(edits)


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
    direction = gguf.FORMAT.reads(path.parent / source, notes)  # pyrefly: ignore[not-callable]
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
    choice = _apply(entry.get("apply"), what)
    return [Add(site, row, alpha=float(scale)).at(**choice) for site, row in rows.items()]


def _apply(apply: Any, what: str) -> dict[str, Any]:
    """What `.at(...)` takes for an apply clause that one choice of ours can say; any other is refused."""
    if not isinstance(apply, dict) or not isinstance(apply.get("phases"), list):
        raise ArtifactError(f"{what}: apply must be an object with phases. EasySteer refuses it too.")
    phase = _PHASES.get(tuple(sorted(map(str, apply["phases"]), reverse=True)))
    chosen = {key: value for key, value in apply.items() if key != "phases" and value is not None}
    odd = sorted(chosen.keys() - _PROMPT - _GENERATED)
    if phase is None or odd:
        raise ArtifactError(f"{what}: phases {str(apply['phases'])[:40]} or selectors {odd[:3]} have no form here.")
    if not chosen:
        return {"phase": phase}
    if len(chosen) > 1 or phase == "all":
        raise ArtifactError(
            f"{what}: the union of {sorted(chosen)} over {phase} phases is not one choice. Split the vector."
        )
    ((key, value),) = chosen.items()
    if (key in _PROMPT) != (phase == "prompt"):
        raise ArtifactError(f"{what}: {key} does not belong to the phase {phase}. EasySteer refuses it too.")
    if not isinstance(value, list) or not value or not all(type(n) is int or n is None for n in value):
        raise ArtifactError(f"{what}: {key} is {str(value)[:40]}, expected a list of numbers.")
    if key.endswith("window"):
        if len(value) != 2 or value[0] is None:
            raise ArtifactError(f"{what}: {key} is {value}, expected [start, stop].")
        return {"pos": slice(value[0], value[1]), "phase": phase}
    if None in value:
        raise ArtifactError(f"{what}: {key} is {value}, expected numbers.")
    if key.endswith("tokens"):
        if len(value) > 1:
            raise ArtifactError(f"{what}: {key} names several tokens; split it into one vector per token.")
        return {"pos": Token(value[0]), "phase": phase}
    return {"pos": value, "phase": phase}


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
        gguf.FORMAT.writes(direction, path.parent / name, model_hint=model_hint, layer_count=layer_count)  # pyrefly: ignore[not-callable]
        layers = [names.layer_of(site, "easysteer") for site in rows]
        vectors.append({
            "source": name, "algorithm": "direct", "scale": strength, "layers": layers,
            "normalize": False, "apply": clause,
        })  # fmt: skip
    files.write_json(path, {"vectors": vectors, "conflict": "sequential"})
    return path


def _clause(edit: Edit) -> dict[str, Any]:
    phases = {ours: list(theirs) for theirs, ours in _PHASES.items()}[edit.selection.phase]
    if set(edit.selection.axes) - {"pos"}:
        raise InputError(f"easysteer selects positions only, not {edit.selection.describe()}.")
    choice = edit.selection.get("pos")
    if choice is None:
        return {"phases": phases}
    side = {"prompt": "prompt", "generated": "generation"}.get(edit.selection.phase)
    if side is None:
        raise InputError(
            f"easysteer selects positions within a phase: add phase='prompt' or 'generated' to pos={choice!r}."
        )
    if isinstance(choice, slice) and choice.step in (None, 1):
        return {"phases": phases, f"{side}_window": [choice.start or 0, choice.stop]}
    if isinstance(choice, Token) and isinstance(choice.token, int):
        return {"phases": phases, f"{side}_tokens": [choice.token]}
    items = choice if isinstance(choice, list) else [choice]
    if not all(type(n) is int for n in items):
        raise InputError(f"easysteer has no form for pos={choice!r}. Give token numbers, a slice or inn.Token(id).")
    return {"phases": phases, f"{side}_positions": items}


FORMAT = Format(
    name="easysteer",
    title="EasySteer steering spec: JSON beside GGUF vectors",
    holds=("direction", "edits"),
    detect=_detect,
    reads=_read,
    writes=_write,
    extra="formats",
)

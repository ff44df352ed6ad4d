"""GGUF control vectors, as llama.cpp, repeng and EasySteer read and write them.

Architecture `controlvector`; `controlvector.model_hint` text, `controlvector.layer_count` u32; tensors `direction.N`,
one dimension, F32, all of one length, N >= 1: added to the output of block N at every position. llama.cpp rejects
`direction.0`, so a vector at `layers.0.resid_post` is not written unless `first=0` says that EasySteer will read it.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import torch

from interneuron.artifacts.direction import Direction
from interneuron.artifacts.formats import names
from interneuron.artifacts.formats.format import Format
from interneuron.core import files
from interneuron.core.errors import ArtifactError, InputError, UnsafeFile, need

ARCHITECTURE = "controlvector"
MAX_BYTES, MAX_TENSORS, MAX_KEYS = 1 << 30, 10_000, 1_000
_NAME = re.compile(r"direction\.(\d{1,4})")


def _detect(path: Path) -> bool:
    if not path.is_file():
        return False
    with files.open_plain(path) as (file, _):
        return file.read(4) == b"GGUF"


def _read(path: Path, notes: list[str], *, scale: float = 1.0, first: int = 1) -> Direction:
    """scale: what the file is to be multiplied by, as `--control-vector-scaled` does; first: the lowest N, 0 for
    EasySteer."""
    what = str(path)
    reader = _open(path)
    architecture = _text(reader, "general.architecture")
    if architecture != ARCHITECTURE:
        raise ArtifactError(
            f"{what}: a GGUF of architecture {str(architecture)[:40]!r}, expected {ARCHITECTURE!r}. It is no "
            "control vector."
        )
    rows: dict[int, torch.Tensor] = {}
    for tensor in reader.tensors:
        match = _NAME.fullmatch(tensor.name)
        if not match or int(match[1]) < first:
            raise ArtifactError(
                f"{what}: tensor {tensor.name[:60]!r}, expected direction.N with N >= {first}. llama.cpp refuses it "
                "too; first=0 reads the block 0 of an EasySteer file."
            )
        if tensor.tensor_type.name != "F32" or len(tensor.shape) != 1:
            raise ArtifactError(
                f"{what}: {tensor.name} is {tensor.tensor_type.name} {[int(n) for n in tensor.shape]}, expected a "
                "vector of F32."
            )
        rows[int(match[1])] = torch.from_numpy(tensor.data.copy())
    if not rows or len({len(row) for row in rows.values()}) != 1:
        raise ArtifactError(
            f"{what}: {len(rows)} vectors of lengths {sorted({len(r) for r in rows.values()})}, expected one length."
        )
    count = _number(reader, f"{ARCHITECTURE}.layer_count")
    if count is not None and count < len(rows):
        raise ArtifactError(f"{what}: layer_count is {count}, it holds {len(rows)} vectors. Write it again.")
    layers = sorted(rows)
    vectors = torch.stack([rows[layer] for layer in layers]) * scale
    if not bool(torch.isfinite(vectors).all()):
        raise ArtifactError(f"{what}: holds NaN or infinity. Write it again.")
    method = _text(reader, f"{ARCHITECTURE}.method")
    hint = _text(reader, f"{ARCHITECTURE}.model_hint")
    notes.append(
        f"direction.N is added to the output of block N: read as layers.N.resid_post for N = {layers[0]}..{layers[-1]}"
    )
    foreign = {"format": "gguf", "model_hint": hint or "", "layer_count": count, "method": method or ""}
    return Direction(
        vector=vectors if len(layers) > 1 else vectors[0],
        site=tuple(f"layers.{n}.resid_post" for n in layers) if len(layers) > 1 else f"layers.{layers[0]}.resid_post",
        fitted={"foreign": foreign},
    )


def _open(path: Path) -> Any:
    """A GGUFReader, once the file's own counts are within bounds."""
    with files.open_plain(path, MAX_BYTES) as (file, size):
        head = file.read(24)
    if len(head) < 24 or head[:4] != b"GGUF":
        raise ArtifactError(f"{path}: {size:,} bytes and no GGUF header. It is another kind of file, or cut short.")
    version, n_tensors, n_keys = struct.unpack("<IQQ", head[4:])
    if version not in (2, 3):
        raise ArtifactError(f"{path}: GGUF version {version}, expected 2 or 3. Write it again with a newer tool.")
    if n_tensors > MAX_TENSORS or n_keys > MAX_KEYS:
        raise UnsafeFile(
            f"{path}: claims {n_tensors:,} tensors and {n_keys:,} keys; a control vector has fewer. Not read."
        )
    package = need("gguf", "formats")
    try:
        return package.GGUFReader(str(path))
    except Exception as error:  # the package answers damage with whatever its parsing runs into
        text = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise ArtifactError(
            f"{path}: no readable GGUF ({text}). It is damaged or cut short; download it again."
        ) from None


def _text(reader: Any, key: str) -> str | None:
    field = reader.get_field(key)
    try:
        value = None if field is None else field.contents()
    except Exception:
        value = None
    return value[:200] if isinstance(value, str) else None


def _number(reader: Any, key: str) -> int | None:
    field = reader.get_field(key)
    try:
        return None if field is None else int(field.contents())
    except Exception:
        return None


def _write(
    value: Any, path: Path, *, model_hint: str = "", layer_count: int = 0, alpha: float = 1.0, first: int = 1
) -> Path:
    """model_hint: the model's architecture; layer_count: its number of blocks; alpha: multiplies every vector; first:
    the lowest block that has a place, 1 for llama.cpp, 0 for EasySteer."""
    direction = as_direction(value, "gguf")
    layers = [names.layer_of(site, "gguf") for site in direction.sites]
    if min(layers) < first:
        raise InputError(
            "gguf has no direction.0: llama.cpp adds nothing to the output of block 0. Leave layers.0.resid_post "
            "out, or export to a format that reaches it (easysteer, vllm_lens, lm_eval)."
        )
    foreign = direction.fitted.get("foreign", {})
    foreign = foreign if foreign.get("format") == "gguf" else {}
    package = need("gguf", "formats")
    files.make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.tmp")
    writer = package.GGUFWriter(str(temporary), ARCHITECTURE)
    try:
        writer.add_string(f"{ARCHITECTURE}.model_hint", model_hint or foreign.get("model_hint") or "unknown")
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", layer_count or foreign.get("layer_count") or max(layers) + 1)
        if foreign.get("method"):
            writer.add_string(f"{ARCHITECTURE}.method", foreign["method"])
        rows = direction.vector if direction.vector.ndim == 2 else direction.vector[None]
        for layer, row in sorted(zip(layers, rows, strict=True), key=lambda pair: pair[0]):
            writer.add_tensor(f"direction.{layer}", (row.detach().cpu().float() * alpha).numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
    data = temporary.read_bytes()
    temporary.unlink()
    files.atomic_write_bytes(path, data)
    return path


def as_direction(value: Any, format: str) -> Direction:
    """`value` as a Direction: itself, or the sum of Adds it is, when that is all it is. Raises InputError otherwise."""
    if isinstance(value, Direction):
        return value
    from interneuron.model.edits import Add, as_edits

    totals: dict[str, torch.Tensor] = {}
    for edit in as_edits(value):
        if type(edit) is not Add or edit.gate is not None or edit.selection or edit.vector.ndim != 1:
            raise InputError(
                f"{format} adds one vector per layer at every position: {edit.kind} at {edit.site!r}"
                f"{' with a gate' if edit.gate else ''}{' at some positions' if edit.selection else ''} has no "
                "form there."
            )
        totals[str(edit.site)] = totals.get(str(edit.site), torch.zeros(())) + edit.vector.detach().cpu() * (
            edit.alpha * edit.strength
        )
    if not totals:
        raise InputError(f"{format}: nothing to write, expected a direction or an Add.")
    rows = torch.stack(list(totals.values()))
    return Direction(rows if len(rows) > 1 else rows[0], site=tuple(totals) if len(rows) > 1 else next(iter(totals)))


FORMAT = Format(
    name="gguf",
    title="GGUF control vector: direction.N for llama.cpp, repeng and EasySteer",
    holds=("direction",),
    detect=_detect,
    reads=_read,
    writes=_write,
    extra="formats",
)

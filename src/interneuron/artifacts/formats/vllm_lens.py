"""vllm-lens: JSON of steering vectors, `extra_args = {"apply_steering_vectors": [{activations, layer_indices, ...}]}`.

`activations` are [layers D] (every position) or [layers positions D] (at `position_indices`, or 0, 1, 2, ...), added to
the output of the blocks `layer_indices`. In JSON a tensor is packed: {"data": base64 of its bytes, "dtype": of those
bytes, "original_dtype": of the tensor, "shape", "compression": "zstd" or absent}. Written without compression, which
the package reads too; over HTTP the list travels as a JSON string, `vllm_xargs={KEY: json.dumps(list)}`.
"""

from __future__ import annotations

import base64
import binascii
import importlib
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interneuron.artifacts.direction import Direction
from interneuron.artifacts.formats import names
from interneuron.artifacts.formats.format import Format
from interneuron.core import files
from interneuron.core.errors import ArtifactError, InputError, MissingExtra, UnsafeFile
from interneuron.model.edits import Add, Edit, Edits, as_edits

KEY = "apply_steering_vectors"
MAX_JSON = 64 << 20
MAX_BYTES = 1 << 30
# dtype of the bytes and of the tensor -> the same in torch; numpy has no bfloat16, its bits travel as int16
_PACKED: dict[tuple[Any, Any], torch.dtype] = {
    ("float32", "torch.float32"): torch.float32,
    ("float64", "torch.float64"): torch.float64,
    ("float16", "torch.float16"): torch.float16,
    ("int16", "torch.bfloat16"): torch.bfloat16,
    ("float32", None): torch.float32,
}
_KEYS = {"activations", "layer_indices", "scale", "norm_match", "position_indices", "mode"}


def _detect(path: Path) -> bool:
    if not (path.is_file() and path.suffix == ".json"):
        return False
    found = files.read_json(path, MAX_JSON)
    return isinstance(found, dict) and KEY in found


def _read(path: Path, notes: list[str]) -> Edits:
    return from_extra_args(files.read_json(path, MAX_JSON), notes, str(path))


def from_extra_args(extra_args: Any, notes: list[str] | None = None, what: str = "extra_args") -> Edits:
    """The edits of an `extra_args` mapping held in memory; tensors may be tensors, packed, or nested lists."""
    listed = extra_args.get(KEY) if isinstance(extra_args, dict) else None
    if isinstance(listed, str):  # as `vllm_xargs` carries it
        try:
            listed = json.loads(listed)
        except ValueError as error:
            raise ArtifactError(f"{what}: {KEY} is text but no JSON ({error}). Write it again.") from None
    if not isinstance(listed, list) or not listed:
        raise ArtifactError(f"{what}: expected {KEY!r} with a list of steering vectors. It steers nothing.")
    return Edits(edit for i, entry in enumerate(listed) for edit in _edits(entry, f"{what}, vector {i}"))


def _edits(entry: Any, what: str) -> list[Edit]:
    if not isinstance(entry, dict) or entry.keys() - _KEYS:
        odd = sorted(entry.keys() - _KEYS) if isinstance(entry, dict) else [type(entry).__name__]
        raise ArtifactError(f"{what}: {odd[:4]} not understood, expected an object of {sorted(_KEYS)}.")
    if entry.get("norm_match") or entry.get("mode", "add") != "add":
        raise ArtifactError(
            f"{what}: norm_match and mode 'replace' depend on the activations; no edit here says that. Not read."
        )
    vectors, layers, scale = (
        _tensor(entry.get("activations"), what),
        entry.get("layer_indices"),
        entry.get("scale", 1.0),
    )
    positions = entry.get("position_indices")
    if (
        not isinstance(layers, list)
        or not all(type(n) is int and n >= 0 for n in layers)
        or len(layers) != len(vectors)
    ):
        raise ArtifactError(
            f"{what}: layer_indices {str(layers)[:40]} must be {len(vectors)} layers >= 0, one per row of activations."
        )
    if type(scale) not in (int, float) or not math.isfinite(scale):
        raise ArtifactError(f"{what}: scale is {str(scale)[:30]!r}, expected a finite number.")
    if vectors.ndim == 2 and positions is not None:
        raise ArtifactError(
            f"{what}: position_indices need activations [layers positions D], these are {list(vectors.shape)}."
        )
    if vectors.ndim == 3:
        positions = list(range(vectors.shape[1])) if positions is None else positions
        if (
            not isinstance(positions, list)
            or len(positions) != vectors.shape[1]
            or not all(type(p) is int and p >= 0 for p in positions)
        ):
            raise ArtifactError(f"{what}: position_indices must be {vectors.shape[1]} positions >= 0.")
    out: list[Edit] = []
    for layer, row in zip(layers, vectors, strict=True):
        edit: Edit = Add(f"layers.{layer}.resid_post", row, alpha=float(scale))
        out.append(edit if vectors.ndim == 2 else edit.at(pos=positions))
    return out


def pack(tensor: Tensor) -> dict[str, Any]:
    """The packed form of a tensor, uncompressed."""
    whole = tensor.detach().cpu().contiguous()
    kind = str(whole.dtype)
    stored = next((ours[0] for ours, theirs in _PACKED.items() if theirs == whole.dtype), None)
    if stored is None:
        raise InputError(f"vllm-lens packs floating point, got {kind}. Convert the vector first.")
    data = base64.b64encode(whole.view(torch.uint8).numpy().tobytes()).decode("ascii")
    return {"data": data, "dtype": stored, "original_dtype": kind, "shape": list(whole.shape)}


def unpack(packed: dict[str, Any], what: str) -> Tensor:
    """The tensor of a packed form; its size is judged before anything is decompressed."""
    kind = _PACKED.get((packed.get("dtype"), packed.get("original_dtype")))
    shape, compression = packed.get("shape"), packed.get("compression")
    if kind is None or compression not in (None, "zstd") or not isinstance(packed["data"], str):
        raise ArtifactError(
            f"{what}: activations are packed as {str(packed.get('dtype'))[:20]} of "
            f"{str(packed.get('original_dtype'))[:20]}, compression {str(compression)[:20]}: unknown. "
            "Expected float32, float64, float16 or bfloat16, plain or zstd."
        )
    if not isinstance(shape, list) or not all(type(n) is int and 0 < n < 1 << 31 for n in shape):
        raise ArtifactError(f"{what}: the packed shape {str(shape)[:40]} is none. Write it again.")
    size = math.prod(shape) * kind.itemsize
    if size > MAX_BYTES:
        raise UnsafeFile(f"{what}: claims {size:,} bytes of activations, expected at most {MAX_BYTES:,}. Not read.")
    try:
        data = base64.b64decode(packed["data"], validate=True)
    except (binascii.Error, ValueError) as error:
        raise ArtifactError(f"{what}: activations are no base64 ({error}). Write it again.") from None
    data = _decompress(data, size, what) if compression else data
    if len(data) != size:
        raise ArtifactError(f"{what}: {len(data):,} bytes of activations, expected {size:,} for {shape}. It is cut.")
    return torch.frombuffer(bytearray(data), dtype=kind).reshape(shape)


def _decompress(data: bytes, size: int, what: str) -> bytes:
    try:
        zstandard = importlib.import_module("zstandard")
    except ImportError as error:
        raise MissingExtra(
            f"{what}: activations are compressed, which needs the package 'zstandard'. Run: pip install zstandard"
        ) from error
    try:
        # A frame may claim any size; no more than one byte beyond the shape's is ever made.
        with zstandard.ZstdDecompressor().stream_reader(data) as reader:
            return reader.read(size + 1)
    except zstandard.ZstdError as error:
        raise ArtifactError(f"{what}: activations do not decompress ({error}). Write it again.") from None


def _tensor(value: Any, what: str) -> Tensor:
    if isinstance(value, dict) and "data" in value:
        value = unpack(value, what)
    try:
        tensor = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError):
        raise ArtifactError(f"{what}: activations are no tensor and no even nested lists of numbers.") from None
    if (
        tensor.ndim not in (2, 3)
        or not tensor.numel()
        or not tensor.is_floating_point()
        or not bool(torch.isfinite(tensor).all())
    ):
        raise ArtifactError(
            f"{what}: activations are {tensor.dtype} {list(tensor.shape)}, expected finite floats [layers "
            "(positions) D]."
        )
    return tensor


def to_extra_args(value: Any) -> dict[str, Any]:
    """The `extra_args` of a direction or of Adds, with tensors; pass it to `SamplingParams(extra_args=...)`."""
    listed: list[dict[str, Any]] = []
    for edit in as_edits(value.edit() if isinstance(value, Direction) else value):
        layer = names.layer_of(str(edit.site), "vllm_lens")
        if (
            type(edit) is not Add
            or edit.gate is not None
            or edit.selection.phase != "all"
            or set(edit.selection.axes) - {"pos"}
        ):
            raise InputError(
                f"vllm-lens adds vectors at positions; {edit.kind} at {edit.site!r} with "
                f"{edit.selection.describe() or 'a gate'} has no form there."
            )
        positions = edit.selection.get("pos")
        vector = edit.vector.detach().cpu()
        entry: dict[str, Any] = {"layer_indices": [layer], "scale": edit.alpha * edit.strength, "norm_match": False}
        if positions is None:
            if vector.ndim != 1:
                raise InputError(
                    f"vllm-lens: the vector at {edit.site!r} is {list(vector.shape)}; give its positions with "
                    ".at(pos=[...])."
                )
            entry.update(activations=vector[None], position_indices=None)
        else:
            chosen = positions if isinstance(positions, list) else [positions]
            if not all(type(p) is int and p >= 0 for p in chosen):
                raise InputError(f"vllm-lens positions are ints >= 0 from the start, not pos={positions!r}.")
            rows = vector.expand(len(chosen), vector.shape[-1]) if vector.ndim == 1 else vector
            entry.update(activations=rows[None].contiguous(), position_indices=chosen)
        listed.append(entry)
    return {KEY: listed}


def _write(value: Any, path: Path) -> Path:
    listed = [{**entry, "activations": pack(entry["activations"])} for entry in to_extra_args(value)[KEY]]
    files.make_folder(path.parent)
    files.write_json(path, {KEY: listed}, MAX_JSON)
    return path


FORMAT = Format(
    name="vllm_lens",
    title="vllm-lens extra_args: JSON with apply_steering_vectors",
    holds=("direction", "edits"),
    detect=_detect,
    reads=_read,
    writes=_write,
)

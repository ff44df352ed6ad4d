"""The header of a safetensors file: written, read and judged before one byte of tensor memory is allocated.

Layout: 8 bytes little-endian header length n, n bytes of JSON `{name: {"dtype", "shape", "data_offsets"}}` (padded with
spaces), then the tensors back to back. Limits: header 1 MB, 10,000 tensors, rank 8, names `[A-Za-z0-9_.-]{1,200}`,
sizes below 2^63 by checked multiplication, tensors that fill the body exactly: no hole, no overlap, nothing behind.
"""

from __future__ import annotations

import json
import re
import struct
from dataclasses import dataclass
from typing import Any

from interneuron.core.errors import ArtifactError, UnsafeFile
from interneuron.core.strict_json import parse_json

MAX_HEADER = 1 << 20
MAX_TENSORS = 10_000
MAX_RANK = 8
NAME = re.compile(r"[A-Za-z0-9_.\-]{1,200}")

# safetensors dtype -> (attribute of torch, bytes per element)
DTYPES: dict[str, tuple[str, int]] = {
    "BOOL": ("bool", 1),
    "U8": ("uint8", 1),
    "I8": ("int8", 1),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "U16": ("uint16", 2),
    "I16": ("int16", 2),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "U32": ("uint32", 4),
    "I32": ("int32", 4),
    "F32": ("float32", 4),
    "U64": ("uint64", 8),
    "I64": ("int64", 8),
    "F64": ("float64", 8),
    "C64": ("complex64", 8),
}

# How other formats begin; as a header length each of these would be far above MAX_HEADER.
_MAGIC = {
    b"PK\x03\x04": "a zip archive (torch.save writes those)",
    b"\x1f\x8b\x08": "a gzip file",
    b"\x93NUMPY": "a NumPy file",
    b"\x89HDF": "an HDF5 file",
    b"GGUF": "a GGUF file",
}


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file: name, safetensors dtype, shape, and its bytes `start:end` inside the body."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class TensorHeader:
    """A judged header: entries in file order, the free `metadata`, where the body starts and how long it is."""

    entries: tuple[TensorEntry, ...]
    metadata: dict[str, str]
    body_start: int
    body_bytes: int


def check_name(name: object, what: str) -> str:
    """Return `name` if it may name a tensor, else raise `UnsafeFile`."""
    if not isinstance(name, str) or not NAME.fullmatch(name) or ".." in name:
        shown = name[:60] if isinstance(name, str) else name
        raise UnsafeFile(
            f"{what}: tensor name {shown!r} is not allowed. "
            "Expected 1 to 200 of A-Z a-z 0-9 _ . - without '..'; rename it."
        )
    return name


def header_length(first: bytes, file_bytes: int, what: str) -> int:
    """Judge the first 8 bytes of a file and return the length of its JSON header."""
    for magic, name in _MAGIC.items():
        if first.startswith(magic):
            raise UnsafeFile(f"{what}: {name}, expected safetensors. Have it converted at its source.")
    # A header of 128 bytes also starts with 0x80 0x00; a pickle has an opcode where a short length has zeros.
    if first[:1] == b"\x80" and first[1:2] <= b"\x05" and any(first[2:8]):
        raise UnsafeFile(
            f"{what}: a pickle, which runs code when read, expected safetensors. Have it converted at its source."
        )
    if len(first) < 8:
        raise ArtifactError(f"{what}: {file_bytes} bytes, safetensors has at least 8. Write or download it again.")
    (length,) = struct.unpack("<Q", first[:8])
    if length > MAX_HEADER:
        raise UnsafeFile(
            f"{what}: header of {length:,} bytes declared, the limit is {MAX_HEADER:,}. "
            "Not a safetensors file of ours; do not use it."
        )
    if 8 + length > file_bytes:
        raise ArtifactError(
            f"{what}: the header needs {8 + length:,} bytes, the file has {file_bytes:,}. "
            "It was cut short; write or download it again."
        )
    return length


def parse_header(data: bytes, file_bytes: int, what: str) -> TensorHeader:
    """Judge the JSON header `data` of a file of `file_bytes` bytes and return its entries.

    Raises:
        UnsafeFile: a limit is exceeded, two tensors overlap, or the sizes overflow.
        ArtifactError: the header does not describe exactly the bytes that are there.
    """
    raw = parse_json(data, f"{what} header", MAX_HEADER)
    if not isinstance(raw, dict):
        raise ArtifactError(f"{what}: the header is a {type(raw).__name__}, expected an object. Write the file again.")
    metadata = raw.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ArtifactError(f"{what}: __metadata__ must map text to text. Write the file again.")
    if len(raw) > MAX_TENSORS:
        raise UnsafeFile(f"{what}: {len(raw):,} tensors, the limit is {MAX_TENSORS:,}. Split the file or stack them.")
    entries = sorted((_entry(name, spec, what) for name, spec in raw.items()), key=lambda e: (e.start, e.end))
    body = file_bytes - 8 - len(data)
    position = 0
    for entry in entries:
        if entry.start < position:
            raise UnsafeFile(
                f"{what}: tensor {entry.name!r} starts at byte {entry.start}, inside the one before it, expected "
                f"{position}. Two tensors in one place; do not use the file."
            )
        if entry.start > position:
            raise ArtifactError(
                f"{what}: tensor {entry.name!r} starts at byte {entry.start}, expected {position}. "
                "The bytes between belong to no tensor; write the file again."
            )
        position = entry.end
    if position != body:
        raise ArtifactError(
            f"{what}: the tensors declare {position:,} bytes, the file holds {body:,}. "
            "It is cut short or padded; write or download it again."
        )
    return TensorHeader(tuple(entries), metadata, 8 + len(data), body)


def _entry(name: str, spec: Any, what: str) -> TensorEntry:
    check_name(name, what)
    if not isinstance(spec, dict) or set(spec) != {"dtype", "shape", "data_offsets"}:
        raise ArtifactError(f"{what}: tensor {name!r} needs exactly dtype, shape and data_offsets. Write it again.")
    dtype, shape, offsets = spec["dtype"], spec["shape"], spec["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ArtifactError(
            f"{what}: tensor {name!r} has dtype {str(dtype)[:20]!r}, expected one of {', '.join(DTYPES)}. Convert it."
        )
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise ArtifactError(
            f"{what}: tensor {name!r} has shape {str(shape)[:60]}, expected a list of sizes >= 0. Write it again."
        )
    if len(shape) > MAX_RANK:
        raise UnsafeFile(f"{what}: tensor {name!r} has rank {len(shape)}, the limit is {MAX_RANK}. Reshape it.")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(n) is int and n >= 0 for n in offsets):
        raise ArtifactError(
            f"{what}: tensor {name!r} has data_offsets {str(offsets)[:60]}, expected [start, end]. Write it again."
        )
    width = DTYPES[dtype][1]
    size, bound = width, width
    for n in shape:
        size *= n
        bound *= max(n, 1)  # [0, 2^62, 2^62] holds nothing, yet its strides overflow
        if bound >= 2**63:
            raise UnsafeFile(
                f"{what}: tensor {name!r} of shape {str(shape)[:60]} needs 2^63 bytes or more, expected less. "
                "The sizes are made up; do not use the file."
            )
    start, end = offsets
    if end - start != size:
        raise ArtifactError(
            f"{what}: tensor {name!r} of shape {shape} and dtype {dtype} needs {size:,} bytes, its offsets give "
            f"{end - start:,}. The header is damaged; write or download the file again."
        )
    return TensorEntry(name, dtype, tuple(shape), start, end)


def build_header(tensors: dict[str, tuple[str, tuple[int, ...]]], metadata: dict[str, str] | None, what: str) -> bytes:
    """Return length + JSON for tensors `{name: (dtype, shape)}`, bytes laid out in the given order, body 8-aligned."""
    header: dict[str, Any] = {}
    if metadata:
        header["__metadata__"] = dict(metadata)
    position = 0
    for name, (dtype, shape) in tensors.items():
        size = DTYPES[dtype][1]
        for n in shape:
            size *= n
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    parse_header(text, 8 + len(text) + position, what)  # what we write, we must be willing to read
    return struct.pack("<Q", len(text)) + text

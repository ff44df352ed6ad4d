"""The one place that opens a PyTorch pickle (`.pt`): only its tensors and plain values come through, or nothing does.

A pickle is a program. `torch.load(weights_only=True)` runs it in an interpreter that knows tensors, containers, numbers
and text and no functions; before that the file must be a plain uncompressed zip of bounded size, so that it cannot
unpack into more than it is, and torch must be a release without a known way around (2.10.0 or later).
"""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path
from typing import Any

from torch import Tensor

from interneuron.core import files
from interneuron.core.errors import ArtifactError, UnsafeFile, UnsupportedModel

MAX_BYTES = 8 << 30
MAX_ENTRIES = 20_000
MAX_DEPTH = 4


def load_pickled_tensors(path: str | Path, max_bytes: int = MAX_BYTES, plain: bool = False) -> dict[str, Any]:
    """The mapping a `.pt` file holds: name -> tensor; with `plain`, also nested mappings, numbers, text and None.

    Raises:
        UnsafeFile: no plain zip, compressed, too large, or it asks for anything but tensors and plain values.
        ArtifactError: damaged, or no mapping.
    """
    import torch

    release = tuple(int(n) for n in re.findall(r"\d+", torch.__version__)[:2])
    if release < (2, 10):
        raise UnsupportedModel(
            f"{path}: torch {torch.__version__} can be made to run code by such a file, expected 2.10 or later. "
            "Upgrade torch, or convert the file to safetensors elsewhere."
        )
    data = files.read_bytes(path, max_bytes)
    _check_zip(data, str(path))
    try:
        found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)  # noqa: TID251 - the converter itself
    except Exception as error:
        text = str(error)
        if "Unsupported" in text or "GLOBAL" in text or "WeightsUnpickler" in text or "weights_only" in text:
            name = re.search(r"GLOBAL ([\w.]{1,80})", text)
            raise UnsafeFile(
                f"{path}: asks for {name[1] if name else 'something that is no tensor'}, expected tensors only. "
                "It could run code; do not load it, and convert it to safetensors where you trust it."
            ) from None
        raise ArtifactError(
            f"{path}: no readable PyTorch file ({text.splitlines()[0][:80] if text else type(error).__name__}). "
            "Download it again."
        ) from None
    if not isinstance(found, dict):
        raise ArtifactError(f"{path}: holds a {type(found).__name__}, expected a mapping from names to tensors.")
    return {str(name): _plain(value, str(path), str(name), plain, 1) for name, value in found.items()}


def _check_zip(data: bytes, what: str) -> None:
    if data[:4] != b"PK\x03\x04":
        raise UnsafeFile(
            f"{what}: no zip file, expected what torch.save writes since 2020. Save it again, or convert it."
        )
    try:
        entries = zipfile.ZipFile(io.BytesIO(data)).infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise ArtifactError(f"{what}: a damaged zip file ({error}). Download it again.") from None
    if len(entries) > MAX_ENTRIES or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise UnsafeFile(
            f"{what}: compressed, or of more than {MAX_ENTRIES:,} parts; torch.save writes neither. Not read."
        )
    if sum(entry.file_size for entry in entries) > len(data):
        raise UnsafeFile(
            f"{what}: its parts claim more bytes than the file has. It is damaged or hostile; do not load it."
        )


def _plain(value: Any, what: str, name: str, plain: bool, depth: int) -> Any:
    if isinstance(value, Tensor):
        if value.layout is not _strided() or value.is_meta:
            raise ArtifactError(f"{what}: {name[:80]} is no dense tensor. Convert it where it was made.")
        # A view may share a large hidden storage and carry attributes; a fresh copy has neither.
        return value.detach().clone().contiguous()
    if plain and (value is None or type(value) in (bool, int, float, str)):
        return value
    if plain and isinstance(value, dict) and depth < MAX_DEPTH:
        return {str(key): _plain(item, what, f"{name}.{key}", plain, depth + 1) for key, item in value.items()}
    raise UnsafeFile(f"{what}: {name[:80]} is a {type(value).__name__}, expected a tensor. Not read.")


def _strided() -> Any:
    import torch

    return torch.strided


def save_pickled_tensors(path: str | Path, value: dict[str, Any]) -> None:
    """Write `value` as `torch.save` does, durably: some tools read nothing else."""
    import torch

    memory = io.BytesIO()
    torch.save(value, memory)
    files.atomic_write_bytes(path, memory.getvalue())

"""The folder an artifact lives in: `artifact.json` and, beside it, `tensors-<SHA-256>.safetensors`.

Saving writes the tensor file first, under a name made of its own hash, then replaces `artifact.json`, which names it,
then removes tensor files nothing points at. Each step is durable before the next begins, so an interruption at any
point leaves the whole old artifact or the whole new one. Loading trusts nothing: see `parse_document` and `core.files`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from interneuron.core import files, strict_json, tensor_header
from interneuron.core.errors import ArtifactError, UnsafeFile

DOCUMENT = "artifact.json"
FORMAT = "interneuron.artifact"
VERSION = 1
MAX_BYTES = 8 << 30

_TENSOR_FILE = re.compile(r"tensors-([0-9a-f]{64})\.safetensors")
_KEYS = {"format", "version", "kind", "fields", "tensors", "sha256"}
_TENSOR_KEYS = {"file", "bytes", "entries"}


def write_folder(folder: str | Path, kind: str, fields: dict[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    """Save an artifact in `folder` (created if need be) so that a crash at any moment leaves the old or the new one.

    Raises:
        ArtifactError: the folder cannot be written, or another process is saving into it; the old artifact is intact.
    """
    folder = Path(folder)
    try:
        files.make_folder(folder)
        with _only_writer(folder):
            table = _write_tensors(folder, tensors) if tensors else None
            document = {"format": FORMAT, "version": VERSION, "kind": kind, "fields": fields, "tensors": table}
            files.write_json(folder / DOCUMENT, {**document, "sha256": _seal(document)})
            _sweep(folder, keep=table["file"] if table else "")
    except OSError as error:
        raise ArtifactError(
            f"{folder}: the artifact cannot be written ({error.strerror or error}). "
            "What was saved there before is intact; free space or choose another folder."
        ) from error
    return folder


def _write_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    sha = files.sha256_tensors(tensors)
    name = f"tensors-{sha}.safetensors"
    path = folder / name
    # A sound file of that name may be what the present artifact points at: it is left alone.
    if not (path.is_file() and files.sha256_file(path) == sha) and files.save_tensors(path, tensors) != sha:
        path.unlink()
        raise ArtifactError(f"{folder}: a tensor changed while it was saved. Stop writing to it and save again.")
    header = files.read_tensor_header(path)
    entries = {entry.name: {"dtype": entry.dtype, "shape": list(entry.shape)} for entry in header.entries}
    return {"file": name, "bytes": header.body_start + header.body_bytes, "entries": entries}


def _sweep(folder: Path, keep: str) -> None:
    for path in folder.iterdir():
        if _TENSOR_FILE.fullmatch(path.name) and path.name != keep:
            path.unlink()
    files.sweep_temporary(folder, "tensors-")
    files.sweep_temporary(folder, DOCUMENT)


@contextmanager
def _only_writer(folder: Path) -> Iterator[None]:
    """Hold the folder against other savers; the lock dies with the process, so none is ever left behind."""
    try:
        import fcntl
    except ImportError:  # not on Windows, where the rename itself fails if somebody else is writing
        yield
        return
    import os

    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ArtifactError(
                f"{folder}: another process is saving here. Wait for it or choose another folder."
            ) from None
        yield
    finally:
        os.close(handle)


def _seal(document: dict[str, Any]) -> str:
    """SHA-256 over everything the document says, independent of spacing and key order."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return files.sha256_bytes(text.encode("ascii"))


def parse_document(data: bytes, what: str) -> dict[str, Any]:
    """Judge the bytes of an `artifact.json` and return it.

    Raises:
        UnsafeFile: outside the limits, or the tensor file is named so that it could lie elsewhere.
        ArtifactError: not an artifact, of another version, or changed after it was written.
    """
    document = strict_json.parse_json(data, what)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ArtifactError(f"{what}: not an artifact, expected an object with format {FORMAT!r}. Check the path.")
    version = document.get("version")
    if type(version) is not int or version != VERSION:
        newer = type(version) is int and version > VERSION
        advice = "Upgrade interneuron." if newer else "Write the artifact again."
        raise ArtifactError(f"{what}: schema version {str(version)[:20]}, this release reads {VERSION}. {advice}")
    if document.keys() != _KEYS:
        odd = sorted(document.keys() ^ _KEYS)
        raise ArtifactError(f"{what}: the keys {str(odd)[:80]} are missing or unknown. Write the artifact again.")
    sealed = {key: value for key, value in document.items() if key != "sha256"}
    if document["sha256"] != _seal(sealed):
        raise ArtifactError(
            f"{what}: its contents do not match the hash recorded in it; it was edited or damaged. "
            "Write or download it again; to change a field, load, replace and save."
        )
    if not isinstance(document["kind"], str) or not isinstance(document["fields"], dict):
        raise ArtifactError(f"{what}: kind must be text and fields an object. Write the artifact again.")
    if document["tensors"] is not None:
        _check_table(document["tensors"], what)
    return document


def _check_table(table: Any, what: str) -> None:
    if not isinstance(table, dict) or table.keys() != _TENSOR_KEYS:
        raise ArtifactError(f"{what}: tensors must hold exactly {sorted(_TENSOR_KEYS)}. Write the artifact again.")
    if not isinstance(table["file"], str) or not _TENSOR_FILE.fullmatch(table["file"]):
        raise UnsafeFile(
            f"{what}: the tensor file is called {str(table['file'])[:100]!r}, expected 'tensors-<SHA-256>.safetensors' "
            "in the same folder. Do not use this artifact."
        )
    if type(table["bytes"]) is not int or not isinstance(table["entries"], dict):
        raise ArtifactError(
            f"{what}: tensors.bytes must be a whole number, entries an object. Write the artifact again."
        )
    for name in table["entries"]:
        tensor_header.check_name(name, what)


def read_tensors(path: Path, table: dict[str, Any], max_bytes: int) -> dict[str, Tensor]:
    """Read the tensor file `path` that `table` describes; size, header, hash, shapes and dtypes must all agree."""
    with files.open_plain(path, max_bytes) as (file, size):
        if size != table["bytes"]:
            raise ArtifactError(
                f"{path}: {size:,} bytes, {DOCUMENT} records {table['bytes']:,}. "
                "It was cut short or replaced; write or download the artifact again."
            )
        tensors = files.read_tensors(file, size, str(path), sha256=table["file"][8:72])
    found = {
        name: {"dtype": code, "shape": list(tensor.shape)}
        for name, tensor in tensors.items()
        for code, (torch_name, _) in tensor_header.DTYPES.items()
        if str(tensor.dtype) == f"torch.{torch_name}"
    }
    if found != table["entries"]:
        raise ArtifactError(
            f"{path}: holds {str(found)[:80]}, {DOCUMENT} records {str(table['entries'])[:80]}. "
            "Write the artifact again."
        )
    return tensors


def read_folder(
    locate: Callable[[str], Path], what: str, max_bytes: int = MAX_BYTES
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read an artifact whose files `locate(name)` finds; return its document and tensors.

    A saver may replace the artifact between our two reads and remove the old tensor file: then the document is read
    once more, and only a tensor file that is missing both times is an error.
    """
    for attempt in (1, 2):
        try:
            data = files.read_bytes(locate(DOCUMENT), strict_json.MAX_BYTES)
        except (FileNotFoundError, NotADirectoryError):
            raise ArtifactError(f"{what}: no artifact here ({DOCUMENT} not found). Check the path.") from None
        document = parse_document(data, f"{what}/{DOCUMENT}")
        table = document["tensors"]
        try:
            return document, read_tensors(locate(table["file"]), table, max_bytes) if table else {}
        except FileNotFoundError:
            if attempt == 2:
                raise ArtifactError(
                    f"{what}: {table['file']} is missing beside {DOCUMENT}. Copy the whole folder, or save again."
                ) from None
    raise AssertionError("unreachable")

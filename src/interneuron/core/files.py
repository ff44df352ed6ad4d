"""Files that survive crashes when written and cannot hurt when read.

Writing: a temporary file in the same folder, fsync, rename over the target, fsync of the folder. At every moment the
target is the whole old file or the whole new one. Reading: plain files only (no link, no pipe, no device), sizes judged
before memory is allocated, and only JSON and safetensors, never a format that can run code.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, runtime_checkable

from interneuron.core import strict_json, tensor_header
from interneuron.core.errors import ArtifactError, ShapeError, UnsafeFile

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 1 << 22


@runtime_checkable
class Readable(Protocol):
    """What reading tensors asks of a binary file: an opened one, or `io.BytesIO`."""

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes."""
        ...

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Fill `buffer` as far as there are bytes and return how many there were."""
        ...


# --- writing ---


def fsync_dir(path: str | Path) -> None:
    """Make the names inside folder `path` durable; without this a rename can vanish with the power."""
    if os.name == "nt":  # Windows cannot open a folder; its renames are journalled
        return
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems do not offer it
            raise
    finally:
        os.close(handle)


@contextmanager
def atomic_writer(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a binary file that becomes `path` when the block ends well and leaves no trace when it does not.

    The folder must exist. After the block the new bytes and the new name are durable. A process killed inside the block
    leaves a file `.NAME.*.tmp`, which `sweep_temporary` removes.

    Raises:
        OSError: as the system reports it (disk full, read-only, no such folder); the old file is untouched.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name[:200]}.{secrets.token_hex(6)}.tmp")
    handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    fsync_dir(target.parent)


def atomic_write_bytes(path: str | Path, data: bytes) -> None:
    """Write `data` to `path` durably and all at once (see `atomic_writer`)."""
    with atomic_writer(path) as file:
        file.write(data)


def sweep_temporary(folder: str | Path, name: str = "") -> int:
    """Delete temporary files that killed writers left in `folder` (of file `name` only, if given); return how many.

    Call it only where no other process can be writing.
    """
    found = [p for p in Path(folder).iterdir() if p.name.startswith(f".{name}") and p.name.endswith(".tmp")]
    for path in found:
        path.unlink()
    return len(found)


def make_folder(path: str | Path) -> Path:
    """Create folder `path` and any missing parents, each name durable, and return it; an existing folder is fine."""
    folder = Path(path)
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    for new in reversed(missing):
        new.mkdir(exist_ok=True)
        fsync_dir(new.parent)
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "exists and is not a folder", str(folder))
    return folder


def write_json(path: str | Path, value: Any, max_bytes: int = strict_json.MAX_BYTES) -> None:
    """Write `value` as JSON, durably; whatever `read_json` would refuse is refused here already."""
    atomic_write_bytes(path, strict_json.dump_json(value, str(path), max_bytes))


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """Write named tensors as one safetensors file, durably, and return the SHA-256 of the file.

    Tensors are streamed one after another (no second copy of the whole), sorted by name, so the same tensors give the
    same bytes. Tensors that share memory are written once each.

    Raises:
        UnsafeFile: a name, rank or count outside the limits of `tensor_header`.
        ShapeError: a value that is not a dense tensor of a known dtype.
    """
    digest = hashlib.sha256()
    layout = _layout(tensors, str(path))
    with atomic_writer(path) as file:
        for block in _blocks(layout, tensors, metadata, str(path)):
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def sha256_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """The SHA-256 of the file that `save_tensors` would write; equal tensors and names give equal hashes."""
    digest = hashlib.sha256()
    for block in _blocks(_layout(tensors, "tensors"), tensors, metadata, "tensors"):
        digest.update(block)
    return digest.hexdigest()


def _layout(tensors: Mapping[str, Tensor], what: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    codes = {torch_name: code for code, (torch_name, _) in tensor_header.DTYPES.items()}
    layout: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name in sorted(tensors, key=str):
        tensor_header.check_name(name, what)
        tensor = tensors[name]
        kind = str(getattr(tensor, "dtype", "")).removeprefix("torch.")
        if not _is_dense(tensor) or kind not in codes:
            raise ShapeError(
                f"{what}: {name!r} is a {kind} {type(tensor).__name__}, expected a dense tensor of "
                f"{', '.join(codes)}. Convert it before saving."
            )
        layout[name] = (codes[kind], tuple(tensor.shape))
    # Wide types first keeps every start aligned.
    return dict(sorted(layout.items(), key=lambda item: -tensor_header.DTYPES[item[1][0]][1]))


def _blocks(
    layout: dict[str, tuple[str, tuple[int, ...]]],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None,
    what: str,
) -> Iterator[bytes | memoryview]:
    yield tensor_header.build_header(layout, dict(metadata or {}), what)
    for name in layout:
        yield _as_bytes(tensors[name].detach().resolve_conj().resolve_neg().cpu().contiguous())


def _is_dense(value: object) -> bool:
    import torch

    return isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_meta


def _as_bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor, writable, with no copy."""
    import torch

    return tensor.reshape(-1).view(torch.uint8).numpy().data


# --- reading ---


@contextmanager
def open_plain(path: str | Path, max_bytes: int | None = None) -> Iterator[tuple[BufferedReader, int]]:
    """Open `path` for reading and yield it with its size, if it is an ordinary file of at most `max_bytes`.

    Raises:
        FileNotFoundError, PermissionError: as usual.
        UnsafeFile: a link, folder, pipe or device, or larger than `max_bytes`.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        if os.path.islink(path):  # O_NOFOLLOW closes the gap between this look and the opening
            raise OSError(errno.ELOOP, "link")
        handle = os.open(path, flags)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise UnsafeFile(
            f"{path}: a link, expected a plain file. Copy the file it points to here if you trust it."
        ) from None
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        raise UnsafeFile(f"{path}: a folder, pipe or device, expected a plain file. Point at the file itself.")
    with os.fdopen(handle, "rb") as file:
        if max_bytes is not None and status.st_size > max_bytes:
            raise UnsafeFile(
                f"{path}: {status.st_size:,} bytes, the limit is {max_bytes:,}. "
                "Pass a larger max_bytes if you trust the file."
            )
        yield file, status.st_size


def read_bytes(path: str | Path, max_bytes: int) -> bytes:
    """Return the bytes of the plain file `path`, which may have at most `max_bytes`."""
    with open_plain(path, max_bytes) as (file, size):
        data = file.read(size + 1)
    if len(data) != size:
        raise ArtifactError(f"{path}: changed while it was read ({size:,} bytes, then {len(data):,}). Read it again.")
    return data


def read_json(path: str | Path, max_bytes: int = strict_json.MAX_BYTES) -> Any:
    """Read JSON under the rules of `strict_json.parse_json` from a plain file."""
    return strict_json.parse_json(read_bytes(path, max_bytes), str(path), max_bytes)


def sha256_bytes(data: bytes) -> str:
    """SHA-256 of `data` as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: str | Path) -> str:
    """SHA-256 of the file `path`, read in pieces of 4 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


def read_tensor_header(path: str | Path, max_bytes: int | None = None) -> tensor_header.TensorHeader:
    """Return names, shapes, dtypes and metadata of a safetensors file without reading its tensors."""
    with open_plain(path, max_bytes) as (file, size):
        return _header(file, size, str(path))[0]


def _header(file: Readable, size: int, what: str) -> tuple[tensor_header.TensorHeader, bytes]:
    first = file.read(8)
    text = file.read(tensor_header.header_length(first, size, what))
    return tensor_header.parse_header(text, size, what), first + text


def load_tensors(path: str | Path, max_bytes: int | None = None, sha256: str | None = None) -> dict[str, Tensor]:
    """Read a safetensors file into CPU tensors, after its header has been judged; `max_bytes` bounds the whole file.

    Each tensor owns its memory (nothing is mapped, so nothing breaks when the file is later overwritten). With `sha256`
    the bytes that were read, not the file of a moment ago, must have that hash.

    Raises:
        UnsafeFile: not a plain safetensors file within the limits.
        ArtifactError: damaged, cut short, or with another hash.
    """
    with open_plain(path, max_bytes) as (file, size):
        return read_tensors(file, size, str(path), sha256)


def read_tensors(file: Readable, size: int, what: str, sha256: str | None = None) -> dict[str, Tensor]:
    """`load_tensors` from an open binary file of `size` bytes, called `what` in errors."""
    import torch

    header, head = _header(file, size, what)
    digest = hashlib.sha256(head) if sha256 is not None else None
    tensors: dict[str, Tensor] = {}
    for entry in header.entries:
        torch_name, width = tensor_header.DTYPES[entry.dtype]
        tensor = torch.empty((entry.end - entry.start) // width, dtype=getattr(torch, torch_name))
        memory = _as_bytes(tensor)
        if _read_into(file, memory) != len(memory):
            raise ArtifactError(f"{what}: ended inside tensor {entry.name!r}; it changed while being read. Try again.")
        if digest is not None:
            digest.update(memory)
        if entry.dtype == "BOOL" and bool((tensor.view(torch.uint8) > 1).any()):
            raise ArtifactError(f"{what}: tensor {entry.name!r} is BOOL, its bytes are not all 0 or 1. Write it again.")
        tensors[entry.name] = tensor.reshape(entry.shape)
    if digest is not None and digest.hexdigest() != sha256:
        raise ArtifactError(
            f"{what}: SHA-256 is {digest.hexdigest()[:16]}..., recorded is {str(sha256)[:16]}.... "
            "The bytes changed after they were saved; write or download the file again."
        )
    return tensors


def _read_into(file: Readable, memory: memoryview) -> int:
    done = 0
    while done < len(memory) and (n := file.readinto(memory[done : done + CHUNK])):
        done += n
    return done

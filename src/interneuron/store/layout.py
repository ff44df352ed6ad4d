"""What a shard looks like on disk: fixed-width rows between a header page and a table of checksums.

A store is a folder::

    manifest.log             append-only log of hashed records (manifest.py)
    data/WRITER-PART.cNN.act rows of column NN that one writer made durable in one part
    lock, commit.lock        held by writers (locks.py); empty when nobody writes

A shard, every region padded with zeros to a page of 4096 bytes::

    page 0      8 bytes magic, 4 bytes length, JSON header
    page 1..    rows, `row_bytes` each, no gaps
    last pages  CRC-32 of every 64 KiB of the row region (padding included), little-endian

The manifest holds, for every shard, its length and `root` = SHA-256 of header page and table. So each byte of the file
is covered: header and table by the root, rows and padding by the CRCs. A CRC-32 finds every flip of up to 32
neighbouring bits for certain; a shard put in place of another one, or an older one, fails at the root. The checksums
guard against decay and mistakes, not against a forger who can rewrite the manifest too.

Column dtypes: float32, float16, bfloat16, int8 (a float32 scale, then the row as int8), int32, int64, and `key`, the
row table: token id (int32, -1 where there is none), position (int32), document (int64).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from interneuron.core.errors import CorruptStore, StoreError
from interneuron.store.checksums import CRC_BLOCK

FORMAT = 1
PAGE = 4096
MAGIC = b"INNSHRD1"
KEYS = "keys"  # name of the row table; never a site
SCALARS = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2", "int32": "<i4", "int64": "<i8"}
KEY_DTYPE = np.dtype([("token", "<i4"), ("pos", "<i4"), ("doc", "<i8")])
_DTYPES = (*SCALARS, "int8", "key")
_WRITER = re.compile(r"[A-Za-z0-9_]{1,40}")
_SHARD = re.compile(r"[A-Za-z0-9_]{1,40}-\d{6}\.c\d{2,4}\.act")


def padded(n: int) -> int:
    """`n` rounded up to a whole page."""
    return -(-n // PAGE) * PAGE


@dataclass(frozen=True)
class Column:
    """One site's place in a store: its name, the dtype on disk and the shape of one row."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise StoreError(
                f"column {self.name!r}: dtype {self.dtype!r} is not one of {', '.join(_DTYPES[:6])}. Choose one."
            )
        if not self.name or len(self.name) > 300 or not self.name.isprintable():
            raise StoreError(f"column name {self.name[:40]!r} must be 1 to 300 printable characters. Rename the site.")
        if any(n < 1 for n in self.shape) or len(self.shape) > 7 or self.row_bytes > 1 << 31:
            raise StoreError(
                f"column {self.name!r}: a row of shape {self.shape} cannot be stored; expected up to 7 sizes of 1 or "
                f"more and under 2 GiB in all. Record fewer positions or a narrower site."
            )

    @property
    def width(self) -> int:
        """Numbers in one row."""
        return math.prod(self.shape)

    @property
    def numpy(self) -> np.dtype[Any]:
        """The NumPy dtype of one whole row as it lies on disk."""
        if self.dtype == "key":
            return KEY_DTYPE
        if self.dtype == "int8":
            return np.dtype([("scale", "<f4"), ("q", "i1", (self.width,))])
        return np.dtype((SCALARS[self.dtype], (self.width,)))

    @property
    def row_bytes(self) -> int:
        """Bytes of one row on disk."""
        return self.numpy.itemsize

    def rows_of(self, raw: np.ndarray) -> np.ndarray:
        """Bytes [N, row_bytes] seen as rows: [N, width] of the scalar dtype, or [N] records for int8 and keys."""
        if self.dtype in SCALARS:
            return raw.view(SCALARS[self.dtype])
        return raw.view(self.numpy)[:, 0]

    def as_json(self) -> dict[str, Any]:
        """The column as it stands in the manifest."""
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Column:
        """Rebuild a column from a manifest record."""
        return cls(str(value["name"]), str(value["dtype"]), tuple(int(n) for n in value["shape"]))


KEY_COLUMN = Column(KEYS, "key", (3,))


def shard_name(writer: str, part: int, column: int) -> str:
    """File name of one shard; `shard_name('w', 3, 0)` is `'w-000003.c00.act'`."""
    return f"{writer}-{part:06d}.c{column:02d}.act"


def check_writer(name: str) -> str:
    """Return `name` if it can stand in a file name, else raise `StoreError`."""
    if not _WRITER.fullmatch(name):
        raise StoreError(f"writer name {name!r} must be 1 to 40 letters, digits or underscores. Choose another name.")
    return name


def check_shard_name(name: str) -> str:
    """Return `name` if it is the plain name of a shard, else raise `CorruptStore` (a path could escape the folder)."""
    if not _SHARD.fullmatch(name):
        raise CorruptStore(
            f"manifest names the shard {name[:80]!r}, which is no shard name. Restore the manifest from a copy."
        )
    return name


@dataclass(frozen=True)
class Header:
    """The first page of a shard. Offsets are bytes from the start of the file."""

    store: str
    column: Column
    writer: str
    part: int
    rows: int

    @property
    def data_bytes(self) -> int:
        """Bytes of the row region with its padding."""
        return padded(self.rows * self.column.row_bytes)

    @property
    def n_blocks(self) -> int:
        """Checksummed blocks in the row region."""
        return -(-self.data_bytes // CRC_BLOCK)

    @property
    def table_offset(self) -> int:
        """Where the table of checksums starts."""
        return PAGE + self.data_bytes

    @property
    def file_bytes(self) -> int:
        """Length of the whole file."""
        return self.table_offset + padded(4 * self.n_blocks)

    def pack(self) -> bytes:
        """The header page."""
        body = json.dumps(
            {
                "format": FORMAT,
                "store": self.store,
                "column": self.column.as_json(),
                "writer": self.writer,
                "part": self.part,
                "rows": self.rows,
                "crc_block": CRC_BLOCK,
            },
            separators=(",", ":"),
        ).encode()
        return (MAGIC + struct.pack("<I", len(body)) + body).ljust(PAGE, b"\0")

    @classmethod
    def unpack(cls, page: bytes, name: str) -> Header:
        """Read a header page; call it after the root was checked, or expect `CorruptStore` on any oddity."""
        try:
            if page[:8] != MAGIC:
                raise ValueError(f"magic {page[:8]!r}")
            (length,) = struct.unpack_from("<I", page, 8)
            value = json.loads(page[12 : 12 + length])
            if value["format"] != FORMAT or value["crc_block"] != CRC_BLOCK:
                raise ValueError(f"format {value['format']!r}")
            return cls(
                str(value["store"]),
                Column.from_json(value["column"]),
                str(value["writer"]),
                int(value["part"]),
                int(value["rows"]),
            )
        except (ValueError, KeyError, TypeError, StoreError) as error:
            raise CorruptStore(
                f"{name}: the first page is no shard header ({error}). Restore the file from a copy or record it again."
            ) from error


def root_hash(header_page: bytes, table: bytes) -> str:
    """SHA-256 over header page and padded table of checksums: what the manifest keeps of a shard."""
    digest = hashlib.sha256(header_page)
    digest.update(table.ljust(padded(len(table)), b"\0"))
    return digest.hexdigest()

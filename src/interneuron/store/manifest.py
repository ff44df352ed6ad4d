"""The manifest: an append-only log of hashed records that says which rows a store holds.

One line a record::

    LENGTH(8 hex) HASH(64 hex) PAYLOAD(JSON, ASCII)\\n      HASH = SHA-256(previous HASH + PAYLOAD)

The chain makes each record vouch for all before it. A crash can only harm bytes that were not yet synced, that is, the
line being appended; so a log that ends in a torn line is whole up to that line, while a bad line with others behind it,
or a complete line with a wrong hash, means that bytes changed after they were durable. The first is rolled back
silently, the second is `CorruptStore`. A log that was cut at a later time looks like a torn one; therefore
`manifest.head`, replaced when a writer opens and when it seals, keeps a length and hash which the log must still reach.

Kinds of record: `create` (format, store id, identity), `column` (a site; one may be added later), `part` (rows of all
columns of that moment, made durable together by one writer), `fill` (later columns' shards for an existing part),
`drop` (a column given up), `seal` (a writer has finished).
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any

from interneuron.core.errors import CorruptStore, StoreError
from interneuron.store.layout import FORMAT, KEY_COLUMN, Column, check_writer, shard_name

MANIFEST = "manifest.log"
HEAD = "manifest.head"
_FRAME = 8 + 1 + 64 + 1
_MAX_PAYLOAD = 1 << 26
_NEXT = re.compile(rb"\n[0-9a-f]{8} [0-9a-f]{64} \{")
_MAX_REPAIR = 1 << 14  # a longer torn record is judged by its bytes alone: trying each bit would take seconds


def encode(payload: dict[str, Any], previous: str) -> tuple[bytes, str]:
    """One line of the log and its hash."""
    text = json.dumps(payload, separators=(",", ":"), sort_keys=True)
    digest = _digest(previous, text.encode())
    return f"{len(text):08x} {digest} {text}\n".encode(), digest


def _digest(previous: str, text: bytes) -> str:
    return hashlib.sha256(previous.encode() + text).hexdigest()


@dataclass
class Part:
    """Rows that became visible together.

    `roots` holds the root hash of each column's shard by column number. `batches` are runs `[count, sequences, length]`
    of the forward passes that made the rows; `cursor` counts the writer's batches up to the end of this part; `data` is
    the running hash of the inputs up to there.
    """

    writer: str
    number: int
    rows: int
    start: int
    roots: dict[int, str]
    batches: list[list[int]]
    cursor: int
    data: str

    def file(self, column: int) -> str:
        """File name of one column's shard."""
        return shard_name(self.writer, self.number, column)


@dataclass
class Manifest:
    """A store's log, replayed. A column's number is its place in `columns`; `numbers` has the columns in use."""

    path: str
    id: str = ""
    identity: dict[str, Any] = field(default_factory=dict)
    columns: list[Column] = field(default_factory=lambda: [KEY_COLUMN])
    numbers: dict[str, int] = field(default_factory=dict)
    parts: list[Part] = field(default_factory=list)
    sealed: dict[str, int] = field(default_factory=dict)  # writer -> records at its last seal
    rows: int = 0
    hash: str = ""  # of the last whole record
    bytes: int = 0  # of all whole records
    records: int = 0
    torn: int = 0  # bytes behind the last whole record
    ends: dict[int, str] = field(default_factory=dict)  # hash of the record that ends at this byte

    @property
    def sites(self) -> list[str]:
        """Columns that have all rows, in the order they were added."""
        return [name for name, n in self.numbers.items() if all(n in part.roots for part in self.parts)]

    def of_writer(self, writer: str) -> list[Part]:
        """The parts of one writer, in order."""
        return [part for part in self.parts if part.writer == writer]

    def files(self) -> set[str]:
        """Names of all shards that count."""
        return {part.file(n) for part in self.parts for n in part.roots}

    def apply(self, record: dict[str, Any]) -> None:
        """Replay one record; KeyError, ValueError or TypeError when it makes no sense here."""
        kind = record["kind"]
        if (kind == "create") != (not self.id):
            raise ValueError(f"record {kind!r} out of place")
        if kind == "create":
            self._create(record)
        elif kind == "column":
            column = Column.from_json(record)
            if column.name in self.numbers:
                raise ValueError(f"column {column.name!r} twice")
            self.numbers[column.name] = len(self.columns)
            self.columns.append(column)
        elif kind == "part":
            self._part(record)
        elif kind == "fill":
            part, roots = self.parts[record["index"]], {int(n): str(root) for n, root in record["roots"].items()}
            if part.roots.keys() & roots or not set(roots) <= set(self.numbers.values()):
                raise ValueError("columns filled twice or unknown")
            part.roots.update(roots)
        elif kind == "drop":
            number = self.numbers.pop(record["column"])
            for part in self.parts:
                part.roots.pop(number, None)
        elif kind == "seal":
            self.sealed[check_writer(record["writer"])] = self.records
        else:
            raise ValueError(f"record of unknown kind {kind!r}")
        self.records += 1

    def _create(self, record: dict[str, Any]) -> None:
        if record["format"] != FORMAT:
            raise StoreError(
                f"{self.path}: format {record['format']!r}, but this version reads format {FORMAT}. Update interneuron."
            )
        self.id, self.identity = str(record["id"]), dict(record["identity"])

    def _part(self, record: dict[str, Any]) -> None:
        roots = {int(n): str(root) for n, root in record["roots"].items()}
        writer, number = check_writer(record["writer"]), int(record["part"])
        if 0 not in roots or max(roots) >= len(self.columns) or record["rows"] < 1:
            raise ValueError("part without row table, without rows or with unknown columns")
        if number != len(self.of_writer(writer)):
            raise ValueError(f"part {number} of writer {writer!r} out of order")
        batches = [[int(n) for n in run] for run in record["batches"]]
        cursor, data = int(record["cursor"]), str(record["data"])
        self.parts.append(Part(writer, number, int(record["rows"]), self.rows, roots, batches, cursor, data))
        self.rows += int(record["rows"])


def fill_record(index: int, roots: dict[int, str]) -> dict[str, Any]:
    """The record that adds columns to part number `index` of the log."""
    return {"kind": "fill", "index": index, "roots": {str(n): root for n, root in roots.items()}}


def part_record(part: Part) -> dict[str, Any]:
    """The record that commits `part`."""
    return {
        "kind": "part",
        "writer": part.writer,
        "part": part.number,
        "rows": part.rows,
        "roots": {str(n): root for n, root in part.roots.items()},
        "batches": part.batches,
        "cursor": part.cursor,
        "data": part.data,
    }


def head_bytes(manifest: Manifest) -> bytes:
    """The content of `manifest.head` for the present end of the log."""
    return encode({"bytes": manifest.bytes, "hash": manifest.hash}, "head")[0]


def parse(data: bytes, path: str, head: bytes | None = None) -> Manifest:
    """Replay a log; `head` is the content of `manifest.head`, if there is one.

    Raises:
        CorruptStore: bytes that were durable have changed or are gone.
        StoreError: a newer format.
    """
    manifest = replay(data, path)
    advice = f"Restore it from a copy, or keep the {manifest.rows} rows before that place: Store.repair(folder)."
    if manifest.torn and not is_torn(data[manifest.bytes :], manifest.hash):
        raise CorruptStore(
            f"{path}: record {manifest.records} at byte {manifest.bytes} does not match its hash; expected the "
            "log as it "
            f"was written. {advice}"
        )
    if not manifest.id:
        raise CorruptStore(f"{path}: no whole record in it, so no store was ever committed here. Remove the folder.")
    if head is not None:
        line = _line(head, 0, "head")
        if line is None:
            raise CorruptStore(f"{path[:-3]}head: damaged; expected the length and hash of the log. {advice}")
        value = json.loads(line[0])
        if manifest.ends.get(value["bytes"]) != value["hash"]:
            raise CorruptStore(
                f"{path}: whole records end at byte {manifest.bytes}, but the log was once durable up to byte "
                f"{value['bytes']}; records are lost. {advice}"
            )
    return manifest


def replay(data: bytes, path: str) -> Manifest:
    """Replay the whole records of a log up to the first that is not, without judging what follows."""
    manifest, at, previous = Manifest(path), 0, ""
    while at < len(data):
        line = _line(data, at, previous)
        if line is None:
            break
        text, previous, at = line
        try:
            manifest.apply(json.loads(text))
        except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
            raise CorruptStore(
                f"{path}: record {manifest.records} makes no sense ({error}). Restore the manifest from a copy."
            ) from error
        manifest.ends[at] = previous
    manifest.hash, manifest.bytes, manifest.torn = previous, at, len(data) - at
    return manifest


def _line(data: bytes, at: int, previous: str) -> tuple[bytes, str, int] | None:
    """The record at `at` as (payload, hash, end), or None if it is not whole."""
    head = data[at : at + _FRAME]
    try:
        length = int(head[:8], 16)
    except ValueError:
        return None
    end = at + _FRAME + length + 1
    if len(head) < _FRAME or not 0 < length <= _MAX_PAYLOAD or end > len(data) or data[end - 1] != 10:
        return None
    text = data[at + _FRAME : end - 1]
    digest = _digest(previous, text)
    # Compared as bytes: not even the case of a hex digit may differ.
    return (text, digest, end) if head == f"{length:08x} {digest} ".encode() else None


def is_torn(tail: bytes, previous: str) -> bool:
    """Could an interrupted append have left these bytes (True), or did whole bytes change later (False)?

    A torn append lacks its end, or whole sectors of it are missing. A record changed by hand still ends its line and is
    printable ASCII throughout; one that decayed becomes whole again when the right bit is turned back.
    """
    if _NEXT.search(tail):
        return False  # an append never has another record behind it
    odd = sum(not 32 <= c < 127 for c in tail) - 1
    if tail.endswith(b"\n") and (odd == 0 or (len(tail) > _MAX_REPAIR and odd < 8)):
        return False
    return len(tail) > _MAX_REPAIR or not _one_bit_from_whole(tail, previous)


def _one_bit_from_whole(tail: bytes, previous: str) -> bool:
    """Is there a single bit whose flip makes `tail` exactly one whole record?"""
    changed = bytearray(tail)
    for i in range(len(tail)):
        for bit in range(8):
            changed[i] ^= 1 << bit
            line = _line(bytes(changed), 0, previous) if changed[-1] == 10 else None
            changed[i] ^= 1 << bit
            if line is not None and line[2] == len(tail):
                return True
    return False

"""How a writer enters a store: it creates the log, goes on with the columns that are there, or adds new ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from interneuron.core.errors import FingerprintMismatch, StoreError
from interneuron.store.identity import differences, store_id
from interneuron.store.journal import Journal
from interneuron.store.layout import FORMAT, KEY_COLUMN, Column
from interneuron.store.manifest import Manifest


def create(journal: Journal, columns: Sequence[Column], identity: dict[str, Any], part_bytes: int) -> None:
    """Write the log of a new store."""
    if not columns:
        raise StoreError(f"{journal.folder}: no column to write. Name at least one site.")
    width = KEY_COLUMN.row_bytes + sum(c.row_bytes for c in columns)
    identity = {**identity, "rows_per_part": max(1, part_bytes // width)}
    first = {"kind": "create", "format": FORMAT, "id": store_id(identity, columns), "identity": identity}
    journal.create([first, *({"kind": "column", **c.as_json()} for c in columns)])


def join(journal: Journal, columns: list[Column], identity: dict[str, Any], invited: bool, writer: str) -> None:
    """Open the log of a store that is there and refuse to mix what does not belong together.

    Raises:
        StoreError: nobody said that a store may be there, or its state does not allow these columns.
        FingerprintMismatch: it holds something else; says what.
    """
    path = journal.folder
    if not invited:
        raise StoreError(
            f"{path}: a store is there already; expected an empty place. Pass resume=True to go on with it, or choose "
            "another folder."
        )
    journal.open()
    m = journal.manifest
    have = {k: v for k, v in m.identity.items() if k != "rows_per_part"}
    differ = differences(have, identity) + [
        f"column {c.name}: {m.columns[m.numbers[c.name]].as_json()} against {c.as_json()}"
        for c in columns
        if c.name in m.numbers and m.columns[m.numbers[c.name]] != c
    ]
    if differ:
        raise FingerprintMismatch(
            f"{path}: the store holds something else than asked for: {'; '.join(differ)}. Give the same model, data "
            "and options, or choose another folder."
        )
    _add_new(journal, columns)
    asked = {m.numbers[c.name] for c in columns}
    if any(asked & m.parts[i].roots.keys() for i in missing(m, columns, writer)):
        raise StoreError(
            f"{path}: some of {', '.join(c.name for c in columns)} have rows that others lack; expected sites that "
            "were added together. Name only those whose capture has not finished."
        )


def _add_new(journal: Journal, columns: list[Column]) -> None:
    m = journal.manifest
    new = [c for c in columns if c.name not in m.numbers]
    if not new:
        return
    if len(new) != len(columns):
        raise StoreError(
            f"{journal.folder}: {', '.join(c.name for c in new)} would be added beside sites that the store has; "
            "expected only new sites. Name only what is missing."
        )
    if not m.parts or set(m.sealed) != {part.writer for part in m.parts}:
        raise StoreError(f"{journal.folder}: the first capture has not finished. Resume it before adding sites.")
    for column in new:
        journal.append({"kind": "column", **column.as_json()})


def missing(m: Manifest, columns: Sequence[Column], writer: str) -> list[int]:
    """This writer's parts that lack (some of) `columns`, which were added after the rows."""
    numbers = {m.numbers[c.name] for c in columns}
    return [i for i, p in enumerate(m.parts) if p.writer == writer and not numbers <= p.roots.keys()]

"""Activation datasets on disk: written through crashes, checked when read, opened at once."""

from __future__ import annotations

from interneuron.store.layout import Column
from interneuron.store.maintenance import compact, delete, drop_site
from interneuron.store.reader import Replay, Rows, Store, Verification
from interneuron.store.record import record
from interneuron.store.writer import StoreWriter

__all__ = [
    "Column",
    "Replay",
    "Rows",
    "Store",
    "StoreWriter",
    "Verification",
    "compact",
    "delete",
    "drop_site",
    "record",
]

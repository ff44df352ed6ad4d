"""Reading a store: whole versions, opened at once, every byte checked before it is believed."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from interneuron.core.errors import CorruptStore, SiteNotFound, StoreError, did_you_mean
from interneuron.store import journal
from interneuron.store.layout import KEYS, Column
from interneuron.store.manifest import HEAD, MANIFEST, Part
from interneuron.store.shards import ShardFile
from interneuron.store.site_rows import Rows
from interneuron.store.system import System

if TYPE_CHECKING:
    from interneuron.store.batches import Shuffle
    from interneuron.store.stats import Stats
    from interneuron.store.top import Hit


@dataclass(frozen=True)
class Verification:
    """What `verify` read."""

    rows: int
    shards: int
    bytes: int


@dataclass(frozen=True)
class Replay:
    """The forward pass that made a row: `tokens` [B, T] as they went in, and the row's place in that batch."""

    tokens: Tensor
    first_row: int
    sequence: int
    position: int


class Store:
    """An activation dataset on disk, as of the moment it was opened.

    A store only ever shows whole versions: rows of parts that were durable before the manifest named them. Each block
    of a shard is checked the first time it is read. `refresh` moves on to what writers have committed since.
    """

    def __init__(self, path: str, system: Any, check: bool = True) -> None:
        self.path, self._system, self._check = path, system, check
        self._load()

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, check: bool = True, cache_bytes: int = 256 << 20) -> Store:
        """Open a store: a folder, or an fsspec address such as `s3://bucket/store` or `memory://store`.

        Args:
            path: Folder or address.
            check: Compare each block with its checksum when it is first read. Only switch it off after `verify`.
            cache_bytes: Memory for blocks of a remote store.

        Raises:
            StoreError: no store there, or a newer format.
            CorruptStore: the manifest was damaged after it was written.
        """
        text = os.fspath(path)
        if "://" in text:
            from interneuron.store.remote import RemoteSystem

            return cls(text.rstrip("/"), RemoteSystem(text, cache_bytes), check)
        store = cls(text, System(), check)
        store._sweep()
        return store

    @staticmethod
    def repair(path: str | os.PathLike[str]) -> int:
        """Give up everything behind the last whole record of a damaged manifest; return the rows that are left."""
        return journal.repair(os.fspath(path))

    def _load(self) -> None:
        try:
            self._manifest = journal.load(self._system, self.path)
        except FileNotFoundError as error:
            raise StoreError(
                f"{self.path}: no store here (no {MANIFEST}). Give the folder that record() wrote."
            ) from error
        except OSError as error:
            raise StoreError(f"{self.path}: the manifest cannot be read ({error.strerror}). Mend the cause.") from error
        m = self._manifest
        self._rows: dict[str, Rows] = {}
        self._keys = Rows(self, m.columns[0], 0)

    def _sweep(self) -> None:
        """Remove what a killed writer left behind, unless somebody is writing or the folder is read-only."""
        data = os.path.join(self.path, journal.DATA)
        try:
            found = set(self._system.listdir(data)) - self._manifest.files()
            loose = set(self._system.listdir(self.path)) & {MANIFEST + ".tmp", HEAD + ".tmp"}
            if not (found or loose):
                return
            lock = self._system.lock(os.path.join(self.path, "lock"), role="sweeping")
        except (OSError, StoreError):
            return
        try:
            log = journal.Journal(self._system, self.path)
            log.manifest = journal.load(self._system, self.path)
            log.sweep()
        except OSError:
            return
        finally:
            lock.release()

    def _open_shard(self, part: Part, number: int) -> Any:
        if hasattr(self._system, "open_shard"):
            return self._system.open_shard(self.path, self._manifest, part, number, self._check)
        return ShardFile(self._system, self.path, self._manifest, part, number, self._check)

    def refresh(self) -> Store:
        """Look again: rows and sites committed since the store was opened become visible."""
        self._load()
        return self

    # --- what is in it ---

    @property
    def n_rows(self) -> int:
        """Rows of every site."""
        return self._manifest.rows

    def __len__(self) -> int:
        return self.n_rows

    @property
    def sites(self) -> list[str]:
        """Names of the sites that have all rows."""
        return self._manifest.sites

    @property
    def identity(self) -> dict[str, Any]:
        """What the rows are: model fingerprint, tokenizer, dtype, data, options."""
        return self._manifest.identity

    @property
    def id(self) -> str:
        """The store's id, made of its identity and columns."""
        return self._manifest.id

    @property
    def version(self) -> str:
        """Hash of the manifest as it was opened: equal versions hold equal bytes."""
        return self._manifest.hash

    @property
    def is_complete(self) -> bool:
        """Did every writer finish, and does every site have all rows?"""
        m = self._manifest
        return bool(m.parts) and {p.writer for p in m.parts} <= set(m.sealed) and len(m.sites) == len(m.numbers)

    @property
    def n_bytes(self) -> int:
        """Bytes of all rows, without headers and checksums."""
        m = self._manifest
        return sum(m.columns[n].row_bytes * part.rows for part in m.parts for n in part.roots)

    def __getitem__(self, site: str) -> Rows:
        if site not in self._rows:
            m = self._manifest
            if site not in m.numbers:
                raise SiteNotFound(
                    f"{site!r} is not in the store {self.path}; it has {', '.join(self.sites) or 'no site'}."
                    f"{did_you_mean(site, m.numbers)} Add it with record(..., sites=[...], path=...)."
                )
            if site not in m.sites:
                raise StoreError(f"{self.path}: the capture of {site!r} has not finished. Resume it first.")
            self._rows[site] = Rows(self, m.columns[m.numbers[site]], m.numbers[site])
        return self._rows[site]

    def column(self, site: str) -> Column:
        """Dtype and row shape of a site."""
        return self[site].column

    def keys(self, rows: Any = None) -> np.ndarray:
        """Token, position and document of rows (a slice or indices; all by default), as a structured array."""
        if rows is None:
            rows = slice(None)
        if isinstance(rows, slice):
            start, stop, step = rows.indices(self.n_rows)
            return (
                self._keys.raw(start, max(start, stop))[::step] if step > 0 else self.keys(np.arange(start, stop, step))
            )
        return self._keys.take_raw(rows)

    @property
    def tokens(self) -> KeyView:
        """Token id of each row: `store.tokens[a:b]`; -1 where rows are no tokens."""
        return KeyView(self, "token")

    @property
    def positions(self) -> KeyView:
        """Position of each row in its document."""
        return KeyView(self, "pos")

    @property
    def documents(self) -> KeyView:
        """Document number of each row."""
        return KeyView(self, "doc")

    def replay(self, row: int) -> Replay:
        """The token batch of the forward pass that made `row`: running it again gives the same bits."""
        i = bisect_right([p.start for p in self._manifest.parts], row) - 1
        if not 0 <= row < self.n_rows:
            raise IndexError(f"row {row} is not in the store; expected 0 to {self.n_rows - 1}. Look at store.n_rows.")
        part = self._manifest.parts[i]
        at = part.start
        for count, sequences, length in part.batches:
            size = sequences * length
            if row < at + count * size:
                at += (row - at) // size * size
                tokens = torch.from_numpy(self.keys(slice(at, at + size))["token"].astype(np.int64))
                return Replay(tokens.reshape(sequences, length), at, (row - at) // length, (row - at) % length)
            at += count * size
        raise CorruptStore(f"{self.path}: part {i} does not say which batch made row {row}. Verify the store.")

    # --- checking ---

    def check(self) -> Iterator[str]:
        """Read every byte of every shard; yields one line for each problem."""
        m = self._manifest
        if m.torn:
            yield f"{self.path}: {m.torn} bytes of an interrupted commit after the last whole record (harmless; resume)"
        for n in {n for part in m.parts for n in part.roots}:
            rows = Rows(self, m.columns[n], n)
            rows._parts = [part for part in m.parts if n in part.roots]
            for _, problem in rows.verify():
                yield problem

    def verify(self) -> Verification:
        """Read and check every byte.

        Raises:
            CorruptStore: the first damage found, and how many there are.
        """
        problems = [p for p in self.check() if "harmless" not in p]
        if problems:
            more = f" ({len(problems) - 1} more shards are damaged)" if len(problems) > 1 else ""
            raise CorruptStore(problems[0] + more)
        return Verification(self.n_rows, sum(len(p.roots) for p in self._manifest.parts), self.n_bytes)

    # --- reading in bulk (see batches.py, documents.py, stats.py, top.py) ---

    def batches(
        self,
        site: str | list[str],
        batch_size: int = 4096,
        shuffle: Shuffle = True,
        seed: int = 0,
        drop_last: bool = False,
    ) -> Iterator[Any]:
        """Batches of rows, see `batches.iterate`."""
        from interneuron.store.batches import iterate

        return iterate(self, site, batch_size, shuffle, seed, drop_last)

    def dataset(self, site: str | list[str], batch_size: int = 4096, shuffle: Shuffle = True, seed: int = 0) -> Any:
        """A `torch.utils.data.IterableDataset` of batches that splits itself over workers."""
        from interneuron.store.batches import BatchDataset

        return BatchDataset(self.path, site, batch_size, shuffle, seed)

    def rows_dataset(self, site: str) -> Any:
        """A map-style `torch.utils.data.Dataset` of single rows."""
        from interneuron.store.batches import RowDataset

        return RowDataset(self.path, site)

    def by_document(self, site: str) -> Iterator[Any]:
        """Documents in order, see `documents.by_document`."""
        from interneuron.store.documents import by_document

        return by_document(self, site)

    def stats(self, site: str, covariance: bool = False) -> Stats:
        """Mean, deviation, norms, quantiles (and covariance) of a site, kept beside the data once computed."""
        from interneuron.store.stats import stats

        return stats(self, site, covariance)

    def top(self, site: str, direction: Any, k: int = 20, context: int = 10, tokenizer: Any = None) -> list[Hit]:
        """The k rows with the highest score, see `top.top`."""
        from interneuron.store.top import top

        return top(self, site, direction, k, context, tokenizer)

    def __repr__(self) -> str:
        state = "complete" if self.is_complete else "unfinished"
        return f"Store({self.path!r}, {self.n_rows} rows, {len(self.sites)} sites, {state})"


@dataclass(frozen=True)
class KeyView:
    """One field of the row table, indexed like a tensor."""

    store: Store
    name: str

    def __getitem__(self, key: Any) -> Tensor:
        if isinstance(key, (int, np.integer)):
            return torch.tensor(int(self.store.keys([int(key)])[self.name][0]))
        return torch.from_numpy(np.ascontiguousarray(self.store.keys(key)[self.name]).astype(np.int64))

    def __len__(self) -> int:
        return self.store.n_rows


__all__ = ["KEYS", "Replay", "Rows", "Store", "Verification"]

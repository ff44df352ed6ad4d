"""Changing a finished store: give up a site, shorten the log, delete it all. Each survives a crash at any moment."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from interneuron.core.errors import SiteNotFound, StoreError, did_you_mean
from interneuron.store.journal import DATA, STATS, Journal
from interneuron.store.manifest import HEAD, MANIFEST, Manifest, part_record
from interneuron.store.system import System, taught


def _alone(path: str | os.PathLike[str], system: System | None, doing: str, work: Callable[[Journal], Any]) -> Any:
    """Run `work` on the opened log as the only writer."""
    folder, system = os.fspath(path), system or System()
    if not system.exists(os.path.join(folder, MANIFEST)):
        raise StoreError(f"{folder}: no store here (no {MANIFEST}). Give the folder that record() wrote.")
    lock = system.lock(os.path.join(folder, "lock"), wait=0.5, role=doing)
    try:
        journal = Journal(system, folder)
        journal.open()
        return work(journal)
    except OSError as error:
        raise taught(error, folder, doing, "the store is as it was before or after it") from error
    finally:
        lock.release()


def drop_site(path: str | os.PathLike[str], site: str, system: System | None = None) -> None:
    """Give up a site: first the record, then its files. The other sites are not touched."""

    def work(journal: Journal) -> None:
        m = journal.manifest
        if site not in m.numbers:
            raise SiteNotFound(
                f"{site!r} is not in {path}; it has {', '.join(m.numbers)}.{did_you_mean(site, m.numbers)}"
            )
        journal.append({"kind": "drop", "column": site}, head=True)
        journal.sweep()

    _alone(path, system, "dropping a site", work)


def compact(path: str | os.PathLike[str], system: System | None = None) -> tuple[int, int]:
    """Rewrite the log without records that later ones overtook; return its length before and after. Rows stay put."""

    def work(journal: Journal) -> tuple[int, int]:
        before = journal.manifest.bytes
        journal.rewrite(snapshot(journal.manifest))
        journal.sweep()
        return before, journal.manifest.bytes

    return _alone(path, system, "compacting", work)


def snapshot(m: Manifest) -> list[dict[str, Any]]:
    """The fewest records that replay to the same store. Column numbers stay, because file names contain them."""
    from interneuron.store.layout import FORMAT

    records: list[dict[str, Any]] = [{"kind": "create", "format": FORMAT, "id": m.id, "identity": m.identity}]
    for number, column in enumerate(m.columns[1:], 1):
        records.append({"kind": "column", **column.as_json()})
        if m.numbers.get(column.name) != number:
            records.append({"kind": "drop", "column": column.name})
    records += [part_record(part) for part in m.parts]
    records += [{"kind": "seal", "writer": w} for w in sorted(m.sealed, key=lambda w: m.sealed[w])]
    return records


def delete(path: str | os.PathLike[str], system: System | None = None) -> None:
    """Delete a store: first the manifest, so that no reader ever sees half of it, then the files."""

    def work(journal: Journal) -> None:
        system, folder = journal.system, journal.folder
        for name in (HEAD, MANIFEST):
            system.unlink(os.path.join(folder, name))
        system.fsync_dir(folder)
        for inner in (os.path.join(folder, DATA), os.path.join(folder, STATS)):
            if system.exists(inner):
                for name in system.listdir(inner):
                    system.unlink(os.path.join(inner, name))
                system.rmdir(inner)
        for name in system.listdir(folder):
            if name.endswith("lock") or name.startswith("manifest."):
                system.unlink(os.path.join(folder, name))
        with suppress(OSError):  # somebody else's files may lie there
            system.rmdir(folder)

    _alone(path, system, "deleting", work)

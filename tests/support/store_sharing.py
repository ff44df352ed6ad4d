"""One process of the sharing test: an exclusive writer, a shared writer or a reader, for some seconds.

python store_sharing.py only|shared|read FOLDER SECONDS NAME
"""

from __future__ import annotations

import json
import os
import random
import sys
import time

import numpy as np
from store_workloads import BATCH, COLUMNS, PART_BYTES, rows

from interneuron.core.errors import CorruptStore, StoreError
from interneuron.store import Store, StoreWriter


def only(folder: str, end: float, name: str) -> dict[str, int]:
    """Take the store as the only writer again and again; hold a mark while inside, which nobody else may hold."""
    found = {"won": 0, "refused": 0, "odd errors": 0, "both": 0}
    rng, mark = random.Random(name), folder + ".inside"
    while time.monotonic() < end:
        try:
            with StoreWriter(
                folder, COLUMNS, {}, part_bytes=PART_BYTES, resume=True, threads=rng.choice((0, 2))
            ) as out:
                try:
                    os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
                except FileExistsError:
                    found["both"] += 1
                done = sum(p.cursor for p in out._journal.manifest.of_writer("w")[-1:])
                for i in range(done + rng.randrange(1, 7)):
                    values = {c.name: rows(c, i * BATCH, BATCH) for c in COLUMNS}
                    out.append(values, token=np.arange(i * BATCH, (i + 1) * BATCH))
                # now and then longer than a newcomer waits, so that it must be refused
                time.sleep(0.7 if found["won"] % 10 == 9 else 0.01)
                os.unlink(mark)
            found["won"] += 1
        except StoreError as error:
            found["refused" if "holds the store" in str(error) else "odd errors"] += 1
        time.sleep(rng.random() * 0.05)
    return found


def shared(folder: str, end: float, name: str) -> dict[str, int]:
    """Be one of several writers; its rows say whose they are."""
    number, found, done = int(name[1:]), {"won": 0, "refused": 0, "odd errors": 0, "rows": 0}, 0
    while time.monotonic() < end:
        try:
            with StoreWriter(folder, COLUMNS, {}, writer=name, part_bytes=PART_BYTES, threads=2) as out:
                stop = done + 9
                for i in range(stop):
                    values = {c.name: rows(c, i * BATCH, BATCH) for c in COLUMNS}
                    out.append(values, token=np.arange(i * BATCH, (i + 1) * BATCH), doc=number)
            found["won"] += 1
            done = stop
        except StoreError:
            found["odd errors"] += 1
        time.sleep(0.02)
    found["rows"] = done * BATCH
    return found


def read(folder: str, end: float, name: str) -> dict[str, int]:
    """Open, refresh and read; every version must be whole and right."""
    found = {"opened": 0, "torn": 0, "wrong": 0, "odd errors": 0}
    store: Store | None = None
    seen = 0
    rng = random.Random(name)
    while time.monotonic() < end:
        try:
            store = store.refresh() if store is not None and rng.random() < 0.5 else Store.open(folder)
            found["opened"] += 1
            found["torn"] += store.n_rows % BATCH != 0 or store.n_rows < seen
            seen = store.n_rows
            keys = store.keys(slice(max(0, seen - 40 * BATCH), seen))
            for column in COLUMNS:
                values = store[column.name][max(0, seen - 40 * BATCH) : seen].numpy()
                right = rows(column, 0, int(keys["token"].max()) + 1)[keys["token"]] if len(keys) else values
                found["wrong"] += bool((values != right).any())
        except CorruptStore:
            found["torn"] += 1
        except StoreError as error:
            found["odd errors"] += "no store here" not in str(error)
        time.sleep(0.01)
    return found


if __name__ == "__main__":
    mode, folder, seconds, name = sys.argv[1:]
    print(
        json.dumps(
            {"only": only, "shared": shared, "read": read}[mode](folder, time.monotonic() + float(seconds), name)
        )
    )

"""S6: several processes on one store: an exclusive writer wins, shared ones interleave, readers see whole versions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_workloads import BATCH, COLUMNS, PART_BYTES, capture, rows

from interneuron.core.errors import StoreError
from interneuron.store import Store, StoreWriter
from interneuron.store.system import System

SUPPORT = Path(__file__).resolve().parent.parent / "support"
SOURCE = SUPPORT.parent.parent / "src"
SECONDS = float(os.environ.get("INTERNEURON_SHARING_SECONDS", "60"))


def start(mode: str, folder: Path, seconds: float, name: str) -> subprocess.Popen[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{SOURCE}{os.pathsep}{SUPPORT}"}
    args = [sys.executable, str(SUPPORT / "store_sharing.py"), mode, str(folder), str(seconds), name]
    return subprocess.Popen(args, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(processes: list[subprocess.Popen[str]]) -> list[dict[str, Any]]:
    found = []
    for process in processes:
        out, err = process.communicate(timeout=SECONDS * 3 + 120)
        assert process.returncode == 0, err[-2000:]
        found.append(json.loads(out.splitlines()[-1]))
    return found


def test_four_processes_for_a_minute(ram_path: Path) -> None:
    """Half of the time two exclusive writers and two readers, half of it two shared writers and two readers."""
    folder = ram_path / "exclusive"
    found = finish([start(m, folder, SECONDS / 2, f"p{i}") for i, m in enumerate(("only", "only", "read", "read"))])
    writers, readers = found[:2], found[2:]
    assert sum(w["won"] for w in writers) > 0
    assert sum(w["refused"] for w in writers) > 0
    assert sum(w["odd errors"] + w["both"] for w in writers) == 0
    check_readers(readers)
    folder = ram_path / "shared"
    found = finish([start(m, folder, SECONDS / 2, f"p{i}") for i, m in enumerate(("shared", "shared", "read", "read"))])
    writers, readers = found[:2], found[2:]
    assert all(w["won"] > 0 for w in writers)
    assert sum(w["odd errors"] for w in writers) == 0
    check_readers(readers)
    store = Store.open(folder)
    store.verify()
    keys = store.keys()
    for i, writer in enumerate(writers):
        own = keys["token"][keys["doc"] == i]
        assert (own == np.arange(writer["rows"])).all()  # nothing lost, nothing twice, each writer's rows in its order


def check_readers(readers: list[dict[str, Any]]) -> None:
    assert sum(r["opened"] for r in readers) > 0
    assert sum(r["torn"] + r["wrong"] + r["odd errors"] for r in readers) == 0, readers


def test_a_second_writer_is_told_who_writes(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with StoreWriter(path, COLUMNS, {}, part_bytes=PART_BYTES):
        with pytest.raises(StoreError, match=f"process {os.getpid()} on .* holds the store"):
            capture(path, System())
        with pytest.raises(StoreError, match="holds the store"):
            StoreWriter(path, COLUMNS, {}, writer="w1")


def test_two_shared_writers_may_not_have_one_name(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with StoreWriter(path, COLUMNS, {}, writer="w1"):
        with pytest.raises(StoreError, match="each its own writer name"):
            StoreWriter(path, COLUMNS, {}, writer="w1")
        StoreWriter(path, COLUMNS, {}, writer="w2").abort()


def test_a_reader_keeps_its_version_until_it_refreshes(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    capture(path, System(), n=3)
    store = Store.open(path)
    capture(path, System(), n=9)
    assert store.n_rows == 3 * BATCH
    assert (store["a"][:].numpy() == rows(COLUMNS[0], 0, 3 * BATCH)).all()
    assert store.refresh().n_rows == 9 * BATCH


def test_a_reader_does_not_sweep_what_a_writer_is_writing(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    capture(path, System(), n=3)
    with StoreWriter(path, COLUMNS, {"model": "toy"}, part_bytes=PART_BYTES, resume=True) as writer:
        for i in range(4):
            values = {c.name: rows(c, i * BATCH, BATCH) for c in COLUMNS}
            writer.append(values, token=np.arange(i * BATCH, (i + 1) * BATCH), pos=np.arange(BATCH), doc=i)
        loose = [n for n in os.listdir(tmp_path / "s" / "data") if n.endswith(".tmp")]
        assert loose
        Store.open(path)
        assert set(loose) <= set(os.listdir(tmp_path / "s" / "data"))
    assert Store.open(path).n_rows == 4 * BATCH


def test_a_writer_that_died_mid_append_does_not_stop_the_other(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with StoreWriter(path, COLUMNS, {}, writer="w1", part_bytes=PART_BYTES, threads=0) as writer:
        with (tmp_path / "s" / "manifest.log").open("ab") as log:
            log.write(b"0000014f 12ab")  # what a killed writer leaves
        for i in range(3):
            writer.append(
                {c.name: rows(c, i * BATCH, BATCH) for c in COLUMNS}, token=np.arange(i * BATCH, (i + 1) * BATCH)
            )
    assert Store.open(path).n_rows == 3 * BATCH

"""S4: every system call of a capture fails once, in each way it can; S5's file damage is in test_damage.py."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from store_crash import tree
from store_disks import Counted, Faulty
from store_workloads import BATCH, BATCHES, COLUMNS, LATER, PART_BYTES, capture, rows, wrong_rows

from interneuron.core.errors import StoreError
from interneuron.store import Column, Store, StoreWriter
from interneuron.store.layout import PAGE
from interneuron.store.system import System

pytestmark = pytest.mark.usefixtures("unchecked")
ERRORS = (errno.ENOSPC, errno.EIO, errno.EINTR, errno.EROFS, "short")


def leftovers(path: Path) -> set[str]:
    """Files of a store that its manifest does not know, after a reader has opened it."""
    store = Store.open(path)
    return {n for n in os.listdir(path / "data") if n not in store._manifest.files()} | {
        n for n in os.listdir(path) if n.endswith(".tmp")
    }


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("later", [False, True], ids=["capture", "added site"])
def test_every_call_fails_once(error: int | str, later: bool, ram_path: Path) -> None:
    columns = (LATER,) if later else COLUMNS
    if later:
        capture(str(ram_path / "reference"), System(False))
    counted = Counted(direct=False)
    capture(str(ram_path / "reference"), counted, columns)
    expected, calls = tree(str(ram_path / "reference")), len(counted.calls)
    assert calls > 60
    failed = 0
    for at in range(calls):
        path = ram_path / f"s{at}"
        if later:
            capture(str(path), System(False))
        acks: list[int] = []
        told: list[str] = []
        disk = Faulty(at, error)
        try:
            capture(str(path), disk, columns, acks)
        except StoreError as refusal:
            failed += 1
            told.append(str(refusal))
        else:
            assert error in ("short", errno.EINTR) or disk.fired.startswith("close") or disk.fired == "mkdir store", (
                disk.fired
            )
        assert disk.fired, f"call {at} never came"
        assert all(isinstance(error, int) and os.strerror(error) in text for text in told)
        if (path / "manifest.log").exists():
            store = Store.open(path)
            assert store.n_rows >= max(acks, default=0)
            assert wrong_rows(store) == 0
            assert not leftovers(path)
        capture(str(path), System(False), columns)
        assert tree(str(path)) == expected
        assert wrong_rows(Store.open(path)) == 0
    assert error in ("short", errno.EINTR) or failed > calls * 0.7


def test_a_disk_that_stays_full_after_a_short_write(tmp_path: Path) -> None:
    """The first write is cut short, everything after it is refused: what was there stays, the error says what to do."""
    capture(str(tmp_path / "s"), System(False), n=4)
    before = Store.open(tmp_path / "s").n_rows
    disk = Faulty(30, "short", repeat=True)
    with pytest.raises(StoreError, match="Free some space"):
        capture(str(tmp_path / "s"), disk)
    store = Store.open(tmp_path / "s")
    assert store.n_rows >= before
    assert wrong_rows(store) == 0


def test_a_store_left_by_a_failed_fsync_is_not_trusted(tmp_path: Path) -> None:
    """After a failed fsync the record may be visible though not durable; the next writer writes the log anew."""
    fsyncs = [i for i, c in enumerate(_calls(tmp_path)) if c == "fsync manifest.log"]
    path = tmp_path / "s"
    with pytest.raises(StoreError):
        capture(str(path), Faulty(fsyncs[2], errno.EIO))
    inode = (path / "manifest.log").stat().st_ino
    capture(str(path), System(False))
    assert (path / "manifest.log").stat().st_ino != inode


def _calls(tmp_path: Path) -> list[str]:
    counted = Counted(direct=False)
    capture(str(tmp_path / "probe"), counted)
    return counted.calls


def test_short_direct_writes_go_on_from_a_whole_page(tmp_path: Path) -> None:
    class Stingy(System):
        def pwrite(self, handle: int, data: memoryview | bytes, offset: int) -> int:
            return super().pwrite(handle, data[: max(PAGE, len(data) // 2 // PAGE * PAGE)], offset)

    capture(str(tmp_path / "a"), System())
    capture(str(tmp_path / "b"), Stingy())
    assert tree(str(tmp_path / "a")) == tree(str(tmp_path / "b"))


def test_falls_back_where_direct_writes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, refused = os.open, []

    def refuse(path: str, flags: int, mode: int = 0o777, **options: object) -> int:
        if flags & getattr(os, "O_DIRECT", 0):
            refused.append(path)
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(path, flags, mode, **options)

    capture(str(tmp_path / "a"), System())
    monkeypatch.setattr(os, "open", refuse)
    capture(str(tmp_path / "b"), System())
    assert len(refused) == 1
    assert tree(str(tmp_path / "a")) == tree(str(tmp_path / "b"))


AS_NOBODY = """
import os, sys
from interneuron.core.errors import StoreError
from interneuron.store import Store
from interneuron.store.system import System
from store_workloads import capture, wrong_rows
if os.geteuid() == 0:
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
for name in sys.argv[1:]:
    try:
        capture(name, System())
        print("written", wrong_rows(Store.open(name)))
    except StoreError as refusal:
        print(refusal)
"""


def test_a_read_only_folder_is_refused_with_advice() -> None:
    """By a user who is not root, because root may write everywhere; the open folder beside it is the control."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        place.chmod(0o755)
        for name, mode in (("shut", 0o555), ("open", 0o777)):
            (place / name).mkdir()
            (place / name).chmod(mode)
        tests = Path(__file__).resolve().parent.parent
        path = f"{tests.parent / 'src'}{os.pathsep}{tests / 'support'}"
        run = [sys.executable, "-c", AS_NOBODY, str(place / "shut" / "s"), str(place / "open" / "s")]
        done = subprocess.run(run, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        refused, written = done.stdout.splitlines()
        assert "Give yourself write access" in refused
        assert written == "written 0"


WIDE = (Column("wide", "float32", (4096,)), Column("slim", "float32", (2048,)))
LARGE = {"block_bytes": 0, "part_bytes": 1 << 20}  # shards of several buffers, the last part smaller than the others


def test_space_is_set_aside_and_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files end with the same bytes and length, and no more blocks, with and without preallocation."""
    sizes: list[int] = []

    class Noting(System):
        def allocate(self, handle: int, size: int) -> None:
            super().allocate(handle, size)
            sizes.append(size)

    for direct in (True, False):
        capture(str(tmp_path / f"with {direct}"), Noting(direct), WIDE, n=11, **LARGE)
    assert len(sizes) >= 8
    monkeypatch.setattr("interneuron.store.system._fallocate", lambda: None)
    capture(str(tmp_path / "without"), System(), WIDE, n=11, **LARGE)
    for name in ("with True", "with False"):
        assert tree(str(tmp_path / name)) == tree(str(tmp_path / "without"))
        assert all(p.stat().st_blocks * 512 <= p.stat().st_size + PAGE for p in (tmp_path / name / "data").iterdir())
    assert wrong_rows(Store.open(tmp_path / "with True")) == 0


@pytest.mark.parametrize("error", ERRORS)
def test_every_call_of_a_capture_of_large_shards_fails_once(error: int | str, ram_path: Path) -> None:
    """As above, with shards of several buffers, whose space is set aside and cut to length."""
    counted = Counted(direct=False)
    capture(str(ram_path / "reference"), counted, WIDE, n=11, **LARGE)
    expected = tree(str(ram_path / "reference"))
    cuts = [i for i, c in enumerate(counted.calls) if c == "truncate shard"]
    assert cuts
    for at in (*range(0, len(counted.calls), 5), *cuts):
        path, disk = ram_path / f"s{at}", Faulty(at, error)
        with suppress(StoreError):
            capture(str(path), disk, WIDE, n=11, **LARGE)
        if at in cuts and error in (errno.EIO, errno.ENOSPC):
            assert not Store.open(path).is_complete
        if (path / "manifest.log").exists():
            assert wrong_rows(Store.open(path)) == 0
            assert not leftovers(path)
        capture(str(path), System(False), WIDE, n=11, **LARGE)
        assert tree(str(path)) == expected


def test_a_store_on_a_read_only_disk_can_be_read(tmp_path: Path) -> None:
    capture(str(tmp_path / "s"), System())
    (tmp_path / "s" / "data" / "w-000099.c00.act.tmp").write_bytes(b"left by a killed writer")
    for p in (tmp_path / "s" / "data", tmp_path / "s"):
        p.chmod(0o500)
    try:
        assert wrong_rows(Store.open(tmp_path / "s")) == 0
    finally:
        for p in (tmp_path / "s", tmp_path / "s" / "data"):
            p.chmod(0o700)


def test_threads_that_fail_are_heard(tmp_path: Path) -> None:
    """With background threads the error of a write reaches the caller, and nothing is acknowledged wrongly."""

    class Full(System):
        def pwrite(self, handle: int, data: memoryview | bytes, offset: int) -> int:
            if offset > 3 * PAGE:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().pwrite(handle, data, offset)

    with pytest.raises(StoreError, match="No space left"):
        capture(str(tmp_path / "s"), Full(), threads=2, n=60, part_bytes=1 << 16)
    store = Store.open(tmp_path / "s")
    assert wrong_rows(store) == 0
    capture(str(tmp_path / "s"), System(), threads=2, n=60, part_bytes=1 << 16)
    assert Store.open(tmp_path / "s").n_rows == 60 * BATCH


def test_an_exception_of_the_caller_leaves_a_store_to_resume(tmp_path: Path) -> None:
    path = str(tmp_path / "s")

    def interrupted() -> None:
        with StoreWriter(path, COLUMNS, {"model": "toy"}, part_bytes=PART_BYTES) as writer:
            for i in range(5):
                values = {c.name: rows(c, i * BATCH, BATCH) for c in COLUMNS}
                writer.append(values, token=range(i * BATCH, (i + 1) * BATCH), pos=range(BATCH), doc=i)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not leftovers(tmp_path / "s")
    assert not Store.open(path).is_complete
    capture(path, System())
    assert Store.open(path).n_rows == BATCHES * BATCH
    assert Store.open(path).is_complete

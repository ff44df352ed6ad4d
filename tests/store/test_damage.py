"""S5: bit flips, truncations, swapped and stale shards, edited records: no wrong byte is ever served."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_workloads import BATCH, COLUMNS, LATER, capture, rows

from interneuron.core.errors import CorruptStore, StoreError
from interneuron.store import Column, Store, StoreWriter
from interneuron.store.system import System

pytestmark = pytest.mark.usefixtures("unchecked")
FLIPS = 20_000


class Memory(System):
    """A finished store held in memory, so that thousands of damaged versions cost little."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.files = {str(p): bytearray(p.read_bytes()) for p in folder.rglob("*") if p.is_file() and p.stat().st_size}

    def read(self, path: str) -> bytes:
        return bytes(self._get(path))

    def map(self, path: str) -> Any:
        return memoryview(bytearray(self._get(path)))

    def exists(self, path: str) -> bool:
        return path in self.files

    def _get(self, path: str) -> bytearray:
        if path not in self.files:
            raise FileNotFoundError(2, "No such file", path)
        return self.files[path]


@pytest.fixture
def made(ram_path: Path) -> Path:
    capture(str(ram_path / "s"), System(False))
    capture(str(ram_path / "s"), System(False), (LATER,))
    return ram_path / "s"


def truth(store: Store) -> dict[str, np.ndarray]:
    return {site: rows(store.column(site), 0, store.n_rows) for site in store.sites}


def outcome(folder: Path, memory: Memory, n: int, check: bool = True, how: str = "touch") -> str:
    """`found` (an error of ours), `harmless` (all rows there and right) or `missed`."""
    try:
        store = Store(str(folder), memory, check)
        if how == "verify":
            store.verify()
        if store.n_rows != n or len(store.sites) != 3 or store._manifest.torn:
            return "missed"
        right = (store.keys()["token"] == np.arange(n)).all()
        for site, expected in truth(store).items():
            right &= bool((store[site][:].float().numpy() == expected).all())
        return "harmless" if right else "missed"
    except StoreError:
        return "found"


def count(
    folder: Path, damage: Callable[[Memory, random.Random], Callable[[], None]], times: int, **how: Any
) -> dict[str, int]:
    memory, rng = Memory(folder), random.Random(5)
    n = Store(str(folder), memory).n_rows
    assert outcome(folder, memory, n) == "harmless"
    found = {"found": 0, "harmless": 0, "missed": 0}
    for _ in range(times):
        undo = damage(memory, rng)
        found[outcome(folder, memory, n, **how)] += 1
        undo()
    return found


def flip(memory: Memory, rng: random.Random) -> Callable[[], None]:
    """One bit of one file; small files as often as large ones, so that manifest and head are hit thousands of times."""
    path = rng.choice(sorted(memory.files))
    at, bit = rng.randrange(len(memory.files[path])), 1 << rng.randrange(8)

    def undo() -> None:
        memory.files[path][at] ^= bit

    undo()
    return undo


def truncate(memory: Memory, rng: random.Random) -> Callable[[], None]:
    path = rng.choice(sorted(memory.files))
    old = memory.files[path]
    memory.files[path] = old[: rng.randrange(len(old))]
    return lambda: memory.files.__setitem__(path, old)


def test_every_bit_flip_is_found_on_first_touch(made: Path) -> None:
    """Two flips are harmless: in padding that no row lies in nothing is wrong to read, and `verify` finds those too."""
    found = count(made, flip, FLIPS // 2)
    assert found["missed"] == 0
    assert found["found"] > FLIPS // 2 * 0.9


def test_every_bit_flip_is_found_by_verify(made: Path) -> None:
    assert count(made, flip, FLIPS // 2, how="verify") == {"found": FLIPS // 2, "harmless": 0, "missed": 0}


def test_every_truncation_is_found(made: Path) -> None:
    found = count(made, truncate, 3000)
    assert found["missed"] == 0
    assert found["found"] == 3000


def test_swapped_and_stale_shards_are_found(made: Path, ram_path: Path) -> None:
    """Shards of the same size put in each other's place, or taken from another capture of the same sites."""
    other = ram_path / "other"
    capture(str(other), System(False), n=8)  # same columns, same batches: only fewer
    stale = Memory(other)

    def swap(memory: Memory, rng: random.Random) -> Callable[[], None]:
        shards = sorted(p for p in memory.files if p.endswith(".act"))
        a = rng.choice(shards)
        b = rng.choice([p for p in shards if p != a and len(memory.files[p]) == len(memory.files[a])] or [shards[0]])
        old = dict(memory.files)
        twin = a.replace(str(made), str(other))
        if rng.random() < 0.5 and twin in stale.files and stale.files[twin] != memory.files[a]:
            memory.files[a] = stale.files[twin]
        else:
            memory.files[a], memory.files[b] = memory.files[b], memory.files[a]
        return lambda: memory.files.update(old)

    found = count(made, swap, 600)
    assert found["missed"] == 0
    assert found["found"] > 500


def test_edited_records_are_found(made: Path) -> None:
    def edit(memory: Memory, rng: random.Random) -> Callable[[], None]:
        path = next(p for p in memory.files if p.endswith("manifest.log"))
        old = memory.files[path]
        lines = bytes(old).split(b"\n")[:-1]
        i = rng.randrange(len(lines))
        how = rng.randrange(4)
        if how == 0:
            lines[i] = lines[i].replace(b'"rows":36', b'"rows":35').replace(b'"writer":"w"', b'"writer":"v"')
            lines[i] = lines[i].replace(b"float", b"foat")
        elif how == 1:
            del lines[i]
        elif how == 2:
            lines.insert(i, lines[rng.randrange(len(lines))])
        else:
            j = rng.randrange(len(lines))
            lines[i], lines[j] = lines[j], lines[i]
        memory.files[path] = bytearray(b"\n".join(lines) + b"\n")
        return lambda: memory.files.__setitem__(path, old)

    found = count(made, edit, 2000)
    assert found["missed"] == 0
    assert found["found"] > 1400  # swapping or doubling a record with itself changes nothing


def test_missing_shards_are_found_and_the_rest_can_be_read(made: Path) -> None:
    (made / "data" / "w-000001.c01.act").unlink()
    store = Store.open(made)
    assert (store["b"][:].numpy() == rows(COLUMNS[1], 0, store.n_rows)).all()
    assert torch_equal(store["a"][:36], rows(COLUMNS[0], 0, 36))
    with pytest.raises(CorruptStore, match=r"w-000001\.c01\.act"):
        store["a"][36:40]
    with pytest.raises(CorruptStore, match=r"w-000001\.c01\.act"):
        store.verify()


def torch_equal(a: Any, b: np.ndarray) -> bool:
    return bool((a.numpy() == b).all())


def test_repair_keeps_the_rows_before_the_damage(made: Path) -> None:
    log = made / "manifest.log"
    lines = log.read_bytes().split(b"\n")
    parts = [i for i, line in enumerate(lines) if b'"kind":"part"' in line]
    lines[parts[2]] = lines[parts[2]].replace(b'"cursor":9', b'"cursor":8')
    log.write_bytes(b"\n".join(lines))
    with pytest.raises(CorruptStore, match="repair"):
        Store.open(made)
    assert Store.repair(made) == 6 * BATCH
    store = Store.open(made)
    assert store.n_rows == 6 * BATCH
    assert (made / "manifest.damaged").exists()
    assert torch_equal(store["a"][:], rows(COLUMNS[0], 0, 6 * BATCH))


def test_control_without_checksums_damage_is_served(made: Path) -> None:
    def body(memory: Memory, rng: random.Random) -> Callable[[], None]:
        path = rng.choice([p for p in sorted(memory.files) if p.endswith(".c01.act")])
        at = 4096 + rng.randrange(28 * 36)
        memory.files[path][at] ^= 1
        return lambda: memory.files[path].__setitem__(at, memory.files[path][at] ^ 1)

    assert count(made, body, 50, check=False)["missed"] > 40
    assert count(made, body, 50)["missed"] == 0


def test_a_later_format_is_refused_with_advice(made: Path, ram_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interneuron.store.entry.FORMAT", 2)
    shutil.rmtree(made)
    with pytest.raises(StoreError, match="Update interneuron"):
        capture(str(made), System(False))


def test_a_folder_without_a_store_is_named(ram_path: Path) -> None:
    with pytest.raises(StoreError, match="no store here"):
        Store.open(ram_path)


@pytest.fixture
def long(ram_path: Path) -> Path:
    """One part of 60 rows of 16 KiB: 15 checksum blocks."""
    folder = ram_path / "long"
    with StoreWriter(folder, (Column("x", "float32", (4096,)),), {}) as out:
        out.append({"x": np.arange(60 * 4096, dtype=np.float32).reshape(60, 4096)})
    return folder


def first_touch(folder: Path, a: int, b: int, check: bool = True) -> str:
    """Read rows `a:b` of a store just opened."""
    try:
        got = Store.open(folder, check=check)["x"][a:b].numpy()
    except CorruptStore:
        return "found"
    return "harmless" if (got == np.arange(60 * 4096).reshape(60, 4096)[a:b]).all() else "missed"


def flipped_reads(folder: Path, check: bool = True) -> dict[str, int]:
    rng, found = random.Random(7), {"found": 0, "harmless": 0, "missed": 0}
    shard = next((folder / "data").glob("*.c01.act"))
    for _ in range(300):
        a = rng.randrange(0, 30)
        b = rng.randrange(a + 1, 61)
        at, bit = rng.randrange(4096 + a * 16384, 4096 + b * 16384), 1 << rng.randrange(8)
        with shard.open("r+b") as file:
            for expected in ("flip", "back"):
                file.seek(at)
                byte = file.read(1)[0]
                file.seek(at)
                file.write(bytes([byte ^ bit]))
                file.flush()
                if expected == "flip":
                    found[first_touch(folder, a, b, check)] += 1
        assert first_touch(folder, a, b) == "harmless"
    return found


def test_flips_are_found_in_slices_of_many_blocks(long: Path) -> None:
    assert flipped_reads(long) == {"found": 300, "harmless": 0, "missed": 0}


def test_control_they_are_missed_without_checks(long: Path) -> None:
    assert flipped_reads(long, check=False)["missed"] == 300

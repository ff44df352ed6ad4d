"""The checksum itself: equal to zlib's whoever computes it, and blind to no damage of the kinds that disks do."""

from __future__ import annotations

import importlib.util
import random
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from interneuron.core.errors import CorruptStore
from interneuron.store import Column, Store, StoreWriter, checksums
from interneuron.store.checksums import CRC_BLOCK, crc32, crc_table
from interneuron.store.layout import PAGE

FLIPS = 20_000


def noise(n: int, seed: int = 0) -> bytearray:
    return bytearray(np.random.default_rng(seed).bytes(n))


@pytest.mark.parametrize("n", [1, 4096, CRC_BLOCK, CRC_BLOCK + 4096, 5 * CRC_BLOCK - 4096])
def test_the_numbers_are_those_of_zlib(n: int) -> None:
    """Otherwise a store written on one machine would look damaged on another."""
    data = noise(n)
    want = [zlib.crc32(data[i : i + CRC_BLOCK]) for i in range(0, n, CRC_BLOCK)]
    assert crc_table(memoryview(data)).tolist() == want
    assert crc_table(memoryview(data)).dtype == "<u4"


def test_the_fast_one_is_used_where_it_is_installed() -> None:
    pytest.importorskip("zlib_ng")
    assert crc32 is not zlib.crc32


def test_zlib_stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zlib_ng", None)
    spec = importlib.util.spec_from_file_location("checksums_again", checksums.__file__)
    assert spec is not None and spec.loader is not None
    again = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(again)
    assert again.crc32 is zlib.crc32


def undetected(check: Callable[[bytearray], int], seed: int = 1) -> dict[str, int]:
    """How much damage of each kind leaves the checksum of a block as it was."""
    rng, data = random.Random(seed), noise(CRC_BLOCK, seed)
    whole, missed = check(data), {"flip": 0, "burst": 0, "swap": 0, "shift": 0, "truncation": 0}
    for _ in range(FLIPS):
        at, bit = rng.randrange(CRC_BLOCK), 1 << rng.randrange(8)
        data[at] ^= bit
        missed["flip"] += check(data) == whole
        data[at] ^= bit
    for _ in range(FLIPS // 10):
        at, change = rng.randrange(CRC_BLOCK - 4), rng.randrange(1, 1 << 32).to_bytes(4, "little")
        old = data[at : at + 4]
        data[at : at + 4] = bytes(a ^ b for a, b in zip(old, change, strict=True))
        missed["burst"] += check(data) == whole
        data[at : at + 4] = old
        size = rng.choice((64, 512, 4096))
        a, b = (size * i for i in rng.sample(range(CRC_BLOCK // size), 2))
        swapped = bytearray(data)
        swapped[a : a + size], swapped[b : b + size] = data[b : b + size], data[a : a + size]
        missed["swap"] += check(swapped) == whole
        missed["shift"] += check(data[size:] + data[:size]) == whole
        missed["truncation"] += check(data[:-size] + bytes(size)) == whole
    return missed


def test_no_damage_of_a_block_leaves_its_checksum() -> None:
    assert set(undetected(crc32).values()) == {0}


def test_control_a_sum_of_the_words_misses_what_was_moved() -> None:
    missed = undetected(lambda data: int(np.frombuffer(data, "<u8").sum()))
    assert missed["swap"] > 1900
    assert missed["shift"] > 1900


def test_each_block_is_checked_when_a_slice_first_touches_it(tmp_path: Path, unchecked: None) -> None:
    """Over shards of many blocks: a slice that needs the damaged block is refused, all others are served."""
    width, n = 250, 3000  # rows of 1000 bytes lie across the borders of blocks
    rows = np.random.default_rng(0).standard_normal((n, width)).astype(np.float32)
    with StoreWriter(tmp_path / "s", (Column("x", "float32", (width,)),), {}) as out:
        out.append({"x": rows}, token=np.arange(n), pos=np.arange(n), doc=0)
    shard = tmp_path / "s" / "data" / "w-000000.c01.act"
    whole, rng = bytearray(shard.read_bytes()), random.Random(2)
    refused = 0
    for _ in range(150):
        at = PAGE + rng.randrange(n * width * 4)
        damaged = bytearray(whole)
        damaged[at] ^= 1 << rng.randrange(8)
        shard.write_bytes(damaged)
        start = rng.randrange(n)
        stop = min(n, start + rng.choice((1, 10, 500, 3000)))
        block = (at - PAGE) // CRC_BLOCK
        touched = start * 1000 // CRC_BLOCK <= block <= (stop * 1000 - 1) // CRC_BLOCK
        store = Store.open(tmp_path / "s")
        if touched:
            refused += 1
            with pytest.raises(CorruptStore, match=f"block {block} "):
                store["x"][start:stop]
            with pytest.raises(CorruptStore, match=f"block {block} "):
                store["x"].take(range(start, stop))
        else:
            assert (store["x"][start:stop].numpy() == rows[start:stop]).all()
            assert (store["x"].take(range(start, stop)).numpy() == rows[start:stop]).all()
    assert 20 < refused < 140

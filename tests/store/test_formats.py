"""S7: stores of every format version that was ever released are read to the same bits."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from store_crash import tree
from store_format_file import COLUMNS, LATER, ROWS, values, write

from interneuron.core.errors import CorruptStore
from interneuron.store import Store
from interneuron.store.layout import FORMAT

FORMATS = Path(__file__).parent / "formats"


def test_every_released_format_has_its_file() -> None:
    assert {p.name for p in FORMATS.iterdir()} == {f"v{i}" for i in range(1, FORMAT + 1)}
    assert all(sum(f.stat().st_size for f in p.rglob("*") if f.is_file()) <= 200_000 for p in FORMATS.iterdir())


@pytest.mark.parametrize("version", sorted(p.name for p in FORMATS.iterdir()))
def test_old_stores_are_read_to_the_same_bits(version: str, tmp_path: Path) -> None:
    shutil.copytree(FORMATS / version, tmp_path / "s")
    store = Store.open(tmp_path / "s")
    store.verify()
    assert store.is_complete
    assert store.n_rows == ROWS
    assert store.sites == ["f32", "f16", "bf16", "i8", "i64"]
    assert store.tokens[:].tolist() == list(range(ROWS))
    assert store.documents[:].tolist() == [i // 10 for i in range(ROWS)]
    for column in (*COLUMNS, LATER):
        assert store.column(column.name) == column
        assert (store[column.name][:].float().numpy() == values(column)).all()


def test_the_present_format_writes_the_file_that_is_kept(tmp_path: Path) -> None:
    """A change of what is written to disk needs a new format number, a new file, and readers for the old one."""
    write(str(tmp_path / "s"))
    kept = tree(str(FORMATS / f"v{FORMAT}"))
    assert {n: h for n, h in tree(str(tmp_path / "s")).items() if n != "lock"} == kept


def test_control_one_changed_byte_of_an_old_store_is_noticed(tmp_path: Path) -> None:
    shutil.copytree(FORMATS / "v1", tmp_path / "s")
    shard = tmp_path / "s" / "data" / "w-000000.c01.act"
    data = bytearray(shard.read_bytes())
    data[4096 + 5] ^= 16
    shard.write_bytes(data)
    with pytest.raises(CorruptStore):
        np.asarray(Store.open(tmp_path / "s")["f32"][:])

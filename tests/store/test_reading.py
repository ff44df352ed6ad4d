"""Reading in bulk: rows, batches, datasets, documents, statistics, strongest rows, remote stores, exports, identity."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from torch import Tensor

from interneuron.core.errors import CorruptStore, FingerprintMismatch, InputError, ShapeError, SiteNotFound, StoreError
from interneuron.store import Column, Store, StoreWriter, compact, delete, drop_site
from interneuron.store import stats as stats_module
from interneuron.store.export import export, hook_name

ROWS, WIDTH = 5000, 24


def truth() -> np.ndarray:
    return np.random.default_rng(3).standard_normal((ROWS, WIDTH)).astype(np.float32)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5000 rows in 9 parts; document d has positions 0..99, cut into pieces of 50 that lie apart in the store."""
    folder, x = tmp_path_factory.mktemp("store") / "s", truth()
    columns = (Column("x", "float32", (WIDTH,)), Column("h", "bfloat16", (4, 6)), Column("q", "int8", (WIDTH,)))
    with StoreWriter(folder, columns, {"made": "up"}, part_bytes=100_000, threads=2) as out:
        for at in range(0, ROWS, 50):
            piece, doc = (at // 50) // 50, (at // 50) % 50
            rows = x[at : at + 50]
            values = {"x": rows, "h": rows.reshape(-1, 4, 6), "q": rows}
            out.append(values, token=np.arange(at, at + 50), pos=np.arange(50) + 50 * piece, doc=doc)
    return folder


@pytest.fixture
def store(path: Path) -> Store:
    return Store.open(path)


def test_slices_rows_and_indices(store: Store) -> None:
    x = torch.from_numpy(truth())
    rows = store["x"]
    assert rows.shape == (ROWS, WIDTH)
    assert len(store._manifest.parts) > 5
    for key in (slice(0, 10), slice(600, 3000), slice(-5, None), slice(10, 3000, 7), slice(50, 20), slice(30, 3, -2)):
        want = x[np.arange(ROWS)[key].copy()]
        assert torch.equal(rows[key], want)
    index = np.random.default_rng(0).integers(-ROWS, ROWS, 700)
    assert torch.equal(rows[index], x[index])
    assert torch.equal(rows[torch.from_numpy(np.sort(index))], x[np.sort(index)])
    assert torch.equal(store["h"][index], x[index].reshape(-1, 4, 6).bfloat16())
    assert torch.equal(store["q"][index], store["q"][:][index])
    assert len(rows[np.array([], np.int64)]) == 0
    assert torch.equal(rows[17], x[17])
    assert torch.equal(rows[np.arange(ROWS) % 2 == 0], x[::2])
    assert torch.equal(store["h"][100:200], x[100:200].reshape(-1, 4, 6).bfloat16())
    assert (store["q"][:] - x).abs().max() <= x.abs().amax() / 254 + 1e-6
    assert store.tokens[3] == 3
    assert store.positions[2500:2503].tolist() == [50, 51, 52]


def test_rows_in_any_order_are_checked(path: Path, tmp_path: Path) -> None:
    shutil.copytree(path, tmp_path / "s")
    shard = sorted((tmp_path / "s" / "data").glob("*.c01.act"))[4]
    content = bytearray(shard.read_bytes())
    content[4096 + 5 * WIDTH * 4] ^= 1
    shard.write_bytes(content)
    index = np.random.default_rng(0).permutation(ROWS)
    with pytest.raises(CorruptStore, match=f"{shard.name}: block 0"):
        Store.open(tmp_path / "s")["x"][index]
    unchecked = Store.open(tmp_path / "s", check=False)["x"][index]  # the control: nobody looks
    assert not torch.equal(unchecked, torch.from_numpy(truth())[index])


def test_rows_belong_to_the_caller(store: Store) -> None:
    got = store["x"][0:10]
    got.zero_()
    assert torch.equal(store["x"][0:10], torch.from_numpy(truth()[:10]))


def test_rows_outside_and_unknown_sites_are_named(store: Store) -> None:
    with pytest.raises(IndexError, match="expected -5000 to 4999"):
        store["x"][ROWS]
    with pytest.raises(SiteNotFound, match="it has x, h, q"):
        store["y"]


@pytest.mark.parametrize("shuffle", [True, "blocks", False])
@pytest.mark.parametrize("size", [64, 700, 6000])
def test_batches_give_each_row_once(store: Store, shuffle: Any, size: int) -> None:
    batches = list(store.batches("x", size, shuffle, seed=4))
    assert all(len(b) == size for b in batches[:-1])
    got, x = torch.cat(batches).numpy(), truth()
    assert len(got) == ROWS
    assert (got[np.lexsort(got.T)] == x[np.lexsort(x.T)]).all()
    assert [b.sum().item() for b in batches] == [b.sum().item() for b in store.batches("x", size, shuffle, seed=4)]
    if shuffle and size < ROWS:
        assert not torch.equal(batches[0], next(store.batches("x", size, shuffle, seed=5)))
    assert all(len(b) == size for b in store.batches("x", size, shuffle, drop_last=True))


def test_batches_over_several_sites_are_of_the_same_rows(store: Store) -> None:
    for batch in store.batches(["x", "h"], 512, seed=1):
        assert torch.equal(batch["x"].reshape(-1, 4, 6).bfloat16(), batch["h"])


def test_datasets_split_themselves_over_workers(store: Store) -> None:
    data = store.dataset("x", 256, seed=2)
    alone = torch.cat(list(data))
    data.set_epoch(1)
    assert not torch.equal(torch.cat(list(data)), alone)
    data.set_epoch(0)
    loader = torch.utils.data.DataLoader(data, batch_size=None, num_workers=2)
    shared = torch.cat(list(loader))
    assert len(shared) == ROWS
    assert torch.equal(shared.sort(0).values, alone.sort(0).values)
    rows = torch.utils.data.DataLoader(store.rows_dataset("x"), batch_size=1000)
    assert torch.equal(torch.cat(list(rows)), torch.from_numpy(truth()))


def test_documents_are_put_together_again(store: Store) -> None:
    documents = list(store.by_document("x"))
    assert [d.number for d in documents] == list(range(50))
    for d in documents:
        assert d.positions.tolist() == list(range(100))
        assert torch.equal(d.values, torch.from_numpy(truth())[d.rows])
        assert torch.equal(d.tokens, d.rows)


def test_statistics_against_numpy_in_float64(store: Store, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats_module, "_CHUNK_BYTES", 8 * WIDTH * 333)
    x = truth().astype(np.float64)
    found = store.stats("x", covariance=True)
    close = {"rtol": 1e-12, "atol": 1e-12}
    np.testing.assert_allclose(found.mean, x.mean(0), **close)
    np.testing.assert_allclose(found.std, x.std(0), **close)
    np.testing.assert_allclose(found.covariance, np.cov(x.T, bias=True), **close)
    np.testing.assert_allclose(found.quantiles, np.quantile(x, stats_module.QUANTILES, axis=0), **close)
    norms = np.linalg.norm(x, axis=1)
    np.testing.assert_allclose(found.norm_mean, norms.mean(), rtol=1e-12)
    np.testing.assert_allclose(found.norm_quantiles, np.quantile(norms, stats_module.QUANTILES), **close)
    monkeypatch.setattr(stats_module, "_compute", None)  # from here on only what was kept can answer
    assert torch.equal(Store.open(path).stats("x").mean, found.mean)
    next((path / "stats").iterdir()).write_bytes(b"damaged")
    with pytest.raises(TypeError):
        store.stats("x")


def test_top_finds_the_rows_and_their_text(store: Store) -> None:
    direction = torch.randn(WIDTH, generator=torch.Generator().manual_seed(0))
    x = torch.from_numpy(truth())
    hits = store.top("x", direction, k=7, context=3)
    want = (x @ direction).topk(7)
    assert [h.row for h in hits] == want.indices.tolist()
    np.testing.assert_allclose([h.score for h in hits], want.values, rtol=1e-5)
    for h in hits:
        assert len(h.before) == min(3, h.pos)
        assert len(h.after) == min(3, 99 - h.pos)
        assert h.token == h.row
    across = store.top("x", lambda rows: -(rows - x[49]).abs().sum(1), k=1, context=3)[0]
    assert (across.doc, across.pos, across.after) == (0, 49, [2500, 2501, 2502])  # the next piece lies elsewhere
    with pytest.raises(ShapeError, match=r"rows of 'x' have \(24,\)"):
        store.top("x", torch.zeros(3))


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_remote_stores_read_the_same(scheme: str, path: Path) -> None:
    url = f"file://{path}"
    if scheme == "memory":
        url, fs = "memory://remote/s", fsspec.filesystem("memory")
        for p in path.rglob("*"):
            if p.is_file() and p.stat().st_size:
                fs.pipe_file(f"/remote/s/{p.relative_to(path)}", p.read_bytes())
    x = torch.from_numpy(truth())
    store = Store.open(url, cache_bytes=1 << 17)
    assert torch.equal(store["x"][:], x)
    index = np.random.default_rng(0).integers(0, ROWS, 300)
    assert torch.equal(store["x"][index], x[index])
    assert torch.equal(store["h"][700:900], x[700:900].reshape(-1, 4, 6).bfloat16())
    assert store.verify().rows == ROWS
    assert store.stats("x").rows == ROWS
    assert torch.equal(next(store.batches("x", 512, seed=3)), next(Store.open(path).batches("x", 512, seed=3)))
    with pytest.raises(StoreError, match="no store here"):
        Store.open(url + "/nothing")
    if scheme == "memory":
        shard = "/remote/s/data/w-000000.c01.act"
        data = bytearray(fs.cat_file(shard))
        data[5000] ^= 1
        fs.pipe_file(shard, bytes(data))
        with pytest.raises(CorruptStore, match="does not match its checksum"):
            Store.open(url)["x"][:50]


def test_mixing_is_refused_with_what_differs(path: Path, tmp_path: Path) -> None:
    shutil.copytree(path, tmp_path / "s")
    columns = (Column("x", "float32", (WIDTH,)), Column("h", "bfloat16", (4, 6)), Column("q", "int8", (WIDTH,)))
    with pytest.raises(FingerprintMismatch, match="made: up against down"):
        StoreWriter(tmp_path / "s", columns, {"made": "down"}, resume=True)
    with pytest.raises(FingerprintMismatch, match=r"column x: .*'float32'.* against .*'float16'"):
        StoreWriter(tmp_path / "s", (Column("x", "float16", (WIDTH,)), *columns[1:]), {"made": "up"}, resume=True)
    with pytest.raises(StoreError, match="resume=True"):
        StoreWriter(tmp_path / "s", columns, {"made": "up"})
    with StoreWriter(tmp_path / "s", columns, {"made": "up"}, resume=True) as out:
        with pytest.raises(FingerprintMismatch, match="not those that were recorded"):
            any(not out.has(b"other data") for _ in range(1 + ROWS // 50))
        out.abort()


def test_dropping_a_site_and_adding_it_again(path: Path, tmp_path: Path) -> None:
    shutil.copytree(path, tmp_path / "s")
    size = sum(p.stat().st_size for p in (tmp_path / "s" / "data").iterdir())
    drop_site(tmp_path / "s", "q")
    assert sum(p.stat().st_size for p in (tmp_path / "s" / "data").iterdir()) < size
    before, after = compact(tmp_path / "s")
    assert after <= before + 200
    store = Store.open(tmp_path / "s")
    store.verify()
    assert store.sites == ["x", "h"]
    with StoreWriter(tmp_path / "s", (Column("q", "float32", (1,)),), {"made": "up"}, resume=True) as out:
        for at in range(0, ROWS, 50):
            piece, doc = (at // 50) // 50, (at // 50) % 50
            token, pos = np.arange(at, at + 50), np.arange(50) + 50 * piece
            out.append({"q": token[:, None].astype(np.float32)}, token=token, pos=pos, doc=doc)
    store.refresh()
    assert store["q"][:].reshape(-1).tolist() == list(range(ROWS))
    assert store.is_complete
    delete(tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_int8_rows_keep_their_promise(tmp_path: Path) -> None:
    x = torch.randn(100, 33) * torch.logspace(-20, 20, 100)[:, None]
    x[3], x[4, 2], x[5, 1] = 0, torch.nan, torch.inf
    with StoreWriter(tmp_path / "s", (Column("x", "int8", (33,)),), {}) as out:
        out.append({"x": x})
    got = Store.open(tmp_path / "s")["x"][:]
    fine = torch.isfinite(x).all(1)
    bound = x[fine].abs().amax(1, keepdim=True) / 254 * 1.0001
    assert ((got[fine] - x[fine]).abs() <= bound).all()
    assert torch.isnan(got[~fine]).all()
    assert (got[3] == 0).all()


def test_float16_overflow_is_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "s", (Column("x", "float16", (2,)),), {}, part_bytes=200) as out:
        out.append({"x": torch.ones(50, 2)})
        with pytest.raises(StoreError, match="do not fit float16"):
            out.append({"x": torch.full((5, 2), 1e6)})
        out.abort()
    assert Store.open(tmp_path / "s").n_rows == 50


def test_rows_of_another_shape_are_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(ShapeError, match=r"expected \(5, 2\)"),
        StoreWriter(tmp_path / "s", (Column("x", "float16", (2,)),), {}) as out,
    ):
        out.append({"x": torch.ones(5, 3)})
    with pytest.raises(InputError, match="batch_size is 0"):
        next(_batches(tmp_path))


def _batches(tmp_path: Path) -> Iterator[Tensor]:
    with StoreWriter(tmp_path / "t", (Column("x", "float16", (2,)),), {}) as out:
        out.append({"x": torch.ones(5, 2)})
    yield from Store.open(tmp_path / "t").batches("x", 0)


def test_export_to_safetensors(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import load_file

    monkeypatch.setattr("interneuron.store.export._CHUNK_BYTES", 300_000)
    export(store, tmp_path / "e", "safetensors", ["x", "h"])
    files = [load_file(p) for p in sorted((tmp_path / "e").glob("*.safetensors"))]
    assert len(files) > 2
    assert torch.equal(torch.cat([f["x"] for f in files]), torch.from_numpy(truth()))
    assert torch.equal(torch.cat([f["h"] for f in files]), store["h"][:])
    assert torch.cat([f["tokens"] for f in files]).tolist() == list(range(ROWS))
    with pytest.raises(StoreError, match="not empty"):
        export(store, tmp_path / "e", "safetensors")
    with pytest.raises(StoreError, match="expected safetensors, parquet, saelens"):
        export(store, tmp_path / "f", "csv")


def test_export_to_parquet(store: Store, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    export(store, tmp_path / "e", "parquet")
    table = parquet.read_table(tmp_path / "e" / "rows.parquet", page_checksum_verification=True)
    assert table.column_names == ["token", "pos", "doc", "x", "h", "q"]
    got = table["x"].combine_chunks().flatten().to_numpy().reshape(ROWS, WIDTH)
    assert (got == truth()).all()
    assert table["token"].to_pylist() == list(range(ROWS))


def test_export_to_the_layout_of_saelens(store: Store, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    export(store, tmp_path / "e", "saelens", ["x"])
    made = datasets.load_from_disk(str(tmp_path / "e")).with_format("numpy")
    assert set(made.column_names) == {"x", "token_ids"}
    assert len(made) == 100
    for context in made.select(range(3)):
        assert (context["x"] == truth()[context["token_ids"]]).all()
    assert (tmp_path / "e" / "cache_activations_runner_cfg.json").exists()


@pytest.mark.parametrize(
    ("site", "hook"),
    [
        ("layers.3.resid_post", "blocks.3.hook_resid_post"),
        ("layers.0.attn.z", "blocks.0.attn.hook_z"),
        ("layers.11.mlp.hidden", "blocks.11.mlp.hook_post"),
        ("embed", "hook_embed"),
        ("conv.2.out", "conv.2.out"),
    ],
)
def test_sites_have_the_names_saelens_expects(site: str, hook: str) -> None:
    assert hook_name(site) == hook


def test_open_is_instant_with_a_hundred_shards(tmp_path: Path, unchecked: None) -> None:
    import time

    with StoreWriter(tmp_path / "s", (Column("x", "float32", (8,)),), {}, part_bytes=480) as out:
        for i in range(100):
            out.append({"x": torch.full((10, 8), float(i))})
    times = []
    for _ in range(7):
        start = time.process_time()
        opened = Store.open(tmp_path / "s")
        times.append(time.process_time() - start)
    assert len(opened._manifest.parts) == 100
    # 5 ms is the figure on a quiet machine (see the benchmark); CPU time on a busy one may be a few times that.
    assert min(times) < 0.02

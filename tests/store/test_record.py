"""`record` from end to end: what is read back is what flowed, bit for bit, through real models and small ones."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from store_crash import tree
from store_resnet import ResNet20
from torch import Tensor, nn

import interneuron as inn
from interneuron.core.errors import FingerprintMismatch, InputError, ShapeError, StoreError
from interneuron.model.load import load_model, wrap
from interneuron.store import Store, record

SOURCE = Path(__file__).resolve().parent.parent.parent / "src"


class Words:
    """A tokenizer of words with a fixed vocabulary of 50 by length."""

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [(len(w) * 7 + ord(w[0])) % 50 for w in text.split()]}

    def get_vocab(self) -> dict[str, int]:
        return {"words": 50}


class Tiny(nn.Module):
    """Embedding, two mixing layers, a head; module paths are its sites."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(50, 12)
        self.mix = nn.GRU(12, 12, batch_first=True)
        self.head = nn.Linear(12, 50)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(self.embed(ids))[0]))


@pytest.fixture
def tiny() -> Any:
    return wrap(Tiny().eval(), Words())


def texts() -> list[str]:
    rng = random.Random(0)
    return [" ".join("abcdefgh"[: rng.randrange(1, 9)] for _ in range(rng.randrange(0, 40))) for _ in range(60)]


SITES = ["embed:out", "head:in"]


def check_against_forwards(model: Any, store: Store, n: int, seed: int = 0) -> None:
    """`n` random rows against a forward pass of the batch that made them."""
    rng = random.Random(seed)
    for _ in range(n):
        row, site = rng.randrange(store.n_rows), rng.choice(store.sites)
        replay = store.replay(row)
        with torch.no_grad(), model.read(site) as acts:
            model(replay.tokens)
        assert torch.equal(acts[site][replay.sequence, replay.position], store[site][row]), (row, site)
        assert replay.tokens[replay.sequence, replay.position] == store.tokens[row]


def test_texts_of_many_lengths(tiny: Any, tmp_path: Path) -> None:
    data = texts()
    store = record(tiny, data, SITES, tmp_path / "s", batch_size=4, seq_len=16)
    assert store.is_complete
    ids = [tiny.tokenizer(t)["input_ids"] for t in data]
    assert store.n_rows == sum(map(len, ids))
    for d in store.by_document("head:in"):
        assert d.tokens.tolist() == ids[d.number]
        assert d.positions.tolist() == list(range(len(ids[d.number])))
    check_against_forwards(tiny, store, 60)


def test_rows_equal_passes_of_single_documents_with_batches_of_one(tiny: Any, tmp_path: Path) -> None:
    data = [t for t in texts() if t]
    store = record(tiny, data, SITES, tmp_path / "s", batch_size=1, seq_len=64)
    with torch.no_grad(), tiny.read("head:in") as acts:
        for d in store.by_document("head:in"):
            tiny(d.tokens[None])
            assert torch.equal(acts["head:in"][0], d.values)


@pytest.mark.parametrize("form", ["tokens", "token lists", "file", "numpy"])
def test_kinds_of_data(form: str, tiny: Any, tmp_path: Path) -> None:
    ids = torch.randint(0, 50, (9, 20), generator=torch.Generator().manual_seed(0))
    data: Any = {"tokens": ids, "token lists": ids.tolist(), "numpy": ids.numpy()}.get(form)
    if form == "file":
        data = tmp_path / "text.txt"
        data.write_text("\n".join(texts()))
        ids = torch.tensor(Words()(data.read_text())["input_ids"])[None]
    store = record(tiny, data, SITES, tmp_path / "s", seq_len=8)
    assert store.n_rows == ids.numel()
    assert torch.cat([d.tokens for d in store.by_document("embed:out")]).tolist() == ids.flatten().tolist()
    check_against_forwards(tiny, store, 20)


def test_resume_ends_byte_identical(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"batch_size": 4, "seq_len": 16, "part_bytes": 8000}
    record(tiny, texts(), SITES, tmp_path / "whole", **options)
    whole = Store.open(tmp_path / "whole")
    assert len(whole._manifest.parts) > 4
    run, left = type(tiny).run, [0]

    def interrupted(self: Any, *args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return run(self, *args, **kwargs)

    monkeypatch.setattr(type(tiny), "run", interrupted)
    for stop in (9, 8, 9):
        left[0] = stop
        with pytest.raises(KeyboardInterrupt):
            record(tiny, texts(), SITES, tmp_path / "s", resume=True, **options)
    monkeypatch.setattr(type(tiny), "run", run)
    with pytest.raises(StoreError, match="resume=True"):
        record(tiny, texts(), SITES, tmp_path / "s", **options)
    record(tiny, texts(), SITES, tmp_path / "s", resume=True, **options)
    assert tree(str(tmp_path / "s")) == tree(str(tmp_path / "whole"))
    record(tiny, texts(), SITES, tmp_path / "s", resume=True, **options)  # nothing left to do, nothing changed
    assert tree(str(tmp_path / "s")) == tree(str(tmp_path / "whole"))


def test_a_site_is_added_without_touching_the_others(tiny: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"batch_size": 4, "seq_len": 16, "part_bytes": 8000}
    record(tiny, texts(), ["embed:out"], tmp_path / "s", **options)
    before = tree(str(tmp_path / "s" / "data"))
    with pytest.raises(FingerprintMismatch, match=r"data\.sha256"):
        record(tiny, texts()[:-1], ["head:in"], tmp_path / "s", **options)
    with pytest.raises(FingerprintMismatch, match="batch_size: 4 against 5"):
        record(tiny, texts(), ["head:in"], tmp_path / "s", **{**options, "batch_size": 5})
    store = record(tiny, texts(), ["head:in"], tmp_path / "s", **options)
    assert store.sites == SITES
    assert store.is_complete
    after = tree(str(tmp_path / "s" / "data"))
    assert before.items() <= after.items()
    check_against_forwards(tiny, store, 40)


def test_another_model_is_refused(tiny: Any, tmp_path: Path) -> None:
    record(tiny, texts(), SITES, tmp_path / "s", part_bytes=8000)
    with torch.no_grad():
        tiny.module.head.weight[0, 0] += 1
    with pytest.raises(FingerprintMismatch, match=r"model\.weights"):
        record(tiny, texts(), SITES, tmp_path / "s", resume=True, part_bytes=8000)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8", torch.float32])
def test_dtypes(dtype: Any, tiny: Any, tmp_path: Path) -> None:
    exact = record(tiny, texts(), SITES, tmp_path / "exact")
    store = record(tiny, texts(), SITES, tmp_path / "s", dtype=dtype)
    for site in store.sites:
        got, want = store[site][:], exact[site][:]
        if dtype == "int8":
            assert (got - want).abs().max() <= want.abs().max() / 254 * 1.001
        else:
            assert torch.equal(got, want.to(got.dtype))


def test_two_writers_share_a_store(tiny: Any, tmp_path: Path) -> None:
    for k in range(2):
        record(tiny, texts(), SITES, tmp_path / "s", writer=(k, 2), batch_size=4)
    store = Store.open(tmp_path / "s")
    ids = [tiny.tokenizer(t)["input_ids"] for t in texts()]
    assert {d.number: d.tokens.tolist() for d in store.by_document("embed:out")} == {
        i: t for i, t in enumerate(ids) if t
    }
    check_against_forwards(tiny, store, 30)


def test_images_of_any_layer(tmp_path: Path) -> None:
    model = wrap(ResNet20().eval())
    images = torch.rand(21, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    sites = ["layer1.0.conv1:out", "layer3.2:out", "linear:in"]
    store = record(model, images, sites, tmp_path / "s", batch_size=8)
    assert store.n_rows == 21
    assert store["layer3.2:out"].shape == (21, 64, 8, 8)
    with torch.no_grad(), model.read(*sites) as acts:
        for at in range(0, 21, 8):
            model(images[at : at + 8])
            for site in sites:
                assert torch.equal(acts[site], store[site][at : at + 8])


def test_a_folder_of_images(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 255, (5, 8, 8, 3), np.uint8)
    (tmp_path / "in").mkdir()
    for i, p in enumerate(pixels):
        image.fromarray(p).save(tmp_path / "in" / f"{i}.png")
    model = wrap(nn.Sequential(nn.Conv2d(3, 4, 3)).eval())
    store = record(model, tmp_path / "in", ["0:in"], tmp_path / "s")
    want = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    assert torch.equal(store["0:in"][:], want)


def test_what_cannot_be_recorded_is_named(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file or folder"):
        record(tiny, "no such text", SITES, tmp_path / "s")
    with pytest.raises(InputError, match="no rows"):
        record(tiny, [""], SITES, tmp_path / "s")
    with pytest.raises(ShapeError, match="no row per token"):
        record(tiny, texts(), ["mix:out.1"], tmp_path / "s")
    tiny.module.train()
    with pytest.raises(InputError, match="training mode"):
        record(tiny, texts(), SITES, tmp_path / "s")
    assert not (tmp_path / "s" / "manifest.log").exists()


def test_command_line(tmp_path: Path, shared_data: Path) -> None:
    text = tmp_path / "t.txt"
    text.write_text((shared_data / "text" / "tiny-shakespeare.txt").read_text()[:5000])
    model, out = str(shared_data / "models" / "tinystories-260k"), str(tmp_path / "s")
    told = command("record", model, "--data", str(text), "--sites", "layers.0-1.resid_post,embed", "--out", out)
    assert "rows of 3 sites" in told
    assert "complete" in command("store", "info", out)
    assert "every byte as it was written" in command("store", "verify", out)
    assert "layers.1.resid_post" in command("store", "stats", out)
    assert "wrote safetensors" in command("store", "export", out, "--out", str(tmp_path / "e"))
    shard = tmp_path / "s" / "data" / "w-000000.c01.act"
    data = bytearray(shard.read_bytes())
    data[5000] ^= 1
    shard.write_bytes(data)
    assert "does not match its checksum" in command("store", "verify", out, code=1)
    assert "--yes" in command("store", "delete", out, code=1)
    command("store", "delete", out, "--yes")
    assert not Path(out).exists()


def command(*args: str, code: int = 0) -> str:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SOURCE)}
    run = [sys.executable, "-m", "interneuron.cli.main", *args]
    done = subprocess.run(run, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr[-2000:]
    return done.stdout + done.stderr


def test_shakespeare_through_a_language_model_bit_for_bit(shared_data: Path, tmp_path: Path) -> None:
    """500 random (document, position, site) against a direct pass; the whole text, the sites of all layers."""
    model = load_model(shared_data / "models" / "tinystories-260k")
    text = shared_data / "text" / "tiny-shakespeare.txt"
    sites = ["layers.*.resid_post", "layers.*.mlp.hidden"]
    store = inn.record(model, text, sites, tmp_path / "s", seq_len=128, batch_size=4)
    assert len(store.sites) == 10
    ids = model.tokenizer(text.read_text(), verbose=False)["input_ids"]
    assert store.n_rows == len(ids)
    order = np.argsort(store.keys()["pos"])  # one document: its position is its place in the text
    assert (store.keys()["token"][order] == ids).all()
    rng = random.Random(0)
    for _ in range(500):
        pos, site = rng.randrange(len(ids)), rng.choice(store.sites)
        row = int(order[pos])
        replay = store.replay(row)
        acts = model.run(replay.tokens, read=[site]).acts
        assert torch.equal(acts[site][replay.sequence, replay.position], store[site][row]), (pos, site)


def test_cifar_through_a_resnet_bit_for_bit(shared_data: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    module = ResNet20()
    folder = shared_data / "models" / "cifar10-resnet20"
    module.load_state_dict(load_file(next(folder.glob("*.safetensors"))))
    model = wrap(module.eval())
    with np.load(shared_data / "images" / "cifar10-test-2000.npz") as data:
        images, labels = torch.from_numpy(data["images"][:400]), torch.from_numpy(data["labels"][:400])
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    inputs = ((images / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()
    sites = ["layer1.2:out", "layer2.2:out", "layer3.2:out", "linear:in", "linear:out"]
    store = inn.record(model, inputs, sites, tmp_path / "s", batch_size=10)
    assert (store["linear:out"][:].argmax(1) == labels).float().mean() > 0.75  # a real model on real images
    rng = random.Random(0)
    for _ in range(500):
        doc, site = rng.randrange(400), rng.choice(sites)
        start = doc // 10 * 10
        acts = model.run(inputs[start : start + 10], read=[site]).acts
        assert store.documents[doc] == doc
        assert torch.equal(acts[site][doc - start], store[site][doc]), (doc, site)

"""Files written by the real foreign packages (benchmarks/foreign/) give the features and outputs those computed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import interneuron as inn
from interneuron.artifacts import Dictionary, formats
from interneuron.artifacts.temporal import TemporalDictionary
from interneuron.core.errors import ArtifactError
from interneuron.core.files import load_tensors

HERE = Path(__file__).parent / "foreign"
WEIGHTS = ("sae_weights.safetensors", "sae.safetensors", "ae.pt")
FOLDERS = sorted(p.parent for p in HERE.rglob("*") if p.name in WEIGHTS)


@pytest.mark.parametrize("folder", FOLDERS, ids=[str(p.relative_to(HERE)) for p in FOLDERS])
def test_what_the_package_computed(folder, tmp_path):
    tool = folder.relative_to(HERE).parts[0]
    expected = load_tensors(folder / "expected.safetensors")
    x = expected["x"]
    found = formats.read(folder, **({"heads": x.shape[1]} if folder.name.endswith("hook_z") else {}))
    assert found.format == tool
    d = found.value
    assert isinstance(d, TemporalDictionary if folder.name.startswith("temporal") else Dictionary)
    features = expected["features"]
    if tool == "llamascopium" and any("folded" in note for note in found.notes):
        features = features * load_tensors(folder / WEIGHTS[0])["W_D"].norm(
            dim=1
        )  # it gives h_i where it chose |d_i| h_i
    torch.testing.assert_close(d.encode(x), features, atol=1e-6, rtol=1e-6)
    output = d.reconstruct(x).reshape(x.shape) if d.heads else d.reconstruct(x)
    torch.testing.assert_close(output, expected["output"], atol=2e-6, rtol=1e-6)
    assert d.site == (
        "layers.1.attn.z"
        if d.heads
        else "layers.1.mlp.out"
        if "groupmax" in str(folder)
        else "layers.1.norm2"
        if d.target and tool in ("sparsify", "llamascopium")
        else "layers.1.resid_post"
    )
    if tool != "llamascopium" and not any("folded" in note or "set to 0" in note for note in found.notes):
        again = formats.write(d, tmp_path / folder.name, tool)
        for name in WEIGHTS:
            if (folder / name).exists() and name != "ae.pt":
                ours, theirs = load_tensors(again / name), load_tensors(folder / name)
                assert ours.keys() == theirs.keys()
                assert all(torch.equal(ours[key], theirs[key]) for key in ours)
            elif (folder / name).exists():
                ours, theirs = (torch.load(p / name, weights_only=True) for p in (again, folder))
                assert ours.keys() == theirs.keys()
                assert all(torch.equal(ours[key], theirs[key]) and ours[key].dtype == theirs[key].dtype for key in ours)


def test_all_packages_are_there_and_small():
    assert {p.relative_to(HERE).parts[0] for p in FOLDERS} == {
        "saelens", "sparsify", "dictionary_learning", "llamascopium",
    }  # fmt: skip
    assert len(FOLDERS) >= 34
    assert sum(p.stat().st_size for p in HERE.rglob("*") if p.is_file()) <= 200_000


@pytest.mark.parametrize("name", ["relu", "jumprelu_skip", "set", "clt"])
def test_what_circuit_tracer_computed(name, tmp_path):
    folder = HERE / "circuit_tracer" / name
    expected = load_tensors(folder / "expected.safetensors")
    several = (folder / "config.yaml").exists()
    found = formats.read(folder if several else folder / "layer_1.safetensors").value
    x = expected["x"]
    if name == "set":
        pairs = list(zip(found.values(), x, strict=True))
        features, output = (torch.stack([getattr(m, verb)(y) for m, y in pairs]) for verb in ("encode", "reconstruct"))
        assert [m.site for m in found.values()] == ["layers.0.resid_mid", "layers.1.resid_mid"]
    elif name == "clt":
        features, output = torch.stack(found.encode(list(x))), torch.stack(found.reconstruct(list(x)))
        assert found.targets == ("layers.0.mlp.contribution", "layers.1.mlp.contribution")
    else:
        features, output = found.encode(x), found.reconstruct(x)
        assert (found.site, found.target) == ("layers.1.norm2", "layers.1.mlp.contribution")
    torch.testing.assert_close(features, expected["features"], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(output, expected["output"], atol=2e-6, rtol=1e-6)
    formats.write(found, tmp_path / ("out" if several else "layer_1.safetensors"), "circuit_tracer")
    for file in sorted(folder.glob("[lW]*.safetensors")):
        ours, theirs = load_tensors(tmp_path / ("out" if several else "") / file.name), load_tensors(file)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_control_vector_by_the_gguf_package():
    pytest.importorskip("gguf")
    found = formats.read(HERE / "gguf" / "control.gguf").value
    expected = load_tensors(HERE / "gguf" / "expected.safetensors")
    assert found.site == ("layers.1.resid_post", "layers.2.resid_post", "layers.5.resid_post")
    assert torch.equal(found.vector, torch.stack([expected[f"direction.{n}"] for n in (1, 2, 5)]))


def test_lm_evals_own_hooks_and_our_edits_give_the_same_logits():
    from transformers import LlamaConfig, LlamaForCausalLM

    expected = load_tensors(HERE / "lm_eval" / "expected.safetensors")
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    module = LlamaForCausalLM(config).eval()
    weights = {name.removeprefix("model."): value for name, value in expected.items() if name.startswith("model.")}
    module.load_state_dict(weights)
    model = inn.wrap(module)
    edits = formats.read(HERE / "lm_eval" / "steer.pt").value
    with torch.no_grad(), model.edit(edits):
        steered = model(expected["ids"]).logits
    with torch.no_grad():
        plain = model(expected["ids"]).logits
    torch.testing.assert_close(steered, expected["logits"], atol=1e-5, rtol=1e-5)
    assert float((plain - steered).abs().max()) > 0.01


def test_activations_cached_by_saelens_become_a_store(tmp_path):
    pytest.importorskip("datasets")
    folder = HERE / "saelens_cache"
    expected = load_tensors(folder / "expected.safetensors")
    found = formats.read(folder / "cache")
    assert found.format == "saelens_activations"
    site, rows = "layers.0.resid_post", expected["blocks.0.hook_resid_post"]
    torch.testing.assert_close(
        found.value[site], rows, atol=1e-6, rtol=1e-6
    )  # its runner and a plain pass of its model
    store = found.value.to_store(tmp_path / "store")
    assert torch.equal(store[site][:].reshape(rows.shape), found.value[site])
    assert torch.equal(store.tokens[:].reshape(rows.shape[:2]).long(), expected["tokens"])
    again = formats.read(formats.write(store, tmp_path / "again", "saelens_activations")).value
    assert torch.equal(again[site], found.value[site])
    assert torch.equal(again["token_ids"], found.value["token_ids"])


def test_a_damaged_cache_is_refused(tmp_path):
    pytest.importorskip("datasets")
    for name, change in {
        "state.json": lambda b: b[:20], "dataset_info.json": lambda b: b[:-30], "data-00001-of-00002.arrow": None,
        "data-00000-of-00002.arrow": lambda b: b[:-700],
    }.items():  # fmt: skip
        home = tmp_path / name.split(".")[0]
        shutil.copytree(HERE / "saelens_cache" / "cache", home)
        file = home / name
        file.write_bytes(change(file.read_bytes())) if change else file.unlink()
        with pytest.raises(ArtifactError) as caught:
            formats.read(home).value["layers.0.resid_post"]
        assert "\n" not in str(caught.value)


def test_latents_cached_by_delphi_become_a_store(tmp_path):
    from interneuron.artifacts.formats.activation_stores import latents_from_store, store_from_latents

    folder = HERE / "delphi"
    expected = load_tensors(folder / "expected.safetensors")
    found = formats.read(folder / "model.layers.1.mlp").value
    assert torch.equal(found.dense(), expected["dense"].half())
    assert torch.equal(found.tokens, expected["tokens"])
    assert found.site == "layers.1.mlp.out"
    store = store_from_latents(found, tmp_path / "store", dtype="float16")
    assert torch.equal(latents_from_store(store).dense(), found.dense())
    again = formats.write(latents_from_store(store).replace(ranges=found.ranges), tmp_path / "out", "delphi")
    for file in sorted((folder / "model.layers.1.mlp").glob("*.safetensors")):
        ours, theirs = load_tensors(again / file.name), load_tensors(file)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[k], theirs[k]) and ours[k].dtype == theirs[k].dtype for k in ours)

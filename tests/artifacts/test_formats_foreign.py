"""Files written by the real foreign packages (benchmarks/foreign/) give the features and outputs those computed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import interneuron as inn
from interneuron.artifacts import Dictionary, formats
from interneuron.core.files import load_tensors

HERE = Path(__file__).parent / "foreign"
WEIGHTS = ("sae_weights.safetensors", "sae.safetensors", "ae.pt")
FOLDERS = sorted(p.parent for p in HERE.rglob("*") if p.name in WEIGHTS)


@pytest.mark.parametrize("folder", FOLDERS, ids=[str(p.relative_to(HERE)) for p in FOLDERS])
def test_what_the_package_computed(folder, tmp_path):
    tool = folder.relative_to(HERE).parts[0]
    found = formats.read(folder)
    assert found.format == tool
    expected = load_tensors(folder / "expected.safetensors")
    x, d = expected["x"], found.value
    assert isinstance(d, Dictionary)
    torch.testing.assert_close(d.encode(x), expected["features"], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(d.reconstruct(x), expected["output"], atol=2e-6, rtol=1e-6)
    assert d.site == (
        "layers.1.mlp.out"
        if "groupmax" in str(folder)
        else "layers.1.norm2"
        if d.target and tool == "sparsify"
        else "layers.1.resid_post"
    )
    if not any("folded" in note for note in found.notes):
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
    assert {p.relative_to(HERE).parts[0] for p in FOLDERS} == {"saelens", "sparsify", "dictionary_learning"}
    assert len(FOLDERS) >= 23
    assert sum(p.stat().st_size for p in HERE.rglob("*") if p.is_file()) <= 200_000


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

"""`interneuron convert` and `inspect`."""

from __future__ import annotations

from pathlib import Path

import pytest
from foreign_cases import random_dictionary
from typer.testing import CliRunner

from interneuron.artifacts import formats, load_artifact
from interneuron.cli.main import app
from interneuron.core.errors import InputError

FOREIGN = Path(__file__).parents[1] / "artifacts" / "foreign"


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=True)


def test_from_one_tool_to_another_and_to_our_own(tmp_path):
    source = formats.write(random_dictionary("topk", center=True), tmp_path / "layers.1", "sparsify")
    done = run("convert", source, tmp_path / "lens", "--to", "saelens", "--option", "model_name=tiny")
    assert done.exit_code == 0, done.output
    assert "(sparsify) ->" in done.output
    assert formats.detect(tmp_path / "lens").name == "saelens"
    assert run("convert", tmp_path / "lens", tmp_path / "own", "--to", "interneuron").exit_code == 0
    assert load_artifact(tmp_path / "own").activation == "topk"
    assert run("convert", tmp_path / "own", tmp_path / "back" / "layers.1", "--to", "sparsify").exit_code == 0
    assert (tmp_path / "back" / "layers.1" / "sae.safetensors").read_bytes() == (
        source / "sae.safetensors"
    ).read_bytes()


def test_what_exists_is_not_replaced_and_mistakes_are_taught(tmp_path):
    source = formats.write(random_dictionary(), tmp_path / "a", "saelens")
    for arguments, match in [
        ((source, source, "--to", "saelens"), "exists"),
        ((source, tmp_path / "b", "--to", "gguff"), "Did you mean 'gguf'"),
        ((source, tmp_path / "b", "--to", "saelens", "--option", "x"), "NAME=VALUE"),
        ((source, tmp_path / "b", "--to", "saelens", "--model", "m"), "both"),
    ]:
        done = run("convert", *arguments)
        assert isinstance(done.exception, InputError)
        assert match in str(done.exception)
    assert not (tmp_path / "b").exists()


def test_a_cache_of_activations_becomes_a_store_and_goes_back(tmp_path):
    pytest.importorskip("datasets")
    cache = FOREIGN / "saelens_cache" / "cache"
    assert run("convert", cache, tmp_path / "store", "--to", "interneuron").exit_code == 0
    assert "a store of 24 rows" in run("inspect", tmp_path / "store").output
    assert run("convert", tmp_path / "store", tmp_path / "back", "--to", "saelens_activations").exit_code == 0
    assert formats.detect(tmp_path / "back").name == "saelens_activations"


def test_latents_become_a_store_and_go_back(tmp_path):
    latents = FOREIGN / "delphi" / "model.layers.1.mlp"
    assert run("convert", latents, tmp_path / "store", "--to", "store").exit_code == 0
    assert run("convert", tmp_path / "store", tmp_path / "layers.1.mlp", "--to", "delphi").exit_code == 0
    again = formats.read(tmp_path / "layers.1.mlp").value
    assert again.dense().equal(formats.read(latents).value.dense().float())
    source = formats.write(random_dictionary(), tmp_path / "a", "saelens")
    assert "a store holds" in str(run("convert", source, tmp_path / "b", "--to", "store").exception)


def test_inspect_says_what_it_is(tmp_path):
    source = formats.write(random_dictionary(), tmp_path / "a", "saelens")
    done = run("inspect", source)
    assert done.exit_code == 0, done.output
    for text in ("saelens", "W_enc", "[12, 24]", "not checked"):
        assert text in done.output
    (source / "sae_weights.safetensors").write_bytes(b"PK\x03\x04" + b"0" * 40)
    broken = run("inspect", source)
    assert "problem" in broken.output
    assert "reading it fails" in broken.output


@pytest.mark.parametrize("name", ["convert", "inspect"])
def test_help(name):
    done = run(name, "--help")
    assert done.exit_code == 0
    assert f"Example: interneuron {name}" in done.output

"""`interneuron sites` and `interneuron steer`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from interneuron.artifacts import load_artifact
from interneuron.cli.main import app
from interneuron.cli.model import scaled_direction, texts_of
from interneuron.cli.tour import open_model
from interneuron.core.errors import InputError, SiteNotFound

WIDE = {"COLUMNS": "160", "NO_COLOR": "1", "TERM": "dumb"}


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments), env=WIDE)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def test_sites_in_groups_by_pattern_and_as_json(world_model: Path) -> None:
    grouped = run("sites", str(world_model))
    assert "layers.N.attn.pattern" in grouped
    assert "batch, head, query, key" in grouped
    assert "layers.0." not in grouped
    listed = run("sites", str(world_model), "layers.1.attn.*")
    assert "layers.1.attn.z" in listed
    assert "layers.0.attn.z" not in listed
    found = json.loads(run("sites", str(world_model), "layers.*.mlp.hidden", "--json"))
    assert [site["name"] for site in found] == ["layers.0.mlp.hidden", "layers.1.mlp.hidden"]
    assert found[0]["path"].endswith("mlp.down_proj:in")
    with pytest.raises(SiteNotFound):
        run("sites", str(world_model), "layers.7.nothing")


def test_steer_prints_the_control_and_saves(world_model: Path, tmp_path: Path) -> None:
    positive = tmp_path / "good.txt"
    positive.write_text("she felt glad .\n\nhe felt proud .\n")
    out = run(
        "steer", str(world_model), "--positive", str(positive), "--negative", "she felt sad .", "--prompt",
        "she felt", "--max-new-tokens", "4", "--save", str(tmp_path / "direction"),
    )  # fmt: skip
    for label in ("no edit", "towards positive", "towards negative", "random push 1", "2 positive and 1 negative"):
        assert label in out
    saved = load_artifact(tmp_path / "direction")
    again = scaled_direction(
        open_model(str(world_model)), texts_of("p", [str(positive)]), ["she felt sad ."], "layers.1.resid_post"
    )
    assert torch.equal(saved.vector, again.vector)
    assert saved.site == "layers.1.resid_post"


def test_texts_and_files(tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("one\n\n two \n")
    assert texts_of("--positive", ["zero", str(file)]) == ["zero", "one", "two"]
    file.write_bytes(b"\xff")
    with pytest.raises(InputError, match="UTF-8"):
        texts_of("--positive", [str(file)])
    with pytest.raises(InputError, match="holds no text"):
        texts_of("--positive", [" "])

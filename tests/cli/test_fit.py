"""`interneuron fit`: every fitter from its signature alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from plugin import CLAIM, METHOD, write_plugin
from safetensors.torch import save_file
from typer.testing import CliRunner

from interneuron.artifacts import load_artifact
from interneuron.cli.fit import Call, read_columns
from interneuron.cli.main import app
from interneuron.core.cards import Card, find_card
from interneuron.core.errors import InputError, MethodNotFound
from interneuron.loading import load
from interneuron.steer.mean_difference import MeanDifference
from interneuron.testing import cards_of

GLAD, SAD = ["she felt glad .", "he felt proud ."], ["she felt sad .", "he felt angry .", "mia felt sad ."]
SITE = "layers.1.resid_post"


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(a) for a in arguments], env={"NO_COLOR": "1", "TERM": "dumb"})
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    (tmp_path / "glad.txt").write_text("\n".join(GLAD) + "\n\n")
    (tmp_path / "sad.txt").write_text("\n".join(SAD))
    rows = [{"positive": p, "negative": n} for p, n in zip(GLAD, SAD, strict=False)] + [{"negative": SAD[2]}]
    (tmp_path / "pairs.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    (tmp_path / "pairs.json").write_text(json.dumps({"positive": GLAD, "negative": SAD, "site": SITE}))
    return tmp_path


def test_text_files_json_lines_and_json_give_what_python_gives(texts: Path, world_model: Path) -> None:
    expected = MeanDifference(batch_size=2).fit(load(world_model), GLAD, SAD, SITE)
    forms = {
        "files": [
            "--data",
            f"positive={texts / 'glad.txt'}",
            "--data",
            f"negative={texts / 'sad.txt'}",
            "--site",
            SITE,
        ],
        "lines": ["--data", texts / "pairs.jsonl", "--site", SITE],
        "object": ["--data", texts / "pairs.json"],
    }
    for name, form in forms.items():
        made = texts / name
        said = run("fit", "mean_difference", "--model", world_model, *form, "--out", made, "-o", "batch_size=2")
        assert f"saved to {made}" in said
        assert load_artifact(made, model=load(world_model)).same_bits(expected)


def test_several_sites_and_the_last_open_argument(texts: Path, world_model: Path) -> None:
    sites = ("layers.0.resid_post", SITE)
    said = run(
        "fit", "mean_difference", "--model", world_model, "--data", f"positive={texts / 'glad.txt'}", "--data",
        texts / "sad.txt", "--site", sites[0], "--site", sites[1], "--out", texts / "two", "--option", "pos=None",
    )  # fmt: skip
    assert "Direction" in said
    expected = MeanDifference(pos=None).fit(load(world_model), GLAD, SAD, sites)
    assert load_artifact(texts / "two").same_bits(expected)


def test_a_fitter_of_a_plugin_with_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(write_plugin(tmp_path, METHOD, CLAIM)))
    save_file({"x": torch.arange(6.0).reshape(3, 2)}, tmp_path / "x.safetensors")
    monkeypatch.chdir(tmp_path)
    run("fit", "row_centre", "--data", "x.safetensors", "--site", "here")
    assert load_artifact("row_centre").vector.tolist() == [2.0, 3.0]
    with pytest.raises(InputError, match="fits without a model"):
        run("fit", "row_centre", "--data", "x.safetensors", "--model", "lm", "--out", "b")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--option", "batchsize=3"], "no argument or option 'batchsize'. Did you mean 'batch_size'"),
        (["--option", "batch_size"], "is no NAME=VALUE"),
        (["--option", "model=lm"], "Write --model NAME"),
        (["--data", "sad.txt"], "a text file fits one argument, mean_difference takes positive, negative"),
        (["--data", "positive=nothing.txt"], "nothing.txt cannot be read: No such file"),
        (["--data", "bad.jsonl"], "bad.jsonl, line 2 is no JSON"),
        (["--data", "list.json"], "list.json is a list: expected an object"),
        (["--data", "odd.json"], "no argument or option 'postive'. Did you mean 'positive'"),
        (["--data", "pairs.json", "--site", SITE], "'site' was given before"),
        (["--data", "pairs.jsonl"], "needs 'model' (Model), which is missing. Give it with --model NAME"),
        (["--data", "positive=glad.txt", "--model", "lm"], "needs 'negative' (Sequence[str])"),
        (["--data", "pairs.jsonl", "--model", "lm"], "needs 'site' (str | Sequence[str]), which is missing"),
        (["--out", "glad.txt"], "glad.txt exists"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_mistakes_are_taught_before_anything_runs(
    texts: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], match: str
) -> None:
    (texts / "bad.jsonl").write_text('{"positive": "a"}\n{"positive": \n')
    (texts / "list.json").write_text("[1]")
    (texts / "odd.json").write_text('{"postive": ["a"]}')
    monkeypatch.chdir(texts)
    with pytest.raises(InputError) as caught:
        run("fit", "mean_difference", *arguments)
    assert match in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_methods_and_other_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MethodNotFound, match="mean_difference"):
        run("fit", "mean_diference")
    card = find_card("mean_difference")
    other = Card(**{**{n: getattr(card, n) for n in card.__slots__}, "kind": "metric"})
    with pytest.raises(InputError, match="is a metric: expected a fitter"):
        Call(other)


@pytest.mark.parametrize("card", [c for c in cards_of() if c.kind == "fitter"], ids=lambda card: card.slug)
def test_every_fitter_has_a_signature_the_command_understands(card: Card) -> None:
    call = Call(card)
    assert not set(call.options) & set(call.arguments), "an option and an argument of fit share a name"


def test_columns_of_unequal_length(texts: Path) -> None:
    assert read_columns(texts / "pairs.jsonl") == {"positive": GLAD, "negative": SAD}


def test_help_has_an_example_and_is_fast(child_cpu_seconds: Callable[[list[str]], float]) -> None:
    import sys

    assert "interneuron fit mean_difference" in run("fit", "--help")
    command = [sys.executable, "-m", "interneuron.cli.main", "fit", "--help"]
    assert min(child_cpu_seconds(command) for _ in range(3)) < 0.3

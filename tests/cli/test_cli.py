"""The command line: fast help, lazy commands, errors in one line."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from plugin import CLAIM, METHOD, write_plugin

from interneuron.claims.runner import run_claim, stored_result
from interneuron.cli.main import COMMANDS
from interneuron.cli.methods import measured, sections
from interneuron.core.cards import Card, find_card
from interneuron.core.search import search_cards


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    command = [sys.executable, "-m", "interneuron.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=cwd)


def test_help_lists_every_command_and_imports_none() -> None:
    code = (
        "import sys\nfrom interneuron.cli import main\nsys.argv = ['interneuron', '--help']\n"
        "try:\n    main.main()\nexcept SystemExit as done:\n    assert not done.code\n"
        "loaded = [m for m in sys.modules if m.startswith('interneuron.cli.') and m != 'interneuron.cli.main']\n"
        "heavy = {'torch', 'numpy', 'transformers', 'matplotlib'} & set(sys.modules)\n"
        "assert not loaded and not heavy, (loaded, heavy)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS)


def test_help_answers_in_a_third_of_a_second(child_cpu_seconds: Callable[[list[str]], float]) -> None:
    seconds = [child_cpu_seconds([sys.executable, "-m", "interneuron.cli.main", "--help"]) for _ in range(3)]
    assert min(seconds) < 0.3, seconds


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_of_the_table_exists(name: str) -> None:
    module, _, attribute = COMMANDS[name][0].partition(":")
    assert importlib.util.find_spec(module) is not None
    assert hasattr(importlib.import_module(module), attribute)


def test_methods_show_and_cite() -> None:
    listed = run("methods", "--search", "steer by a difference of means")
    assert "mean_difference" in listed.stdout.splitlines()[1]
    cards = json.loads(run("methods", "--family", "steer", "--json").stdout)
    assert "mean_difference" in [card["slug"] for card in cards]
    assert "interneuron.steer.MeanDifference" in (shown := run("show", "mean_difference").stdout)
    assert "Equations:" in shown
    assert shown.index("result ") < shown.index("Use:") < shown.index("inn.load(") < shown.index("Equations:")
    assert run("cite", "mean_difference").stdout.startswith("@misc{mean_difference,")


def test_show_prints_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claim = CLAIM.replace('extra={"rows": 50}', 'gates={"the moon is near": seed < 2}')
    monkeypatch.syspath_prepend(str(write_plugin(tmp_path, METHOD, claim)))
    run_claim("row_centre", (0, 1, 2), tmp_path)
    card = find_card("row_centre")
    lines = measured(card, stored_result(tmp_path / "row_centre.json"))
    assert lines[0].split() == ["result", "partly"]
    assert "1 (lower is better), 3 seeds on none" in lines[1]
    assert "gain over control +" in lines[2]
    assert "2 of 3 seeds: the moon is near" in lines[3]
    assert measured(card, None)[0].endswith("not run; interneuron claims run row_centre")
    assert sections(card)["Use"].lstrip().startswith("model = inn.load")


def test_search_goes_by_the_meaning_of_purposes() -> None:
    purposes = {
        "ssd": ("forget", "Dampens the weights that matter for the data to forget more than for the rest"),
        "wina": ("sparse", "Skips small activations so that a language model decodes faster"),
        "mesa": ("memory", "Keeps activations in 8 bits while training to save memory"),
        "lineas": ("steer", "Affine maps that move activations of one set of texts onto those of another"),
    }
    cards = [
        Card(slug=slug, family=family, kind="fitter", exports=("X",), paper="", year=2024, purpose=purpose)
        for slug, (family, purpose) in purposes.items()
    ]
    wanted = {
        "make the model forget": "ssd", "forgetting": "ssd", "faster decoding": "wina", "train in less memory": "mesa",
        "removing knowledge": "ssd", "change what a model does": "lineas",
    }  # fmt: skip
    assert {query: search_cards(query, cards)[0].slug for query in wanted} == wanted


def test_search_that_finds_nothing_says_so() -> None:
    done = run("methods", "--search", "volcano")
    assert done.returncode == 1
    assert "no method shares a word with 'volcano'" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "mean_diference"], "MethodNotFound: no method 'mean_diference'"),
        (["methods", "--family", "ster"], "MethodNotFound: no family 'ster'. Did you mean 'steer'"),
        (["claims", "run"], "InputError: claims run: name methods, or pass --all"),
        (["claims", "run", "nothing_like_it"], "MethodNotFound: no method 'nothing_like_it'"),
        (["claims", "table", "--write"], "InputError: claims table --write: no folder docs/ here"),
    ],
)
def test_errors_are_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(message)
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_mistyped_command_suggests() -> None:
    done = run("metods")
    assert done.returncode == 2
    assert "no command 'metods'. Did you mean 'methods'?" in done.stderr

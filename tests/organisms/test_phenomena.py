"""The known phenomena, in the shipped `lm`: every script of examples/phenomena at a small size, with its control.

Each case states what must be there and what its control must not show; an absence is a result and is pinned as one.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import interneuron as inn

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "phenomena"
PICTURES = FOLDER.parents[1] / "docs" / "pictures" / "phenomena"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "figures")

pytest.importorskip("matplotlib")
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the examples are not part of an installed package")


def induction(r: dict[str, float]) -> bool:
    return r["score"] > 0.8 > 8 * r["score_control"] and r["loss"] < 0.1 and r["loss_without"] > 3 * r["loss_control"]


def names(r: dict[str, float]) -> bool:
    moved = r["together"] > 0.45 and r["first"] > 0.5
    return moved and r["control"] < 0.15 and r["first_control"] < 0.2 and r["first_other_sentence"] < 0.3


def concepts(r: dict[str, float]) -> bool:
    read = r["sentiment"] > 0.85 and r["truth"] > 0.9
    return read and r["sentiment_control"] < 0.75 and r["truth_control"] < 0.75


def facts(r: dict[str, float]) -> bool:
    path = r["subject_embedding"] > 0.95 and r["last_after_layer_0"] > 0.95 and r["first_mlp_at_last"] > 0.7
    return path and max(r["subject_after_layer_0"], r["between"]) < 0.05 and r["control"] < 0.2


def no_sinks(r: dict[str, float]) -> bool:
    more_than_even = r["sink"] > 2 * r["even"] and r["sink"] > 2 * r["second"]
    return more_than_even and r["sink"] < 0.5 and 3 * r["noise"] < r["ratio"] < 1000


def refusal(r: dict[str, float]) -> bool:
    removed = r["harmful"] > 0.9 > 0.1 > r["harmful, direction removed"] and r["complied"] > 0.9
    added = r["harmless, direction added"] > 0.6 > 0.05 >= r["harmless"]
    return (
        removed and added and r["harmful, control: random removed"] > 0.9 and r["harmless, control: random added"] < 0.1
    )


def sparsity(r: dict[str, float]) -> bool:
    return r["loss_5_percent"] - r["loss"] < 0.1 < r["control_5_percent"] - 2 * r["loss"] and r["needed"] < 0.15


EXPECTED: dict[str, tuple[int, Callable[[dict[str, float]], bool]]] = {
    "attention_sinks": (16, no_sinks),
    "fact_tracing": (8, facts),
    "induction_heads": (8, induction),
    "ioi_heads": (16, names),
    "linear_concepts": (200, concepts),
    "mlp_sparsity": (8, sparsity),
    "refusal_direction": (60, refusal),
}


@pytest.fixture(scope="module")
def model() -> inn.Model:
    return inn.load("lm")


@pytest.fixture
def script(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The script as a module; scripts import `figures` from their own folder."""
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    yield importlib.import_module(request.param)
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(FOLDER) in str(sys.modules[name].__file__):
            del sys.modules[name]


def test_every_script_has_an_expectation() -> None:
    assert sorted(EXPECTED) == SCRIPTS


@pytest.mark.parametrize("script", SCRIPTS, indirect=True)
def test_the_phenomenon_and_its_control(script: Any, model: inn.Model, tmp_path: Path, unchecked: None) -> None:
    n, holds = EXPECTED[script.__name__]
    found = script.main(model, n, tmp_path)
    assert holds(found), found
    pictures = {path.name for path in tmp_path.iterdir()}
    assert pictures
    assert pictures <= {path.name for path in PICTURES.iterdir()}  # the ones the page shows


def test_the_controls_of_a_model_that_learned_nothing_fail(tmp_path: Path, unchecked: None) -> None:
    """A fresh network of the same shape has no induction heads: the case that the check above must refuse."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sys.path.insert(0, str(FOLDER))
    try:
        script = importlib.import_module("induction_heads")
    finally:
        sys.path.remove(str(FOLDER))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fresh = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(inn.organisms.path("lm")), attn_implementation="eager"
        )
    found = script.main(inn.Model(fresh.eval()), 8, tmp_path)
    assert not induction(found), found


def test_pictures_are_small() -> None:
    sizes = {path.name: path.stat().st_size for path in PICTURES.iterdir()}
    assert sizes
    assert max(sizes.values()) <= 60_000, sizes

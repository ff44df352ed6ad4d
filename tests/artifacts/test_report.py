"""Report: named results that read well, travel as JSON and survive saving bit by bit."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from interneuron.artifacts import Report, load_artifact, plots
from interneuron.core.errors import InputError, ShapeError


def report() -> Report:
    return Report(
        title="Sparsity",
        numbers={"rows": 12_345, "zeros": 0.25, "worst": float("inf"), "model": "[bold]gpt2", "ok": True},
        tables={"layers": [{"layer": 0, "zeros": 0.5, "note": None}, {"layer": 1, "zeros": float("nan"), "more": "x"}]},
        arrays={"layers.0.mlp.hidden": torch.arange(6.0).reshape(2, 3)},
        plots={"curve": plots.lines("Dose", [0, 1], {"ours": [0.0, 2.0], "random": [0.0, 0.1]}, x_label="alpha")},
        notes="One paragraph.",
        slug="sparsity",
    )


def text(renderable: object) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_comes_back_bit_by_bit(tmp_path: Path) -> None:
    report().save(tmp_path)
    back = Report.load(tmp_path)
    assert back.same_bits(report())
    assert back["worst"] == float("inf")
    assert (back["rows"], type(back["rows"]), back["zeros"], back["ok"]) == (12_345, int, 0.25, True)
    assert back.plot() == report().plots["curve"]
    assert load_artifact(tmp_path).to_json() == report().to_json()


def test_json_is_json_for_everybody() -> None:
    content = json.loads(report().to_json(), parse_constant=lambda word: pytest.fail(word))
    assert content["kind"] == "report"
    assert content["numbers"] == {"rows": 12_345, "zeros": 0.25, "worst": None, "model": "[bold]gpt2", "ok": True}
    assert content["tables"]["layers"][1] == {"layer": 1, "zeros": None, "more": "x"}
    assert content["arrays"]["layers.0.mlp.hidden"] == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(InputError, match=r"200,000 numbers.*Use save"):
        Report(arrays={"big": torch.zeros(200_000)}).to_json()


def test_tables_read_well() -> None:
    numbers = text(report().table())
    assert "12,345" in numbers
    assert "[bold]gpt2" in numbers  # text of others is never markup
    layers = text(report().table("layers"))
    assert all(word in layers for word in ("layer", "zeros", "note", "more", "0.5", "nan", "x"))
    assert "None" not in layers
    assert text(Report().table())  # nothing to show is no error


def test_names_that_are_not_there() -> None:
    with pytest.raises(InputError, match=r"no number 'zeroes'.*Did you mean 'zeros'"):
        report()["zeroes"]
    with pytest.raises(InputError, match=r"no table 'layer'.*Did you mean 'layers'"):
        report().table("layer")
    with pytest.raises(InputError, match="no plot 'x', only curve"):
        report().plot("x")
    with pytest.raises(InputError, match="only none"):
        Report().plot()


def test_plots_keep_their_lengths() -> None:
    assert plots.heatmap("h", torch.eye(2), ["a", "b"], ["c", "d"])["values"] == [[1, 0], [0, 1]]
    assert plots.points("p", [1, 2], [3, 4], names=["a", "b"])["names"] == ["a", "b"]
    for wrong in (
        lambda: plots.bars("b", ["x"], [1.0, 2.0]),
        lambda: plots.lines("l", [1, 2], {"s": [1.0]}),
        lambda: plots.points("p", [1], [1, 2]),
        lambda: plots.points("p", [1], [1], names=[]),
        lambda: plots.heatmap("h", [[1.0], [1.0, 2.0]], ["r", "s"], ["c"]),
    ):
        with pytest.raises(ShapeError, match="expected"):
            wrong()

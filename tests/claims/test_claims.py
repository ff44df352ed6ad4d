"""Claims: verdicts from intervals, seeds kept across interruptions, one process each, a table that hides nothing."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from plugin import CLAIM, write_plugin

from interneuron.claims import Claim, Comparison, runner, table, verdict
from interneuron.claims.verdict import Arms, interval, judge
from interneuron.core.cards import find_card
from interneuron.core.errors import InputError, MethodNotFound


def stated(better: str = "higher", ratio: float = 1.0) -> Claim:
    return Claim(slug="x", organism="lm", paper="p", better=better, unit="nats", ratio=ratio)  # type: ignore[arg-type]


def arms(ours: list[float], baseline: list[float], control: list[float]) -> dict[int, Arms]:
    rows = zip(ours, baseline, control, strict=True)
    return {seed: {"ours": [a], "baseline": [b], "control": [c]} for seed, (a, b, c) in enumerate(rows)}


@pytest.mark.parametrize(
    ("better", "ratio", "measured", "wanted"),
    [
        ("higher", 1.0, arms([3, 4, 5], [1, 1, 1], [0, 0, 0]), "reproduced"),
        ("lower", 1.0, arms([1, 1, 1], [3, 4, 5], [9, 9, 9]), "reproduced"),
        ("higher", 1.0, arms([3, 4, 0.5], [1, 1, 1], [0, 0, 0]), "partly"),  # one of three seeds against it
        ("higher", 5.0, arms([3, 4, 5], [1, 1, 1], [0, 0, 0]), "partly"),  # better, but not by the factor promised
        ("higher", 1.0, arms([3, 4, 5], [1, 1, 1], [6, 6, 6]), "not reproduced"),  # the control does it as well
        ("higher", 1.0, arms([1, 1, 1], [1, 1, 1], [0, 0, 0]), "not reproduced"),
        ("lower", 1.0, arms([3, 4, 5], [1, 1, 1], [9, 9, 9]), "not reproduced"),
    ],
)
def test_verdicts(better: str, ratio: float, measured: dict[int, Arms], wanted: str) -> None:
    assert judge(stated(better, ratio), measured)[0] == wanted


@pytest.mark.parametrize(
    ("gates", "wanted"),
    [
        ({"cost": [True, True, True], "order": [True, True, True]}, "reproduced"),
        ({"cost": [True, True, True], "order": [True, False, True]}, "partly"),  # one gate missed under one seed
    ],
)
def test_every_gate_counts(gates: dict[str, list[bool]], wanted: str) -> None:
    assert judge(stated("higher"), arms([3, 4, 5], [1, 1, 1], [0, 0, 0]), gates)[0] == wanted


def test_open_gates_do_not_excuse_a_lost_comparison() -> None:
    assert judge(stated("higher"), arms([1, 1, 1], [3, 3, 3], [0, 0, 0]), {"cost": [True] * 3})[0] == "not reproduced"


def test_gain_and_interval_by_hand() -> None:
    decided, gains = judge(stated("lower", 0.5), arms([1.0, 2.0, 3.0], [8.0, 8.0, 8.0], [5.0, 5.0, 5.0]))
    assert decided == "reproduced"
    assert gains["baseline"].mean == pytest.approx(2.0)  # 0.5 * 8 - mean(1, 2, 3)
    assert gains["baseline"].plain_mean == pytest.approx(6.0)
    assert (gains["control"].low, gains["control"].high) == (2.0, 4.0)  # the extreme seeds, with three numbers


def test_the_interval_holds_the_truth_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdict, "DRAWS", 1000)
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(40):
        gains = [rng.normal(1.0, 1.0, 40) for _ in range(8)]
        low, high = interval(gains, key=str(trial))
        held += low <= 1.0 <= high
    assert 34 <= held <= 40  # 95 % of 40 is 38


def test_the_interval_is_repeatable_and_pairs_items() -> None:
    gains = [np.random.default_rng(seed).normal(size=30 + seed) for seed in range(5)]
    assert interval(gains, key="a") == interval(gains, key="a")
    assert interval(gains, key="a") != interval(gains, key="b")
    assert interval([np.full(5, 2.0)] * 3, key="a") == pytest.approx((2.0, 2.0))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ours": 1.0}, "neither baseline nor control"),
        ({"ours": [1.0, 2.0], "control": [1.0]}, "items are paired"),
        ({"ours": [], "control": []}, "items are paired"),
        ({"ours": float("nan"), "control": 1.0}, "ours holds NaN"),
        ({"ours": 1.0, "control": 0.0, "gates": {"cheap": 0.2}}, "the gate 'cheap' is 0.2, expected True or False"),
    ],
)
def test_a_comparison_that_cannot_be_judged_is_refused(given: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Comparison(**given)


@pytest.mark.usefixtures("unchecked")
def test_a_wrong_claim_is_refused() -> None:
    with pytest.raises(InputError, match="better='more', expected 'higher' or 'lower'"):
        stated("more")
    with pytest.raises(InputError, match="ratio=0"):
        stated(ratio=0)


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(write_plugin(tmp_path)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def test_a_missed_gate_is_kept_and_shown(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claim, experiment = runner.load_claim(find_card("row_centre"))

    def gated(seed: int) -> Comparison:
        measured = experiment(seed)
        return replace(measured, gates={"costs nothing": seed != 1, "is linear": True})

    monkeypatch.setattr(runner, "load_claim", lambda card: (claim, gated))
    result = runner.run_claim("row_centre", out=plugin)
    assert (result["verdict"], result["gates_met"]) == ("partly", 1)
    assert result["gates"] == {"costs nothing": "2 of 3 seeds", "is linear": "3 of 3 seeds"}
    assert "Missed: costs nothing (2 of 3 seeds)." in table.markdown(plugin)


def test_an_interrupted_run_continues_where_it_stopped(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = plugin / "results"
    out.mkdir()
    claim, experiment = runner.load_claim(find_card("row_centre"))
    measured: list[int] = []

    def interrupted(seed: int) -> Comparison:
        measured.append(seed)
        if seed == 2 and measured.count(2) == 1:
            raise KeyboardInterrupt
        return experiment(seed)

    monkeypatch.setattr(runner, "load_claim", lambda card: (claim, interrupted))
    with pytest.raises(KeyboardInterrupt):
        runner.run_claim("row_centre", out=out)
    half = json.loads((out / "row_centre.json").read_text())
    assert (sorted(half["seeds"]), half["complete"]) == (["0", "1"], False)
    done = runner.run_claim("row_centre", out=out)
    assert measured == [0, 1, 2, 2]
    assert (done["gates"], done["gates_met"]) == ({}, 0)
    assert (done["complete"], done["verdict"]) == (True, "reproduced")
    assert json.loads((out / "row_centre.json").read_text()) == done
    assert set(done["versions"]) == {"python", "interneuron", "torch", "transformers", "numpy"}


def test_a_changed_claim_file_is_measured_anew(plugin: Path) -> None:
    out = plugin / "results"
    out.mkdir()
    card = find_card("row_centre")
    runner.run_claim("row_centre", out=out)
    assert runner.fresh_result(card, out) is not None
    (plugin / "my_methods" / "row_centre_claim.py").write_text(CLAIM + "\n# changed\n")
    assert runner.fresh_result(card, out) is None
    assert table.state(card, runner.stored_result(out / "row_centre.json")).endswith("(older code)")


def test_each_claim_runs_in_its_own_process(plugin: Path) -> None:
    out = plugin / "results"
    out.mkdir()
    results = runner.run_claims(["row_centre"], out=out)
    assert isinstance(results["row_centre"], dict)
    assert "my_methods.row_centre_claim" not in sys.modules
    inode = (out / "row_centre.json").stat().st_ino
    runner.run_claims(["row_centre"], out=out)  # nothing to do
    assert (out / "row_centre.json").stat().st_ino == inode


def test_a_claim_that_crashes_is_reported_in_one_line(plugin: Path) -> None:
    broken = CLAIM.replace("    x = tensors(50", "    raise ValueError('no luck')\n    x = tensors(50")
    (plugin / "my_methods" / "row_centre_claim.py").write_text(broken)
    outcome = runner.run_claims(["row_centre"], out=plugin)["row_centre"]
    assert outcome == "ValueError: no luck"


def test_too_few_seeds_and_missing_claims_are_refused(plugin: Path) -> None:
    with pytest.raises(InputError, match="3 or more different seeds, got"):
        runner.run_claim("row_centre", seeds=(0, 1, 1), out=plugin)
    (plugin / "my_methods" / "row_centre_claim.py").unlink()
    with pytest.raises(MethodNotFound, match=r"has no claim: expected my_methods.row_centre_claim"):
        runner.run_claim("row_centre", out=plugin)


def test_the_page_shows_failures_with_their_reason(plugin: Path) -> None:
    out = plugin / "results"
    out.mkdir()
    assert "| row_centre | Centre of rows |  |  |  |  |  |  | not run |" in table.markdown(out)
    failing = CLAIM.replace('better="lower"', 'better="higher", why="Because | it is not."')
    (plugin / "my_methods" / "row_centre_claim.py").write_text(failing)
    runner.run_claim("row_centre", out=out)
    page = table.markdown(out)
    row = next(line for line in page.splitlines() if line.startswith("| row_centre"))
    assert "not reproduced" in row
    assert row.count(" | ") == len(table.COLUMNS) - 1
    assert "**row_centre** (not reproduced). Because | it is not." in page


def test_the_page_shows_what_to_know_of_a_claim_that_holds(plugin: Path) -> None:
    out = plugin / "results"
    out.mkdir()
    file = plugin / "my_methods" / "row_centre_claim.py"
    file.write_text(CLAIM.replace('better="lower"', 'better="lower", why="With care."'))
    assert runner.run_claim("row_centre", out=out)["verdict"] == "reproduced"
    assert "**row_centre** (reproduced). With care." in table.markdown(out)


def test_a_damaged_result_file_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"schema": 1, ')
    assert runner.stored_result(tmp_path / "x.json") is None


def test_a_reason_written_afterwards_leaves_the_result_fresh(plugin: Path) -> None:
    runner.run_claim("row_centre", (0, 1, 2), plugin)
    result = runner.stored_result(plugin / "row_centre.json")
    assert result is not None
    card = find_card("row_centre")
    file = Path(card.path).with_name("row_centre_claim.py")
    said = file.read_text()
    spread = said.replace(", minutes=0.01)", ", minutes=0.01,\n)")
    file.write_text(spread)
    assert not runner.belongs(card, result)  # more than a reason has changed
    result["source"] = runner.source_hash(card)
    file.write_text(spread.replace("0.01,\n", '0.01,\n    why="rows "\n    "are few",\n'))
    assert "are few" in file.read_text()
    assert runner.belongs(card, result)
    assert runner.source_hash(card) != result["source"]
    file.write_text(file.read_text().replace("0.01", "0.02"))
    assert not runner.belongs(card, result)

"""The tour: one page that needs nothing else, with the same numbers as JSON."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from rich.console import Console

from interneuron.cli import report_svg, tour_direction, tour_material, tour_methods, tour_steps, tour_texts
from interneuron.cli.report_page import Page, Section, render, rich
from interneuron.cli.tour import material_for, open_model, take_tour, write
from interneuron.core.errors import InputError

SMALL = tour_steps.Budget(windows=2, length=32, controls=2, doses=(0.2, 0.4), layers=64, rows=2, tokens=8_000)


@pytest.fixture(scope="module")
def toured(world_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    patch = pytest.MonkeyPatch()
    patch.setattr(tour_steps.Budget, "of", staticmethod(lambda n: SMALL))
    out = tmp_path_factory.mktemp("tour")
    state = torch.random.get_rng_state()
    page, report = take_tour(str(world_model), None, Console(quiet=True))
    patch.undo()
    assert torch.equal(torch.random.get_rng_state(), state)
    write(page, report, out)
    return out


def test_the_page_needs_nothing_else(toured: Path) -> None:
    page = (toured / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r"<(?:link|img|iframe|script)\b|\bsrc=|\bhref=|url\(|https?://|@import", page)
    assert page.count("<section>") == 11
    assert len(page) < 1_000_000


def test_every_figure_is_well_formed_and_finite(toured: Path) -> None:
    page = (toured / "report.html").read_text(encoding="utf-8")
    figures = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(figures) >= 10
    for figure in figures:
        ElementTree.fromstring(figure)
        assert "nan" not in figure and "inf" not in re.sub(r"<title>.*?</title>", "", figure)


def test_the_json_holds_the_numbers_and_their_controls(toured: Path) -> None:
    report = json.loads((toured / "report.json").read_text(encoding="utf-8"))
    numbers = report["numbers"]
    pairs = {
        "direction.auc": "direction.auc_shuffled_mean",
        "steer.effect": "steer.random",
        "steer.cost": "steer.cost_random",
        "patch.peak_recovery": "patch.control_at_peak",
        "steer.judged pushed up": "steer.judged random",
        "relp.r_relp": "relp.r_shuffled",
        "features.recovered": "features.recovered_random",
        "sparse.kl_wina_0.5": "sparse.kl_random_0.5",
    }
    assert set(pairs) | set(pairs.values()) <= set(numbers)
    assert numbers["check.worst_relative_error"] < 1e-5
    assert numbers["steer.random_low"] < numbers["steer.random_high"]
    heat = report["plots"]["patch: Residual stream"]
    assert (len(heat["rows"]), len(heat["columns"])) == (2, len(heat["values"][0]))
    page = (toured / "report.html").read_text(encoding="utf-8")
    assert f"AUC {numbers['direction.auc']:.2f}" in page


def test_the_shipped_model_is_steered_beyond_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    budget = tour_steps.Budget(windows=6, length=128, controls=4, doses=(0.7,), layers=64, rows=2, tokens=8_000)
    monkeypatch.setattr(tour_steps.Budget, "of", staticmethod(lambda n: budget))
    model = open_model("lm")
    material = material_for(model, None, budget)
    assert not set(material.pairs.fit) & {*material.pairs.choose, *material.pairs.test}
    assert not set(material.pairs.choose_endings) & set(material.pairs.test_endings)
    found = tour_direction.find_direction(model, material, budget)
    assert found.direction.site != "layers.5.resid_post"  # the last one only names words
    assert found.section.numbers["auc"] > 0.95 > found.section.numbers["auc_shuffled_max"]
    section = tour_direction.steering(model, material, found, budget)
    numbers = section.numbers
    assert numbers["beyond_random"]
    assert numbers["effect"] > 1.0
    assert numbers["judged pushed up"] > numbers["judged random"] + 0.1
    assert numbers["judged pushed down"] < numbers["judged random"] - 0.1
    changed = [s for s in section.samples if len({text for _, text, _ in s.continuations[:3]}) > 1]
    assert len(changed) >= 2


def test_methods_on_the_shipped_model() -> None:
    budget = tour_steps.Budget(windows=6, length=128, controls=2, doses=(0.7,), layers=64, rows=8, tokens=30_000)
    model = open_model("lm")
    material = material_for(model, None, budget)
    assert not {tuple(row) for row in material.corpus[:900].tolist()} & {tuple(row) for row in material.test.tolist()}
    circuit = tour_methods.relevance(model, material.question, budget).numbers
    assert circuit["r_relp"] > 0.8 > abs(circuit["r_shuffled"]) + 0.4
    learned = tour_methods.features(model, material, budget).numbers
    assert learned["recovered"] > 0.9 > learned["recovered_random"]
    assert 0 < learned["l0"] <= learned["k"]
    cut = tour_methods.sparse_decoding(model, material, budget).numbers
    assert cut["kl_wina_0.5"] < cut["kl_teal_0.5"] < cut["kl_random_0.5"]
    assert cut["kl_wina_0.25"] < cut["kl_wina_0.8"]


def test_a_method_that_cannot_run_says_why(world_model: Path) -> None:
    model = open_model(str(world_model))
    few = dataclasses.replace(material_for(model, None, SMALL), corpus=torch.ones(4, 32, dtype=torch.long))
    section = tour_methods.attempt(tour_methods.features, "Sparse features", model, few, SMALL)
    assert "96 tokens" in section.finding and "--text" in section.finding
    assert section.title == "Sparse features" and set(section.numbers) == {"not_done"}


def test_refusals(world_model: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"\xff\xfe\x00")
    empty = tmp_path / "empty.txt"
    empty.write_text("  \n")
    for path, words in ((tmp_path / "none.txt", "not a file"), (bad, "UTF-8"), (empty, "is empty")):
        with pytest.raises(InputError, match=words):
            tour_material.read_text(path)
    strange = tmp_path / "strange.txt"
    strange.write_text("florbl " * 50)
    with pytest.raises(InputError, match="florbl"):
        take_tour(str(world_model), strange, Console(quiet=True))


def test_a_model_without_a_tokenizer_is_refused(world_model: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "generation_config.json"):
        (tmp_path / name).write_bytes((world_model / name).read_bytes())
    with pytest.raises(InputError, match="causal language model"):
        open_model(str(tmp_path))


def test_built_in_pairs_never_share_a_word_of_feeling() -> None:
    fit, choose, test = tour_texts.feelings()
    said = {word for pair in tour_texts.DEEDS for side in pair for word in side.split()}
    judged = {word for pair in (*tour_texts.MOODS_CHOOSE, *tour_texts.MOODS_TEST) for word in pair}
    assert not said & judged
    assert len(judged) == 2 * (len(tour_texts.MOODS_CHOOSE) + len(tour_texts.MOODS_TEST))
    assert (len(fit), len(choose), len(test)) == (48, 16, 24)


def test_numbers_and_ticks() -> None:
    assert [report_svg.number(x) for x in (0.0, 1.0, 0.12345, -2.5, 1234.5, 8.2e-8, float("nan"))] == [
        "0", "1", "0.123", "-2.5", "1,234", "8.2e-08", "n/a",
    ]  # fmt: skip
    assert report_svg.ticks(-0.4, 0.4) == [-0.4, -0.2, 0.0, 0.2, 0.4]
    assert report_svg.ticks(3.0, 3.0)


def test_labels_are_escaped_and_cells_counted() -> None:
    plot = {
        "kind": "heatmap", "title": "a <b> & c", "x_label": "x", "y_label": "", "rows": ["layer 0", "layer 1"],
        "columns": ["<s>", "a & b", '"q"'], "values": [[0.0, 1.0, -1.0], [0.5, float("nan"), 0.1]],
    }  # fmt: skip
    svg = report_svg.draw(plot)
    root = ElementTree.fromstring(svg[svg.index("<svg") :])
    assert sum(node.get("class") == "cell" for node in root.iter("rect")) == 6
    assert "<s>" not in svg


def test_sections_escape_what_models_write() -> None:
    page = render(Page("o", "<script>", "l", "f", [], [Section("t", "shows <img src=x>", finding="**b** `c<d`")]))
    assert "<script>" not in page
    assert "<img" not in page
    assert "<b>b</b> <code>c&lt;d</code>" in page
    assert rich("a_b **c** d") == "a_b <b>c</b> d"


def test_layers_are_spread() -> None:
    assert tour_steps.spread(3, 8) == [0, 1, 2]
    assert tour_steps.spread(32, 6)[::5] == [0, 31]


@pytest.mark.slow
def test_a_real_model_and_a_real_text(shared_data: Path, tmp_path: Path) -> None:
    page, report = take_tour(
        str(shared_data / "models/tinystories-260k"), shared_data / "text/tiny-shakespeare.txt", Console(quiet=True)
    )
    write(page, report, tmp_path)
    # A girl is "she" and a boy is "he": a real model knows, and one activation carries it, far above the control.
    assert report["patch.clean"] > 2
    assert report["patch.corrupt"] < -2
    assert report["patch.peak_recovery"] > 0.8 > 2 * report["patch.control_at_peak"]
    assert report["direction.auc"] > 0.6
    assert report["steer.effect"] > 0.5

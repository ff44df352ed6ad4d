"""The generated pages of the methods: up to date, complete, and pictures that stand alone."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from interneuron.artifacts import Direction, Report, plots
from interneuron.cli import pages
from interneuron.cli.picture import MAX_BYTES, source_of, svg
from interneuron.core.cards import Card
from interneuron.core.errors import InputError, MethodNotFound

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"

PLOTS = {
    "lines": plots.lines("Curves", [0, 1, 2], {"ours": [0.0, 1.0, 3.0], "rival": [0.0, 0.5, 1.0]}, x_label="a < b"),
    "bars": plots.bars("Bars & more", ["x", "y"], [1.0, -2.0], y_label="nats"),
    "points": plots.points("Points", [0.0, 1.0], [2.0, 3.0], ["a", "b"]),
    "heatmap": plots.heatmap("Map", [[0.0, 1.0], [-1.0, 0.5]], ["r0", "r1"], ["c0", "c1"]),
}


def test_pages_and_pictures_are_up_to_date() -> None:
    old = pages.stale(DOCS)
    assert not old, f"run `make pages`: {', '.join(str(path.relative_to(DOCS)) for path in old)}"


def test_pictures_are_small_and_whole() -> None:
    for path in (DOCS / "pictures" / "methods").glob("*.svg"):
        assert path.stat().st_size <= MAX_BYTES, path
        ElementTree.parse(path)
        assert "http" not in path.read_text().replace("http://www.w3.org/2000/svg", ""), f"{path} fetches something"


def test_every_link_of_the_table_leads_to_a_page() -> None:
    linked = re.findall(r"\((\w+)\.md\)", (DOCS / pages.INDEX).read_text())
    assert sorted(f"{slug}.md" for slug in linked) == sorted(
        path.name for path in (DOCS / "methods").glob("*.md") if path.name != "all.md"
    )


@pytest.mark.parametrize("kind", PLOTS)
def test_a_picture_stands_alone_and_is_drawn_the_same_twice(kind: str) -> None:
    text = svg(PLOTS[kind], "abc123")
    root = ElementTree.fromstring(text)
    assert root.tag.endswith("svg")
    assert "var(" not in text
    assert source_of(text) == "abc123"
    assert text == svg(PLOTS[kind], "abc123")
    shown = " ".join(node.text or "" for node in root.iter())
    assert PLOTS[kind]["title"] in shown
    if kind == "lines":
        assert "rival" in shown


def test_a_picture_too_large_loses_its_hints_or_is_refused() -> None:
    values = [[0.5] * 16 for _ in range(16)]
    names = [f"a rather long name of a row or column {i}" for i in range(16)]
    text = svg(plots.heatmap("Map", values, names, names), "0")
    assert "<title>" not in text
    assert len(text.encode()) <= MAX_BYTES
    with pytest.raises(InputError, match="Plot fewer"):
        svg(plots.heatmap("Map", [[0.5] * 40] * 40, ["r"] * 40, ["c"] * 40), "0")


def test_what_has_no_plot_is_taught() -> None:
    first = plots.bars("First", ["a"], [1.0])
    report = Report(title="t", plots={"one": first, "two": PLOTS["bars"]})
    assert pages.plot_of(report, "x")["title"] == "First"
    with pytest.raises(InputError, match="has no plot"):
        pages.plot_of(Report(title="t"), "x")


def test_only_what_is_out_of_date_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, card: Card) -> None:
    drawn = []

    def picture(card: Card) -> str:
        drawn.append(card.slug)
        return svg(PLOTS["bars"], pages.source_hash(card))

    monkeypatch.setattr(pages, "picture", picture)
    monkeypatch.setattr(pages, "_own", lambda: [card])
    written = pages.write([], tmp_path)
    assert [path.name for path in written] == ["all.md", f"{card.slug}.md", f"{card.slug}.svg"]
    assert pages.write([], tmp_path) == []
    (tmp_path / "methods" / f"{card.slug}.md").write_text("edited by hand")
    (tmp_path / "methods" / "gone.md").write_text("a method that was removed")
    (tmp_path / "pictures" / "methods" / f"{card.slug}.svg").write_text("<svg><!-- source 0 --></svg>")
    assert len(pages.stale(tmp_path)) == 3
    pages.write([], tmp_path)
    assert pages.stale(tmp_path) == []
    assert not (tmp_path / "methods" / "gone.md").exists()
    assert drawn == [card.slug] * 2
    with pytest.raises(MethodNotFound):
        pages.write(["nothing_like_it"], tmp_path)


def test_a_page_says_what_matters(card: Card) -> None:
    text = pages.page(card)
    for part in (
        card.purpose,
        f"pictures/methods/{card.slug}.svg",
        "import interneuron as inn",
        "## Equations",
        "@misc{",
    ):
        assert part in text


@pytest.fixture
def card() -> Card:
    (found,) = [card for card in pages.all_cards("steer") if card.slug == "mean_difference"]
    return found


def test_the_length_of_a_direction_is_a_picture() -> None:
    import torch

    assert "resid_post" in svg(Direction(torch.ones(4), site="layers.0.resid_post").plot(), "0")

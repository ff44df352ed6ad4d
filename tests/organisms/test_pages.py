"""The documentation pages of the organisms are what their recipes and cards give today, and all can be reached."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from interneuron.organisms import catalogue, pages

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "organisms"


@pytest.mark.parametrize("name", catalogue.names())
def test_the_page_is_the_one_the_card_gives(name: str) -> None:
    if catalogue.Organism(name).status == "cached":
        pytest.skip(f"{name} was trained here, which its page cannot know")
    assert (DOCS / f"{name}.md").read_text() == pages.page(name), "run python -m interneuron.organisms.pages"


def test_the_index_names_what_each_is_short_of() -> None:
    text = (DOCS / "index.md").read_text()
    for name in catalogue.names():
        line = next(li for li in text.splitlines() if li.startswith(f"| [`{name}`]({name}.md)"))
        for task in catalogue.Organism(name).short:
            assert task in line


def test_the_site_leads_to_every_page() -> None:
    nav = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]
    section = next(entry["Organisms"] for entry in nav if "Organisms" in entry)
    listed = {target for entry in section for target in entry.values()}
    assert listed == {f"organisms/{f.name}" for f in DOCS.glob("*.md")}

"""The language organisms that ship: plain folders, small files, cards of today's recipe that hold when recomputed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from interneuron.core.errors import MethodNotFound
from interneuron.organisms import catalogue
from interneuron.organisms.capabilities import table_for
from interneuron.organisms.check import check, format_table

SHIPPED = [n for n in catalogue.names() if catalogue.Organism(n).status == "shipped"]
LANGUAGE = [n for n in SHIPPED if str(catalogue.Organism(n).card.get("world", "")).startswith("tinyworld")]
MEGABYTE = 1 << 20


def test_the_first_language_model_ships() -> None:
    assert "lm" in LANGUAGE


@pytest.mark.parametrize("name", LANGUAGE)
def test_card_and_files(name: str) -> None:
    organism = catalogue.Organism(name)
    card = organism.card
    assert card["name"] == name
    assert card["recipe"] == card["training"]["recipe"] == catalogue.recipe_hash(name)
    assert [row["task"] for row in card["capabilities"]] == [line.task for line in table_for(name)]
    assert card["short"] == [row["task"] for row in card["capabilities"] if row["passed"] is False]
    for row, line in zip(card["capabilities"], table_for(name), strict=True):
        band = line.rule == "in"
        assert (row["rule"], tuple(row["required"]) if band else row["required"]) == (line.rule, line.required)
        assert row["passed"] == line.met(row["value"]), row["task"]
        assert (row["passed"] is None) == (line.rule == "report")
    assert organism.folder is not None
    assert all(f.stat().st_size <= 12 * MEGABYTE for f in organism.folder.rglob("*") if f.is_file())
    assert "SHORT" in format_table(card) or not card["short"]


def test_everything_that_ships_fits_the_package() -> None:
    total = sum(f.stat().st_size for n in SHIPPED for f in catalogue.shipped(n).rglob("*") if f.is_file())
    assert total <= 60 * MEGABYTE


@pytest.mark.parametrize("name", LANGUAGE)
def test_a_small_check_agrees_with_the_card(name: str, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("INTERNEURON_CACHE", str(tmp_path))
    stored = {row["task"]: row for row in catalogue.Organism(name).card["capabilities"]}
    quick = {"facts, language 1", "IOI", "arithmetic, drill", "label line: sentiment"}
    lines = [line for line in table_for(name) if line.task in quick]
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(catalogue.path(name), dtype=torch.float32).eval()
    for line in lines:
        assert line.measure(model, 40, 1) == pytest.approx(stored[line.task]["value"], abs=0.13), line.task


def test_loading_is_quick_after_imports(tmp_path) -> None:  # type: ignore[no-untyped-def]
    code = (
        "import sys, time, torch, transformers; from transformers import AutoTokenizer; "
        "from interneuron import organisms\n"
        "for name in sys.argv[1:]:\n"
        "    kind = getattr(transformers, organisms.Organism(name).card['class'])\n"
        "    begin = time.process_time(); folder = organisms.path(name); kind.from_pretrained(folder)\n"
        "    if (folder / 'tokenizer.json').exists(): AutoTokenizer.from_pretrained(folder)\n"
        "    print(name, time.process_time() - begin)"
    )
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
        "INTERNEURON_CACHE": str(tmp_path),
    }  # fmt: skip
    command = [sys.executable, "-c", code, *SHIPPED]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    seconds = {line.split()[0]: float(line.split()[1]) for line in run.stdout.splitlines()}
    assert set(seconds) == set(SHIPPED)
    assert max(seconds.values()) < 2.0, seconds


@pytest.mark.parametrize("name", [n for n in LANGUAGE if catalogue.Organism(n).checkpoints])
def test_checkpoints_of_a_series(name: str, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("INTERNEURON_CACHE", str(tmp_path))
    from transformers import AutoModelForCausalLM

    organism = catalogue.Organism(name, checkpoint=0)
    assert organism.tokens == organism.checkpoints[0] < organism.checkpoints[-1]
    first = AutoModelForCausalLM.from_pretrained(catalogue.path(name, 0))
    last = AutoModelForCausalLM.from_pretrained(catalogue.path(name, len(organism.checkpoints) - 1))
    lines = {line.task: line for line in table_for(name)}
    facts = lines["facts, language 1"].measure
    assert facts(last, 40, 1) > facts(first, 40, 1) + 0.5
    with pytest.raises(MethodNotFound, match="no checkpoint 99: expected 0 to"):
        catalogue.path(name, 99)


def test_check_can_be_capped_and_does_not_write(monkeypatch: pytest.MonkeyPatch) -> None:
    from interneuron.organisms import capabilities

    few = [line for line in table_for("lm-small") if line.task in ("IOI", "facts, language 1")]
    monkeypatch.setattr(capabilities, "table_for", lambda name: few)
    before = (catalogue.shipped("lm-small") / "card.json").read_bytes()
    card = check("lm-small", seeds=(4,), n=10)
    assert [row["n"] for row in card["capabilities"]] == [10, 10]
    assert (catalogue.shipped("lm-small") / "card.json").read_bytes() == before

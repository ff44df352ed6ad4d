"""What a line of a capability table demands, and which table an organism gets."""

from __future__ import annotations

import pytest

from interneuron.core.errors import InputError
from interneuron.organisms import catalogue
from interneuron.organisms.capabilities import Line, banded, spearman, table_for
from interneuron.organisms.check import check, requirement


def nothing(model: object, n: int, seed: int) -> float:
    return 0.5


@pytest.mark.parametrize(
    ("rule", "required", "good", "bad", "text"),
    [
        (">=", 0.9, 0.9, 0.899, ">= 0.9"),
        ("<=", 0.02, 0.02, 0.021, "<= 0.02"),
        ("in", (0.4, 0.8), 0.8, 0.81, "0.4-0.8"),
        ("in", (0.4, 0.8), 0.4, 0.39, "0.4-0.8"),
    ],
)
def test_a_line_is_met_up_to_its_border(rule: str, required: object, good: float, bad: float, text: str) -> None:
    line = Line("task", nothing, rule=rule, required=required)  # type: ignore[arg-type]
    assert line.met(good) is True
    assert line.met(bad) is False
    assert requirement({"rule": rule, "required": required}) == text


def test_a_reported_line_is_neither_met_nor_missed() -> None:
    assert Line("task", nothing).met(0.0) is None
    assert requirement({"rule": "report", "required": None}) == ""


def test_a_band_takes_the_dial_value_nearest_its_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    from interneuron.organisms import tinyworld

    class Fixed:
        def __init__(self, hops: int) -> None:
            self.hops = hops

        def accuracy(self, model: object) -> float:
            return {1: 0.95, 2: 0.7, 3: 0.1}[self.hops]

    monkeypatch.setattr(tinyworld, "task", lambda name, n, seed, hops: Fixed(hops))
    line = banded("open form", "ontology", "hops", (1, 2, 3), (0.3, 0.85))
    assert line.task == "open form (band 0.3-0.85)"
    assert line.measure(None, 5, 1) == 0.7
    assert line.met(0.7)


def test_spearman_of_ranks() -> None:
    import torch

    a = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert spearman(a, a.exp()) == pytest.approx(1.0)
    assert spearman(a, torch.tensor([1.0, 2.0, 4.0, 3.0])) == pytest.approx(1 - 6 * 2 / (4 * 15))


def test_every_organism_has_the_table_of_its_kind() -> None:
    gated = {
        n: {li.task for li in table_for(n) if li.rule != "report"} for n in catalogue.names() if n.startswith("lm")
    }
    assert gated["lm-mid"] == {"CO, n=4"}
    assert gated["lm-relu"] == {"facts, language 1", "facts, language 2", "loss over the mixture / that of lm"}
    assert gated["lm"] > gated["lm-relu"] - {"loss over the mixture / that of lm"}
    refusing = {
        n: next(li for li in table_for(n) if li.task == "refusal, seen objects").rule for n in ("lm", "lm-base")
    }
    assert refusing == {"lm": ">=", "lm-base": "<="}


def test_the_table_of_an_image_organism_cannot_be_capped() -> None:
    with pytest.raises(InputError, match="'cnn': n=5, but an image organism"):
        check("cnn", n=5)

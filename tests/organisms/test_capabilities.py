"""What a line of a capability table demands, and which table an organism gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from interneuron.core.errors import InputError
from interneuron.core.files import write_json
from interneuron.organisms import catalogue, tinyworld
from interneuron.organisms.capabilities import VALIDATION, Banded, Line, banded, spearman, table_for
from interneuron.organisms.check import check, label, requirement
from interneuron.organisms.tinyworld import words


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


class Fixed:
    """A task whose accuracy depends on its dial and on the sampling seed alone."""

    def __init__(self, hops: int, seed: int) -> None:
        self.hops, self.seed = hops, seed

    def accuracy(self, model: object) -> float:
        lucky = 0.55 if self.hops == 1 and self.seed != VALIDATION else None
        return lucky or {1: 0.95, 2: 0.7, 3: 0.1}[self.hops]


def test_a_band_is_judged_at_the_dial_that_other_items_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    from interneuron.organisms import tinyworld

    def task(name: str, n: int, seed: int, hops: int) -> Fixed:
        return Fixed(hops, seed)

    monkeypatch.setattr(tinyworld, "task", task)
    line = banded("open form", "ontology", "hops", (1, 2), (0.3, 0.85), also=({"hops": 3},))
    assert line.task == "open form (band 0.3-0.85)"
    assert isinstance(line.measure, Banded)
    assert line.measure.choose(None, 5) == {"hops": 2}
    assert line.measure(None, 5, 1) == 0.7  # not the .55 that one hop happens to give on these items
    assert line.met(0.7)


def test_the_dials_of_the_bands_exist() -> None:
    for line in table_for("lm"):
        if isinstance(line.measure, Banded):
            for setting in line.measure.settings:
                assert len(tinyworld.task(line.measure.name, n=2, seed=0, **setting)) == 2
    with pytest.raises(InputError, match=r"objects must lie in 2\.\.40"):
        tinyworld.task("co", n=1, seed=0, objects=41)


def test_many_objects_keep_one_color_each_and_a_wrong_one_that_is_wrong() -> None:
    task = tinyworld.task("co", n=50, seed=0, objects=28)
    for prompt, answer, wrong in zip(task.prompts, task.answers, task.wrong, strict=True):
        told = prompt.split()
        keys = told[4 : 4 + 3 * 28 : 3]
        assert len(set(keys)) == 28
        assert told[4 + 3 * keys.index(told[-1]) + 1] == answer != wrong
    plain, filled = (tinyworld.task("co", n=20, seed=0, objects=4, filler=f) for f in (False, True))
    assert filled.answers == plain.answers
    assert [p.replace(" is ", " ") for p in filled.prompts] == plain.prompts


def test_mixed_demonstrations_tell_other_relations() -> None:
    share = []
    for mixed in (0.0, 0.5, 1.0):
        task = tinyworld.task("icl", n=60, seed=0, mixed=mixed)
        own = total = 0
        for item in task.items:
            relation = str(item.doc.latents["relation"])
            for at, _ in item.doc.roles["value"][:-1]:
                own += item.doc.words[at] in words.VALUES[relation]
                total += 1
            assert item.doc.words[item.doc.roles["value"][-1][0]] in words.VALUES[relation]
        share.append(own / total)
    assert share[0] == 1.0
    assert share[1] == pytest.approx(0.5, abs=0.05)
    assert share[2] == 0.0


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


def test_some_rows_of_a_card_are_recomputed_and_the_others_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from interneuron.organisms import capabilities

    lines = [Line("kept", nothing, 5), Line("again", nothing, 5, ">=", 0.4)]
    lines.append(banded("dial", "co", "objects", (2,), (0.0, 1.0), n=3))
    monkeypatch.setattr(capabilities, "table_for", lambda name: lines)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    LlamaForCausalLM(LlamaConfig(vocab_size=1152, **size)).save_pretrained(tmp_path)
    recipe = catalogue.recipe("lm").hash
    stored = {"task": "kept", "n": 9, "values": [0.1], "value": 0.1, "rule": "report", "required": None, "passed": None}
    old = stored | {"task": "again", "passed": False}
    write_json(tmp_path / "card.json", {"recipe": recipe, "seeds": [1], "capabilities": [stored, old]})
    card = check("lm", tmp_path, seeds=(1,), tasks=["again"], write=True)
    kept, again, dial = card["capabilities"]
    assert kept == stored
    assert (again["value"], again["passed"], card["short"]) == (0.5, True, [])
    assert dial["dial"] == {"objects": 2}
    assert label(dial) == "dial (band 0-1), at objects=2"
    with pytest.raises(InputError, match=r"seeds \[2\], no n; got recipe .* seeds \[1\]"):
        check("lm", tmp_path, seeds=(2,), tasks=["again"])

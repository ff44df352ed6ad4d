"""The conformance suite: every method of the package passes it, and every rule can be failed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from plugin import CLAIM, METHOD, write_plugin

from interneuron.core.cards import Card, find_card
from interneuron.model.model import Model
from interneuron.testing import assert_conforms, cards_of, findings
from interneuron.testing.state import snapshot

REPOSITORY = Path(__file__).resolve().parent.parent.parent


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("card", cards_of("interneuron"), ids=lambda card: card.slug)
def test_every_method_conforms(card: Card) -> None:
    assert_conforms(card)


@pytest.mark.parametrize("card", cards_of("interneuron"), ids=lambda card: card.slug)
def test_every_method_has_its_three_files(card: Card) -> None:
    package = REPOSITORY / "src" / "interneuron"
    assert (package / card.family / f"{card.slug}.py").is_file()
    assert (package / "claims" / card.family / f"{card.slug}.py").is_file()
    assert (REPOSITORY / "tests" / card.family / f"test_{card.slug}.py").is_file()


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unchecked: None) -> object:
    """A function that writes the plug-in with one piece of text replaced and returns what the suite finds."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def run(old: str = "", new: str = "", in_claim: bool = False) -> dict[str, str]:
        assert old in (CLAIM if in_claim else METHOD)
        method = METHOD if in_claim else METHOD.replace(old, new)
        claim = CLAIM.replace(old, new) if in_claim else CLAIM
        write_plugin(tmp_path, method, claim)
        return findings(find_card("row_centre"), load=stand_in)

    return run


class StandIn:
    d_model = 4


def stand_in(name: str) -> Model:
    return StandIn()  # type: ignore[return-value]


def test_a_plugin_that_keeps_the_rules_passes(check) -> None:
    assert check() == {}


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("Departures: none.\n", "", "docstring_has_its_sections"),
        ("Cost: one pass.", "Cost:", "docstring_has_its_sections"),
        ('"""Centre of rows."""', "x = 1", "public_objects_are_documented"),
        ("def fit(self, x, site=", "def fit(self, x, learning_rate=0, site=", "arguments_have_their_names"),
        ('exports=("RowCentre",)', 'exports=("RowCenter",)', "exports_exist"),
        ("CARD = Card(", "X = 1\nCARD = Card(", "card_is_stated_once"),
        ("site=\"layers.0.resid_post\")\n", "site=nowhere)\n", "use_lines_run"),
        ("x.double().mean(0)", "(x.double().mean(0) + torch.rand(1))", "same_seed_gives_same_bits"),
        ("x.double().mean(0)", "(x.double().mean(0) + torch.rand(1))", "leaves_everything_as_it_was"),
        ("x.double().mean(0)", "x.mul_(2).double().mean(0)", "inputs_are_not_changed"),
        ("x.double().mean(0)", "x.as_strided((x.shape[1],), (1,))", "layout_does_not_matter"),
        ("raise InputError(", "raise ValueError(", "few_rows_work_or_teach"),
        ("raise InputError(", "raise InputError('two\\nlines' or ", "few_rows_work_or_teach"),
        ("mean row.\"\n", "mean row.\"\n        x = x.nan_to_num()\n", "nan_is_never_hidden"),
        ("x.double().mean(0)", "x.view(torch.int32).double().mean(0)", "other_dtypes_work_or_teach"),
    ],
)  # fmt: skip
def test_every_rule_can_be_broken(check, old: str, new: str, rule: str) -> None:
    found = check(old, new)
    assert rule in found, found


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ('slug="row_centre"', 'slug="row_center"', "claim_is_stated"),
        ("def claim(seed)", "def claim(n)", "claim_is_stated"),
        ("def example()", "def sample()", "claim_is_stated"),
        ("return RowCentre().fit(tensors(12, 4, 0)", "return (tensors(12, 4, 0)", "same_seed_gives_same_bits"),
    ],
)
def test_claim_files_have_rules_too(check, old: str, new: str, rule: str) -> None:
    assert rule in check(old, new, in_claim=True)


def test_a_missing_claim_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(write_plugin(tmp_path, claim=None)))
    with pytest.raises(AssertionError, match="row_centre fails 1 checks"):
        assert_conforms(find_card("row_centre"))


@pytest.mark.usefixtures("unchecked")  # beartype draws from Python's global generator
@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda m: m.weight.data.add_(1), "weights"),
        (lambda m: m.eval(), "training"),
        (lambda m: m.register_forward_hook(print), "hooks"),
        (lambda m: m.weight.requires_grad_(False), "requires grad"),
        (lambda m: setattr(m, "forward", print), "modules"),
        (lambda m: m(torch.ones(2)).sum().backward(), "gradients"),
        (lambda m: torch.rand(1), "torch rng"),
    ],
)
def test_every_change_of_state_is_seen(change, part: str) -> None:
    module = torch.nn.Linear(2, 2)
    before = snapshot(module)
    assert before.differences(snapshot(module)) == []
    change(module)
    assert any(line.startswith(part) for line in before.differences(snapshot(module)))

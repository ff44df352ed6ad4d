"""Running the checks over cards."""

from __future__ import annotations

from collections.abc import Callable

from interneuron.core.cards import Card, all_cards
from interneuron.model.model import Model
from interneuron.testing import behaviour, statements
from interneuron.testing.subject import Subject

Check = Callable[[Subject], None]


def cards_of(package: str = "interneuron") -> list[Card]:
    """Return the cards of the methods that live in `package` (its import name)."""
    return [card for card in all_cards() if card.module.split(".")[0] == package]


def checks_for(subject: Subject) -> list[Check]:
    """Return the checks that apply: statements and behaviour always, tensor checks where the claim file offers them."""
    checks: list[Check] = [*statements.CHECKS, *behaviour.CHECKS]
    if subject.works_on_tensors:
        checks += behaviour.TENSOR_CHECKS
    return checks


def findings(card: Card, load: Callable[[str], Model] | None = None) -> dict[str, str]:
    """Return, by name of the check, what is wrong with a method; empty when it conforms."""
    subject = Subject(card, load)
    try:
        checks = checks_for(subject)
    except ImportError as error:
        return {"claim_is_stated": f"the claim file cannot be imported: {error}"}
    wrong: dict[str, str] = {}
    for check in checks:
        try:
            check(subject)
        except Exception as error:
            # One failing check must not hide the others.
            said = str(error).splitlines()[0] if str(error) else ""
            wrong[check.__name__] = said if isinstance(error, AssertionError) else f"{type(error).__name__}: {said}"
    return wrong


def assert_conforms(card: Card, load: Callable[[str], Model] | None = None) -> None:
    """Raise AssertionError with one line for each check that a method fails."""
    wrong = findings(card, load)
    assert not wrong, f"{card.slug} fails {len(wrong)} checks:\n" + "\n".join(f"  {k}: {v}" for k, v in wrong.items())

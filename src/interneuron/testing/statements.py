"""Checks of what a method says: card, docstring, signature, claim. Nothing is run but imports."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

from interneuron.core.letters import SYNONYMS
from interneuron.testing.subject import Subject

SECTIONS = ("Paper", "Idea", "Equations", "Shapes", "Cost", "Departures", "Use")
_STARTS = "|".join(SECTIONS)


def card_is_stated_once(subject: Subject) -> None:
    """The card read as text is the card the module holds, and it precedes all other statements but imports."""
    card = subject.method.CARD
    assert card == subject.card, f"the imported card differs from the one read as text: {card} != {subject.card}"
    tree = ast.parse(inspect.getsource(subject.method))
    body = [node for node in tree.body if not isinstance(node, ast.Import | ast.ImportFrom | ast.Expr | ast.If)]
    assert "CARD" in ast.dump(body[0]), "the first statement after the imports must be the card"


def exports_exist(subject: Subject) -> None:
    """Every export is in the module and defined there."""
    for name in subject.card.exports:
        found = getattr(subject.method, name, None)
        assert found is not None, f"the card exports {name!r}, which the module does not have"
        home = getattr(found, "__module__", subject.card.module)
        assert home == subject.card.module, f"{name} is defined in {home}; a method exports what it defines"


def docstring_has_its_sections(subject: Subject) -> None:
    """The module docstring has all sections, in order, none empty."""
    found = sections(subject)
    missing = [name for name in SECTIONS if not found.get(name, "").strip()]
    assert not missing, f"the module docstring lacks {', '.join(missing)}"
    order = [name for name in found if name in SECTIONS]
    assert order == list(SECTIONS), f"sections stand in the order {order}, expected {list(SECTIONS)}"


def public_objects_are_documented(subject: Subject) -> None:
    """Every export and every public method of an exported class has a docstring."""
    for name, thing in public_objects(subject):
        assert inspect.getdoc(thing), f"{name} has no docstring"


def arguments_have_their_names(subject: Subject) -> None:
    """No public parameter uses a synonym of a name in the vocabulary."""
    for name, thing in public_objects(subject):
        if not callable(thing):
            continue
        wrong = {p: SYNONYMS[p] for p in inspect.signature(thing).parameters if p in SYNONYMS}
        assert not wrong, f"{name}: " + ", ".join(f"call {old!r} {new!r}" for old, new in wrong.items())


def claim_is_stated(subject: Subject) -> None:
    """The claim file states its claim and offers `claim(seed)` and `example`."""
    claim = subject.claim
    assert claim.slug == subject.card.slug, f"CLAIM.slug is {claim.slug!r}, expected {subject.card.slug!r}"
    parameters = list(inspect.signature(subject.claim_file.claim).parameters)
    assert parameters == ["seed"], f"claim({', '.join(parameters)}): expected claim(seed)"
    assert callable(getattr(subject.claim_file, "example", None)), "the claim file has no example()"


CHECKS: tuple[Callable[[Subject], None], ...] = (
    card_is_stated_once,
    exports_exist,
    docstring_has_its_sections,
    public_objects_are_documented,
    arguments_have_their_names,
    claim_is_stated,
)


def sections(subject: Subject) -> dict[str, str]:
    """Return the sections of the module docstring by name, in the order they stand."""
    text = inspect.getdoc(subject.method) or ""
    parts = re.split(rf"^({_STARTS})\b[^:\n]*:", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def public_objects(subject: Subject) -> Iterator[tuple[str, Any]]:
    """Yield every export and the public methods of exported classes, with their names."""
    for name in subject.card.exports:
        thing = getattr(subject.method, name)
        yield name, thing
        if inspect.isclass(thing):
            for inner, member in vars(thing).items():
                if inspect.isfunction(member) and not inner.startswith("_"):
                    yield f"{name}.{inner}", member

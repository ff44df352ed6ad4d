"""The `.pyi` files of the families, generated from the cards so that type checkers see the lazy names.

`make stubs` (or `python -m interneuron.testing.stubs`) rewrites them; a test fails when one is out of date.
"""

from __future__ import annotations

import sys
from pathlib import Path

from interneuron.core.cards import FAMILIES, all_cards

PACKAGE = Path(__file__).resolve().parent.parent


def stub(family: str) -> str:
    """Return the text of a family's `__init__.pyi`."""
    lines = ["# Generated from the cards of this folder by `make stubs`; not edited by hand."]
    for card in all_cards(family):
        if card.module.startswith("interneuron."):
            home = f"interneuron.{family}.{card.slug}"
            # constants, classes, functions: the order in which the linter sorts imports
            names = sorted(card.exports, key=lambda name: (not name.isupper(), not name[0].isupper(), name.lower()))
            lines += [f"from {home} import {name} as {name}" for name in names]
    return "\n".join(lines) + "\n"


def stale() -> list[Path]:
    """Return the stubs that differ from what the cards say."""
    return [path for path, text in _wanted().items() if not path.is_file() or path.read_text(encoding="utf-8") != text]


def write() -> list[Path]:
    """Rewrite the stale stubs and return them."""
    changed = stale()
    wanted = _wanted()
    for path in changed:
        path.write_text(wanted[path], encoding="utf-8")
    return changed


def _wanted() -> dict[Path, str]:
    families = [family for family in FAMILIES if (PACKAGE / family / "__init__.py").is_file()]
    return {PACKAGE / family / "__init__.pyi": stub(family) for family in families}


if __name__ == "__main__":
    for path in write():
        sys.stdout.write(f"wrote {path.relative_to(PACKAGE.parent)}\n")

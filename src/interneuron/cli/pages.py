"""The documentation pages of the methods, each made from its card, docstring, claim and result: `make pages`.

    python -m interneuron.cli.pages [SLUG ...]      in the root of the repository

writes docs/methods/<slug>.md, the table docs/methods/all.md and, where the method or claim file has changed, draws in
docs/pictures/methods/<slug>.svg what the claim's example makes. `stale()` names what is out of date and runs nothing.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

from interneuron.claims.runner import RESULTS, claim_path, source_hash, stored_result
from interneuron.claims.table import state
from interneuron.cli.methods import sections
from interneuron.cli.model import load_quietly
from interneuron.cli.picture import source_of, svg
from interneuron.core.cards import FAMILIES, KINDS, Card, all_cards, find_card
from interneuron.core.errors import InputError
from interneuron.testing.subject import model_for

DOCS = Path("docs")
INDEX = "methods/all.md"

HEAD = """# All methods

By family. Every method is [three files](../methods.md); what its paper promises is repeated under
[three seeds or more](../claims.md). `interneuron methods --search WORDS` finds one by what it is for.
"""


def page(card: Card) -> str:
    """The page of one method."""
    parts = sections(card)
    first, _, more = parts[""].partition("\n")
    title = first.partition(":")[0]
    lines = [
        f"# {title.strip()}",
        "",
        f"{card.purpose}.",
        "",
        f"![{card.slug}](../pictures/methods/{card.slug}.svg)",
        "",
    ]
    lines += _facts(card)
    if more.strip():
        lines += ["", more.strip()]
    lines += ["", "## Use", "", "```python", "import interneuron as inn", "", _dedent(parts.get("Use", "")), "```", ""]
    lines += _result(card, stored_result(RESULTS / f"{card.slug}.json"))
    for name in ("Idea", "Equations", "Shapes", "Cost", "Departures"):
        text = _dedent(parts.get(name, ""))
        lines += ["", f"## {name}", "", *(["```text", text, "```"] if name == "Equations" else [_prose(text)])]
    lines += ["", "## Cite", "", "```bibtex", card.cite(), "```"]
    return "\n".join(lines) + "\n"


def index() -> str:
    """The table of all methods by family."""
    lines = [HEAD]
    for family, what in FAMILIES.items():
        cards = [card for card in all_cards(family) if card.module.startswith("interneuron.")]
        if cards:
            lines += [f"## {family}", "", f"{what[0].upper()}{what[1:]}.", "", "| method | purpose | kind | claim |"]
            lines.append("| --- | --- | --- | --- |")
            for card in cards:
                verdict = state(card, stored_result(RESULTS / f"{card.slug}.json"))
                name = f"[{card.slug}]({card.slug}.md)" if claim_path(card) is not None else card.slug
                lines.append(f"| {name} | {card.purpose} | {card.kind} | {verdict} |")
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def picture(card: Card) -> str:
    """Run the claim's example and draw what it made."""
    module = importlib.import_module(card.claim_module)
    arguments: list[Any] = []
    if "model" in inspect.signature(module.example).parameters:
        arguments.append(load_quietly(model_for(module.CLAIM.organism)))
    return svg(plot_of(module.example(*arguments), card.slug), source_hash(card))


def plot_of(made: Any, slug: str) -> dict[str, Any]:
    """The plot of an artifact; the first one of a report that has several.

    Raises InputError when it has none.
    """
    plots = getattr(made, "plots", None)
    if plots:
        return next(iter(plots.values()))
    if not callable(getattr(made, "plot", None)) or plots == {}:
        raise InputError(
            f"{slug}: the example's {type(made).__name__} has no plot. Give its class a plot(), or its report one"
        )
    return made.plot()


def stale(docs: Path = DOCS) -> list[Path]:
    """Pages and pictures that differ from what cards, docstrings, results and code say, or should not be there."""
    wanted = _texts(docs)
    old = [path for path, text in wanted.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    for card in _own():
        path = _picture_path(docs, card)
        if not path.is_file() or source_of(path.read_text(encoding="utf-8")) != source_hash(card):
            old.append(path)
    kept = {*wanted, *(_picture_path(docs, card) for card in _own())}
    present = {*(docs / "methods").glob("*.md"), *(docs / "pictures" / "methods").glob("*.svg")}
    return sorted({*old, *(present - kept)})


def write(slugs: list[str], docs: Path = DOCS) -> list[Path]:
    """Bring pages and pictures up to date (all, or those of `slugs` and the table); return what changed."""
    chosen = [find_card(slug).slug for slug in slugs] or [card.slug for card in _own()]
    wanted, changed = _texts(docs), []
    cards = {card.slug: card for card in _own()}
    for path in stale(docs):
        if path.stem not in chosen and path.name != "all.md" and (slugs or path.stem in cards):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if path in wanted:
            path.write_text(wanted[path], encoding="utf-8")
        elif path.stem in cards:
            path.write_text(picture(cards[path.stem]), encoding="utf-8")
        else:
            path.unlink()  # of a method that is gone
        changed.append(path)
    return changed


def _own() -> list[Card]:
    return [card for card in all_cards() if card.module.startswith("interneuron.") and claim_path(card) is not None]


def _texts(docs: Path) -> dict[Path, str]:
    return {docs / INDEX: index(), **{docs / "methods" / f"{card.slug}.md": page(card) for card in _own()}}


def _picture_path(docs: Path, card: Card) -> Path:
    return docs / "pictures" / "methods" / f"{card.slug}.svg"


def _facts(card: Card) -> list[str]:
    paper = f"[{card.paper}]({card.link})" if card.link else card.paper
    needs = ", ".join(f"`{name}`" for name in card.needs)
    return [
        f"- `interneuron.{card.family}.{card.entry}`, a {card.kind}: {KINDS[card.kind]}",
        f"- paper: {paper} ({card.year})",
        *([f"- needs {needs}"] if needs else []),
    ]


def _result(card: Card, result: dict[str, Any] | None) -> list[str]:
    lines = ["## The claim, and what was measured", "", card.claim.rstrip(".") + "." if card.claim else ""]
    if result is None:
        lines += ["", f"Not measured yet: `interneuron claims run {card.slug}`."]
    else:
        arrow = "higher is better" if result["better"] == "higher" else "lower is better"
        n = len(result["seeds"])
        lines += ["", f"Verdict: **{state(card, result)}**, from {n} seeds on `{result['organism']}`.", ""]
        lines += [f"| | {result['unit']}, {arrow} | gain of the method, 95 % interval |", "| --- | --- | --- |"]
        for name, value in result["means"].items():
            gain = result["gains"].get(name)
            told = f"{gain['mean']:+.3g} [{gain['low']:+.3g}, {gain['high']:+.3g}]" if gain else ""
            lines.append(f"| {'this method' if name == 'ours' else name} | {value:.4g} | {told} |")
        if result["gates"]:
            lines += ["", "Further criteria, and the seeds that met them:", ""]
            lines += [f"- {text}: {met}" for text, met in result["gates"].items()]
        lines += ["", result["why"]] if result["why"] else []
    path = claim_path(card)
    told = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) if path else None
    return lines + (["", "### How it was measured", "", told.strip()] if told else [])


def _dedent(text: str) -> str:
    """The text of a section without the indent of its lines; its first line may stand behind the title."""
    first, newline, rest = text.strip("\n").partition("\n")
    if first.startswith(" ") and first[:4] == "    ":
        return textwrap.dedent(text.strip("\n")).rstrip()
    return (first.strip() + newline + textwrap.dedent(rest)).rstrip()


def _prose(text: str) -> str:
    """A section that is text: it begins with a capital now that its title stands above it."""
    text = text.replace("][", "]\\[")  # two shapes side by side are no link
    is_word = re.match(r"(a |[a-z]{2,}[ ,])", text)
    return text[0].upper() + text[1:] if is_word else text


def main() -> int:
    """Write what is out of date and name it."""
    if not DOCS.is_dir():
        sys.stderr.write("InputError: no folder docs/ here. Run it in the root of the repository\n")
        return 1
    for path in write(sys.argv[1:]):
        sys.stdout.write(f"{'wrote' if path.exists() else 'removed'} {path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

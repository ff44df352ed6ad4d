"""`interneuron methods`, `show` and `cite`: what the cards say; torch is not imported."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from interneuron.core.cards import KINDS, Card, find_card
from interneuron.core.cards import cite as bibtex
from interneuron.core.cards import methods as list_methods

SECTIONS = r"^(Paper|Idea|Equations|Shapes|Cost|Departures|Use)\b[^:\n]*:"


def methods(
    search: Annotated[str, typer.Option(help="Words that say what you want to do.")] = "",
    family: Annotated[str | None, typer.Option(help="Only this family, e.g. steer.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the cards as JSON.")] = False,
) -> None:
    """List the methods, or find them by purpose."""
    from rich.console import Console
    from rich.table import Table

    cards = list_methods(family, search)
    if as_json:
        typer.echo(json.dumps([{k: v for k, v in asdict(card).items() if k != "path"} for card in cards], indent=1))
        return
    if not cards:
        typer.echo(f"no method shares a word with {search!r}; `interneuron methods` lists all")
        raise typer.Exit(1)
    table = Table("method", "family", "kind", "year", "purpose", box=None, pad_edge=False)
    for card in cards:
        table.add_row(card.slug, card.family, card.kind, str(card.year), card.purpose)
    Console().print(table)


def show(slug: Annotated[str, typer.Argument(help="Name of a method, e.g. mean_difference.")]) -> None:
    """Everything about one method: purpose, claim, our measured result, an example, and its equations."""
    from interneuron.claims.runner import RESULTS, stored_result

    card = find_card(slug)
    parts = sections(card)
    facts = {
        "method": f"{card.slug}: {card.purpose}",
        "use": f"interneuron.{card.family}.{card.entry}",
        "kind": f"{card.kind}: {KINDS[card.kind]}",
        "paper": f"{card.paper} ({card.year}) {card.link}".rstrip(),
        "needs": ", ".join(card.needs) or "nothing beyond the base install",
        "claim": card.claim or "-",
    }
    lines = [f"{name:<8} {value}" for name, value in facts.items()]
    lines += measured(card, stored_result(RESULTS / f"{card.slug}.json"))
    lines += ["", "Use:", parts.pop("Use", "").rstrip(), ""]
    lines += [f"{name}:{text.rstrip()}\n" if name else f"{text.rstrip()}\n" for name, text in parts.items()]
    typer.echo("\n".join(lines).rstrip())


def sections(card: Card) -> dict[str, str]:
    """The parts of a method's docstring by their title; what precedes the first is under the empty title."""
    text = ast.get_docstring(ast.parse(Path(card.path).read_text(encoding="utf-8"))) or ""
    pieces = re.split(SECTIONS, text, flags=re.MULTILINE)
    return {"": pieces[0].strip("\n"), **{k: v.strip("\n") for k, v in zip(pieces[1::2], pieces[2::2], strict=True)}}


def measured(card: Card, result: dict[str, Any] | None) -> list[str]:
    """Our result: verdict, means, and every gate with the seeds that met it."""
    from interneuron.claims.table import state

    lines = [f"{'result':<8} {state(card, result)}"]
    if result is None:
        return [f"{lines[0]}; interneuron claims run {card.slug}"]
    arrow = "higher is better" if result["better"] == "higher" else "lower is better"
    means = ", ".join(f"{name} {value:.4g}" for name, value in result["means"].items())
    lines.append(f"{'':<8} {means} {result['unit']} ({arrow}), {len(result['seeds'])} seeds on {result['organism']}")
    for rival, gain in result["gains"].items():
        lines.append(f"{'':<8} gain over {rival} {gain['mean']:+.3g}, 95 % [{gain['low']:+.3g}, {gain['high']:+.3g}]")
    lines += [f"{'':<8} {met}: {text}" for text, met in result["gates"].items()]
    return lines + ([f"{'why':<8} {result['why']}"] if result["why"] else [])


def cite(slugs: Annotated[list[str], typer.Argument(help="Names of methods.")]) -> None:
    """Print the BibTeX entries of methods."""
    typer.echo("\n\n".join(bibtex(slug) for slug in slugs))

"""`interneuron methods`, `show` and `cite`: what the cards say; torch is not imported."""

from __future__ import annotations

import ast
import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from interneuron.core.cards import KINDS, find_card
from interneuron.core.cards import cite as bibtex
from interneuron.core.cards import methods as list_methods


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
    """Everything about one method: purpose, paper, equations, claim and its verdict."""
    from interneuron.claims.table import rows, state

    card = find_card(slug)
    text = ast.get_docstring(ast.parse(Path(card.path).read_text(encoding="utf-8"))) or ""
    facts = {
        "method": card.slug,
        "use": f"interneuron.{card.family}.{card.entry}",
        "kind": f"{card.kind}: {KINDS[card.kind]}",
        "paper": f"{card.paper} ({card.year}) {card.link}".rstrip(),
        "needs": ", ".join(card.needs) or "nothing beyond the base install",
        "claim": card.claim or "-",
        "verdict": next(state(known, result) for known, result in rows() if known.slug == card.slug),
    }
    typer.echo("\n".join(f"{name:<8} {value}" for name, value in facts.items()) + f"\n\n{text}")


def cite(slugs: Annotated[list[str], typer.Argument(help="Names of methods.")]) -> None:
    """Print the BibTeX entries of methods."""
    typer.echo("\n\n".join(bibtex(slug) for slug in slugs))

"""`interneuron claims run|table`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from interneuron.core.errors import InputError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.command()
def run(
    slugs: Annotated[list[str] | None, typer.Argument(help="Names of methods.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every method that has a claim.")] = False,
    seeds: Annotated[int, typer.Option(min=3, help="How many seeds, counted from 0.")] = 3,
    force: Annotated[bool, typer.Option(help="Measure anew what has been measured.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder of results; by default the package's own.")] = None,
) -> None:
    """Run claims, each in its own process; finished seeds are kept, so an interrupted run continues."""
    from interneuron.claims import runner

    if bool(slugs) == every:
        raise InputError("claims run: name methods, or pass --all to run every claim (one of the two)")
    chosen = [card.slug for card in runner.cards_with_claims()] if every else list(slugs or [])
    failed = False
    for slug in chosen:
        outcome = runner.run_claims([slug], range(seeds), out or runner.RESULTS, force)
        for name, result in outcome.items():
            if isinstance(result, str):
                typer.echo(f"{name:<24} failed          {result}")
                failed = True
                continue
            numbers = "  ".join(f"{arm} {mean:.4g}" for arm, mean in result["means"].items())
            typer.echo(f"{name:<24} {result['verdict']:<15} {numbers} {result['unit']}  ({result['seconds']:.0f} s)")
    if failed:
        raise typer.Exit(1)


@app.command()
def table(
    write: Annotated[bool, typer.Option(help="Write docs/claims.md of the repository you are in.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder of results; by default the package's own.")] = None,
) -> None:
    """Show the claims with their verdicts, or write them to docs/claims.md."""
    from rich.console import Console
    from rich.table import Table

    from interneuron.claims import table as page
    from interneuron.claims.runner import RESULTS

    if write:
        if not Path("docs").is_dir():
            raise InputError("claims table --write: no folder docs/ here. Run it in the root of the repository")
        Path("docs/claims.md").write_text(page.markdown(out or RESULTS), encoding="utf-8")
        typer.echo("wrote docs/claims.md")
        return
    shown = Table(*page.COLUMNS, box=None, pad_edge=False)
    for card, result in page.rows(out or RESULTS):
        shown.add_row(*page.cells(card, result))
    Console().print(shown)

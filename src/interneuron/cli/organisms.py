"""`interneuron organisms list|check|train`."""

from __future__ import annotations

import subprocess
import sys
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
Name = Annotated[str, typer.Argument(help="Name of an organism, e.g. lm.")]


@app.command("list")
def show_list() -> None:
    """List the small models whose truth is known: what ships, what is cached, what each cannot do."""
    from interneuron import organisms

    typer.echo(repr(organisms.list()))


@app.command()
def check(
    name: Name,
    n: Annotated[int | None, typer.Option(min=1, help="At most so many items per task, for a quick look.")] = None,
) -> None:
    """Recompute the capability table of an organism; exit status 1 when it falls short of a gate."""
    from interneuron.organisms.check import check as recompute
    from interneuron.organisms.check import format_table

    card = recompute(name, n=n)
    typer.echo(format_table(card))
    if card["short"]:
        typer.echo(f"short of: {', '.join(card['short'])}", err=True)
        raise typer.Exit(1)


@app.command()
def train(name: Name) -> None:
    """Train an organism into the cache; an interrupted training continues where it stopped."""
    # A process of its own: training sets thread counts and allocators that must not leak into this one.
    done = subprocess.run([sys.executable, "-m", "interneuron.organisms.train", name], check=False)
    raise typer.Exit(done.returncode)

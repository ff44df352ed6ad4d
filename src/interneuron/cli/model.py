"""`interneuron sites` and `interneuron steer`: what a model offers, and a first direction, without writing a script."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from interneuron.artifacts import Direction
    from interneuron.model.model import Model

MODEL = Annotated[str, typer.Argument(help="A shipped model, a local folder or a Hugging Face id.")]


def sites(
    model: MODEL,
    pattern: Annotated[
        str, typer.Argument(help="Glob with ranges, e.g. 'layers.2-5.attn.*', or module paths with ':out'.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the sites as JSON.")] = False,
) -> None:
    """List the sites of a model; without a pattern, one line for all layers together."""
    import json

    from rich.console import Console
    from rich.table import Table

    from interneuron.cli.tour_steps import site_rows

    loaded = load_quietly(model)
    if as_json:
        found = [{"name": s.name, "axes": s.axes, "path": s.path} for s in loaded.sites(pattern or "*")]
        typer.echo(json.dumps(found, indent=1))
        return
    table = Table(
        box=None, pad_edge=False, title=f"{type(loaded.module).__name__}, family {loaded.family or 'unknown'}"
    )
    if pattern:
        table.add_column("site", no_wrap=True)
        table.add_column("axes", no_wrap=True)
        table.add_column("module", overflow="fold")
        for site in loaded.sites(pattern):
            table.add_row(site.name, ", ".join(site.axes) or "known once it fires", site.path)
    elif loaded.family is None:
        raise typer.BadParameter("no family maps this model: list its modules with a pattern such as '*:out'")
    else:
        for column in ("site", "how many", "axes", "what it is"):
            table.add_column(
                column, justify="right" if column == "how many" else "left", no_wrap=column != "what it is"
            )
        for row in site_rows(loaded):
            table.add_row(row["site"].strip("`"), str(row["how many"]), row["axes"], row["what it is"])
    Console().print(table)


def steer(
    model: MODEL,
    positive: Annotated[list[str], typer.Option(help="A text, or a file with one text per line. Repeatable.")],
    negative: Annotated[list[str], typer.Option(help="Its opposite, in the same way. Repeatable.")],
    prompt: Annotated[str, typer.Option(help="What the model continues.")],
    site: Annotated[str, typer.Option(help="Where to read and push (default: the stream in the middle).")] = "",
    alpha: Annotated[float, typer.Option(help="Length of the push as a share of the activations' own length.")] = 0.3,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="How much to write.")] = 40,
    save: Annotated[Path | None, typer.Option(help="Folder to save the direction to.")] = None,
) -> None:
    """Find a direction from contrasting texts and generate with it, beside a random push of the same length."""
    from rich.console import Console
    from rich.table import Table

    loaded = load_quietly(model)
    good, bad = texts_of("--positive", positive), texts_of("--negative", negative)
    site = site or f"layers.{loaded.n_layers // 2}.resid_post"
    direction = scaled_direction(loaded, good, bad, site)
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 1, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in continuations(loaded, direction, alpha, prompt, max_new_tokens):
        table.add_row(label, text)
    console = Console(highlight=False)
    n_good, n_bad = len(good), len(bad)
    console.print(
        f"direction at [bold]{site}[/] from {n_good} positive and {n_bad} negative texts; pushed by {alpha:g} of the "
        f"activations' length ({alpha * float(direction.norm):.3g})\n[dim]{prompt}[/] ...\n"
    )
    console.print(table)
    if save is not None:
        direction.save(save)
        console.print(f"direction saved to {save}")


def texts_of(option: str, given: list[str]) -> list[str]:
    """The texts an option names: each value is a text, or a file with one text per line.

    Raises InputError for a file without text or one that is not UTF-8.
    """
    from interneuron.core.errors import InputError

    texts = []
    for value in given:
        if len(value) < 256 and "\n" not in value and Path(value).is_file():
            try:
                lines = Path(value).read_text(encoding="utf-8").splitlines()
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{option} {value!r} is not UTF-8 text (byte {error.start}): convert it first."
                ) from error
            texts += [line.strip() for line in lines if line.strip()]
        else:
            texts.append(value)
    if not [text for text in texts if text.strip()]:
        raise InputError(f"{option} {given!r} holds no text: give a text, or a file with one text per line.")
    return texts


def scaled_direction(model: Model, positive: list[str], negative: list[str], site: str) -> Direction:
    """The mean difference at a site, as long as an activation there typically is, so that alpha 1 doubles it."""
    import torch

    from interneuron.parts.contrast import last_token_activations
    from interneuron.steer import MeanDifference

    groups = [last_token_activations(model, texts, [site])[site] for texts in (positive, negative)]
    direction = MeanDifference().fit_activations(*groups, site=model.site(site).name)
    length = float(torch.cat(groups).norm(dim=-1).mean())
    return direction.replace(vector=direction.unit * length, fingerprint=model.fingerprint)


def continuations(model: Model, direction: Direction, alpha: float, prompt: str, n: int) -> list[tuple[str, str]]:
    """Greedy continuations: without an edit, pushed both ways, and pushed as far in two random directions."""
    from interneuron.cli.tour_direction import continuation

    edits: list[tuple[str, Any]] = [
        ("no edit", None),
        ("towards positive", direction.edit(alpha=alpha)),
        ("towards negative", direction.edit(alpha=-alpha)),
        ("random push 1", direction.random_like(0).edit(alpha=alpha)),
        ("random push 2", direction.random_like(1).edit(alpha=alpha)),
    ]
    return [(label, continuation(model, prompt, edit, n)) for label, edit in edits]


def load_quietly(name: str) -> Model:
    """`inn.load` without the progress bar."""
    from transformers.utils import logging

    from interneuron.loading import load

    logging.disable_progress_bar()  # the bar of a model that loads in a second only clutters the output
    return load(name)

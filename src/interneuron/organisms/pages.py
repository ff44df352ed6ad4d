"""The documentation page of an organism, written from its card and the first words of its recipe.

python -m interneuron.organisms.pages docs/organisms
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any

from interneuron.core.files import atomic_write_bytes

from . import catalogue
from .check import label, requirement

INDEX = """# Model organisms

Small trained models whose data, and so whose truth, is generated: [`tinyworld`](tinyworld.md) is the world of the
language models, [`shapes`](shapes.md) that of the image models, [`toy`](toy.md) trains small networks on first use,
[`brainsim`](brainsim.md) records from simulated brains.

"""


def prose(name: str) -> str:
    """The docstring of the recipe file, read as text."""
    file = catalogue.HERE / "recipes" / f"{name.replace('-', '_')}.py"
    return ast.get_docstring(ast.parse(file.read_text())) or ""


def page(name: str) -> str:
    """Markdown: what it is, what it can do and cannot, artefacts, licence, how to retrain."""
    organism = catalogue.Organism(name)
    card = organism.card
    parts = [f"# `{name}`", prose(name)]
    if not card:
        parts.append(f"Not shipped. `python -m interneuron.organisms.train {name}` trains it into the cache.")
        return "\n\n".join(parts) + "\n"
    parts += [_facts(organism, card), "## What it can do\n\n" + _table(card), _limits(card), _retrain(name, card)]
    return "\n\n".join(parts) + "\n"


def _facts(organism: catalogue.Organism, card: dict[str, Any]) -> str:
    training = card["training"]
    amount = (
        f"{training['tokens'] / 1e6:.1f}M tokens" if "tokens" in training else f"{training.get('images', 0):,} images"
    )
    if "after" in training:
        amount += f" after [`{training['after']}`]({training['after']}.md)"
    lines = [
        f"- class `{card['class']}`, {card['parameters'] / 1e6:.2f}M parameters, world `{card['world']}`",
        f"- trained on {amount} in {training.get('minutes', '?')} minutes "
        f"({training.get('threads', '?')} thread, {training.get('device', 'cpu')}), recipe `{card['recipe']}`",
        f"- checked with sampling seeds {', '.join(map(str, card['seeds']))}; torch {card['versions']['torch']}, "
        f"transformers {card['versions']['transformers']}",
        f"- licence: {card['licence']}",
    ]
    if organism.checkpoints:
        numbers = ", ".join(f"{t / 1e6:.2f}M" for t in organism.checkpoints)
        lines.append(f"- checkpoints (`inn.load({organism.name!r}, checkpoint=i)`) at tokens {numbers}")
    return "\n".join(lines)


def _table(card: dict[str, Any]) -> str:
    lines = ["| task | n | value | required | |", "| --- | --- | --- | --- | --- |"]
    for row in card["capabilities"]:
        verdict = {True: "met", False: "**short**", None: ""}[row["passed"]]
        lines.append(f"| {label(row)} | {row['n']} | {row['value']:.3f} | {requirement(row)} | {verdict} |")
    return "\n".join(lines)


def _limits(card: dict[str, Any]) -> str:
    short = "\n".join(f"- short of its gate: {task}" for task in card["short"]) or "- every gated task is reached"
    known = "\n".join(f"- {a}" for a in card["artefacts"])
    return "## What it cannot, and known artefacts\n\n" + short + ("\n" + known if known else "")


def _retrain(name: str, card: dict[str, Any]) -> str:
    return (
        "## Retrain and check\n\n```\n"
        f"python -m interneuron.organisms.train {name}\ninterneuron organisms check {name}\n```\n\n"
        "Training is resumable; it writes to the cache, never into the package."
    )


def main(folder: str) -> None:
    """Write one page per organism, and an index of all."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    rows = ["| name | what | parameters | short of |", "| --- | --- | --- | --- |"]
    for name in catalogue.names():
        atomic_write_bytes(target / f"{name}.md", page(name).encode())
        card = catalogue.Organism(name).card
        size = f"{card['parameters'] / 1e6:.2f}M" if card else "not shipped"
        short = ", ".join(card.get("short", [])) or "-"
        rows.append(f"| [`{name}`]({name}.md) | {prose(name).splitlines()[0]} | {size} | {short} |")
    atomic_write_bytes(target / "index.md", (INDEX + "\n".join(rows) + "\n").encode())


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "docs/organisms")

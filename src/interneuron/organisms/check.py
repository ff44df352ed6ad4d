"""Capability tables: recomputed from the stored weights, compared with what is required, written to the card.

from interneuron.organisms.check import check
card = check("lm")            # three sampling seeds
print(card["short"])          # gated tasks that are not reached
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from interneuron.core.errors import InputError
from interneuron.core.files import read_json, write_json
from interneuron.core.progress import track

from . import catalogue


def check(
    name: str,
    folder: Path | None = None,
    seeds: Sequence[int] = (1, 2, 3),
    n: int | None = None,
    write: bool = False,
    tasks: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Recompute the capability table of an organism.

    Args:
        name: the organism.
        folder: its weights; default where `organisms.path(name)` finds them.
        seeds: sampling seeds; a value is the mean over them.
        n: caps the items per task of a language organism (for a quick look).
        write: store the result as `card.json` beside the weights.
        tasks: recompute only the rows whose task contains one of these texts, and rows the stored card lacks; the
            others are taken from the stored card, which must be of the same recipe and seeds. Language organisms only.

    Returns the card: identity, training, `capabilities` (task, n, values, value, rule, required, passed and, for a
    band, the dial that was chosen), `short`.
    """
    recipe = catalogue.recipe(name)
    folder = folder or catalogue.home(name) or catalogue.path(name)
    if hasattr(recipe, "batch_size"):
        from . import vision_training

        given = f"n={n}" if n is not None else f"tasks={tasks}" if tasks is not None else ""
        if given:
            raise InputError(
                f"check {name!r}: {given}, but an image organism has a table of fixed size. Leave n and tasks out."
            )
        return vision_training.check(recipe, folder, seeds, write=write)
    card = _language_card(name, recipe, folder, seeds, n, tasks)
    if write:
        write_json(folder / "card.json", card)
    return card


def _stored_rows(name: str, recipe: Any, folder: Path, seeds: Sequence[int], n: int | None) -> dict[str, Any]:
    """The rows of the stored card by task, where it was computed as this one would be."""
    card = read_json(folder / "card.json") if (folder / "card.json").exists() else {}
    if n is not None or card.get("recipe") != recipe.hash or card.get("seeds") != list(seeds):
        raise InputError(
            f"check {name!r}: tasks need a stored card of recipe {recipe.hash}, seeds {list(seeds)}, no n; got recipe "
            f"{card.get('recipe')}, seeds {card.get('seeds')}, n={n}. Leave tasks out to compute all of them."
        )
    return {row["task"]: row for row in card["capabilities"]}


def _row(line: Any, model: Any, size: int, seeds: Sequence[int]) -> dict[str, Any]:
    from .capabilities import Banded, accuracy

    measure, dial = line.measure, {}
    if isinstance(measure, Banded):
        dial = measure.choose(model, size)
        measure = accuracy(measure.name, **dial)
    values = [round(measure(model, size, seed), 4) for seed in seeds]
    value = sum(values) / len(values)
    row = {"task": line.task, "n": size, "values": values, "value": round(value, 4), "rule": line.rule}
    row |= {"required": line.required, "passed": line.met(value)}
    return row | ({"dial": dial} if dial else {})


def _language_card(
    name: str, recipe: Any, folder: Path, seeds: Sequence[int], n: int | None, tasks: Sequence[str] | None
) -> dict[str, Any]:
    import torch
    import transformers

    from .capabilities import table_for

    model = transformers.AutoModelForCausalLM.from_pretrained(
        catalogue.usable(name, folder), dtype=torch.float32
    ).eval()
    stored = {} if tasks is None else _stored_rows(name, recipe, folder, seeds, n)
    rows = []
    for line in track(table_for(name), label=f"checking {name}", unit="tasks"):
        keep = line.task in stored and not any(text in line.task for text in tasks or ())
        rows.append(stored[line.task] if keep else _row(line, model, min(line.n, n or line.n), seeds))
    training = read_json(folder / "training.json") if (folder / "training.json").exists() else {}
    return {
        "name": name,
        "purpose": recipe.about,
        "class": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "world": f"tinyworld {recipe.world}",
        "recipe": recipe.hash,
        "seeds": list(seeds),
        "training": training,
        "capabilities": rows,
        "short": [row["task"] for row in rows if row["passed"] is False],
        "checkpoints": [tokens for tokens, _ in catalogue.series(folder)],
        "artefacts": list(recipe.artefacts),
        "licence": "same as the package",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


def requirement(row: dict[str, Any]) -> str:
    """What a row of a card requires, as text: '>= 0.9', '0.4-0.8', or nothing."""
    required = row["required"]
    if required is None:
        return ""
    return f"{required[0]:g}-{required[1]:g}" if row["rule"] == "in" else f"{row['rule']} {required:g}"


def label(row: dict[str, Any]) -> str:
    """What a row measures, with the dial setting that was chosen for its band."""
    dial = ", ".join(f"{k}={v}" for k, v in row.get("dial", {}).items())
    return f"{row['task']}, at {dial}" if dial else str(row["task"])


def format_table(card: dict[str, Any]) -> str:
    """The capability table as aligned text."""
    lines = [("task", "n", "value", "required", "")]
    for row in card["capabilities"]:
        required = requirement(row) or "report"
        verdict = {True: "met", False: "SHORT", None: ""}[row["passed"]]
        lines.append((label(row), str(row["n"]), f"{row['value']:.3f}", required, verdict))
    widths = [max(len(line[i]) for line in lines) for i in range(5)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)

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
    name: str, folder: Path | None = None, seeds: Sequence[int] = (1, 2, 3), n: int | None = None, write: bool = False
) -> dict[str, Any]:
    """Recompute the capability table of an organism.

    Args:
        name: the organism.
        folder: its weights; default where `organisms.path(name)` finds them.
        seeds: sampling seeds; a value is the mean over them.
        n: caps the items per task of a language organism (for a quick look).
        write: store the result as `card.json` beside the weights.

    Returns the card: identity, training, `capabilities` (task, n, values, value, rule, required, passed), `short`.
    """
    recipe = catalogue.recipe(name)
    folder = folder or catalogue.home(name) or catalogue.path(name)
    if hasattr(recipe, "batch_size"):
        from . import vision_training

        if n is not None:
            raise InputError(f"check {name!r}: n={n}, but an image organism has a table of fixed size. Leave n out.")
        return vision_training.check(recipe, folder, seeds, write=write)
    card = _language_card(name, recipe, folder, seeds, n)
    if write:
        write_json(folder / "card.json", card)
    return card


def _language_card(name: str, recipe: Any, folder: Path, seeds: Sequence[int], n: int | None) -> dict[str, Any]:
    import torch
    import transformers

    from .capabilities import table_for

    model = transformers.AutoModelForCausalLM.from_pretrained(
        catalogue.usable(name, folder), dtype=torch.float32
    ).eval()
    rows = []
    for line in track(table_for(name), label=f"checking {name}", unit="tasks"):
        size = min(line.n, n or line.n)
        values = [round(line.measure(model, size, seed), 4) for seed in seeds]
        value = sum(values) / len(values)
        rows.append(
            {"task": line.task, "n": size, "values": values, "value": round(value, 4), "rule": line.rule,
             "required": line.required, "passed": line.met(value)}
        )  # fmt: skip
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


def format_table(card: dict[str, Any]) -> str:
    """The capability table as aligned text."""
    lines = [("task", "n", "value", "required", "")]
    for row in card["capabilities"]:
        required = requirement(row) or "report"
        verdict = {True: "met", False: "SHORT", None: ""}[row["passed"]]
        lines.append((row["task"], str(row["n"]), f"{row['value']:.3f}", required, verdict))
    widths = [max(len(line[i]) for line in lines) for i in range(5)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)

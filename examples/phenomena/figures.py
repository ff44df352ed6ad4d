"""What every script here shares: the command line, a table in the terminal, and two kinds of picture."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import interneuron as inn


def arguments(purpose: str, n: int) -> tuple[inn.Model, int, Path]:
    """The model (default: the organism `lm`), the number of texts, and the folder the figure goes to."""
    parser = argparse.ArgumentParser(description=purpose, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", default="lm", help="an organism or a folder of a model that speaks Tinyworld")
    parser.add_argument("--n", type=int, default=n, help="texts to measure on")
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder for the figure")
    options = parser.parse_args()
    return inn.load(options.model), options.n, options.out


def batch(tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """Model arguments for token ids that are right-padded with 0."""
    return {"input_ids": tokens, "attention_mask": (tokens != 0).long()}


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table; numbers are written with three digits."""
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    for row in rows:
        table.add_row(*(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row))
    Console().print(table)


def heatmap(
    path: Path, values: Any, title: str, x: str, y: str, columns: Sequence[str] = (), rows: Sequence[str] = ()
) -> None:
    """Save a labelled heatmap of numbers around 0..1, each written in its cell."""
    from matplotlib.figure import Figure

    values = torch.as_tensor(values)
    figure = Figure(figsize=(0.62 * values.shape[1] + 1.8, 0.36 * values.shape[0] + 1.2))
    axes = figure.subplots()
    axes.imshow(values.tolist(), aspect="auto", cmap="RdBu_r", vmin=-1, vmax=1)
    for i, row in enumerate(values.tolist()):
        for j, value in enumerate(row):
            text, colour = f"{value:.2f}".replace("-0.00", "0.00"), "w" if abs(value) > 0.6 else "k"
            axes.text(j, i, text, ha="center", va="center", fontsize=7, color=colour)
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.set_xticks(range(values.shape[1]), columns or [str(i) for i in range(values.shape[1])])
    axes.set_yticks(range(values.shape[0]), rows or [str(i) for i in range(values.shape[0])])
    _save(figure, path)


def curves(
    path: Path, lines: Mapping[str, Sequence[float]], title: str, x: str, y: str, at: Sequence[Any] = ()
) -> None:
    """Save labelled curves over layers or strengths; controls (labels with "control") are dashed and grey."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, 3.0))
    axes = figure.subplots()
    for name, values in lines.items():
        style: dict[str, Any] = (
            {"linestyle": "--", "color": "0.55"} if "control" in name else {"marker": "o", "markersize": 4}
        )
        axes.plot(list(at) or range(len(values)), values, label=name, **style)
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    axes.grid(alpha=0.3)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, bbox_inches="tight")
    print(f"figure: {path}")

"""What every script here shares: the model named on the command line, and a picture of rows and columns."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import interneuron as inn


def arguments(purpose: str) -> tuple[inn.Model, Path]:
    """The model (default: the organism `lm`) and the folder the figure goes to."""
    parser = argparse.ArgumentParser(description=purpose)
    parser.add_argument("--model", default="lm", help="organism, folder or Hugging Face id (default: lm)")
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder for the figure")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    options.out.mkdir(parents=True, exist_ok=True)
    return inn.load(options.model), options.out


def batch(tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """Model arguments for token ids that are right-padded with 0."""
    return {"input_ids": tokens, "attention_mask": (tokens != 0).long()}


def heatmap(path: Path, values: Any, title: str, x: str, y: str, columns: Sequence[str] = (), limit: float = 0) -> None:
    """Save a labelled heatmap; a limit makes the colours symmetric around 0."""
    import matplotlib.pyplot as plt

    values = torch.as_tensor(values)
    figure, axes = plt.subplots(figsize=(max(4.0, 0.5 * values.shape[1] + 2), 0.45 * values.shape[0] + 1.6))
    scale = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit} if limit else {"cmap": "viridis"}
    image = axes.imshow(values, aspect="auto", **scale)
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.set_xticks(range(values.shape[1]), columns or range(values.shape[1]))
    axes.set_yticks(range(values.shape[0]))
    figure.colorbar(image)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    print(f"figure: {path}")


def curves(path: Path, lines: dict[str, Sequence[float]], title: str, x: str, y: str, at: Sequence[Any] = ()) -> None:
    """Save labelled curves over layers or strengths."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5.5, 3.4))
    for name, values in lines.items():
        axes.plot(list(at) or range(len(values)), values, marker="o", label=name)
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    print(f"figure: {path}")

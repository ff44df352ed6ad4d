"""Contrast groups: activations of two groups of texts, the difference of their means, and how well it separates.

    v = mean_i h(positive_i) - mean_i h(negative_i),   h(text) = activation at the last token of the text

A direction is fitted on one part of the texts and scored on another by the area under the ROC curve (AUC): the chance
that a positive text scores above a negative one. 0.5 is guessing, 1.0 is perfect.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from interneuron.core.errors import InputError, ShapeError
from interneuron.core.seeds import generator

if TYPE_CHECKING:
    from interneuron.model.model import Model


def last_token_activations(
    model: Model, texts: Sequence[str], sites: Sequence[str], batch_size: int = 32
) -> dict[str, Float[Tensor, "N D"]]:
    """Activation at the last token of each text, which has seen all of it, by site; float32 on the CPU."""
    if not texts:
        raise InputError("last_token_activations() was given no texts: pass at least one.")
    places = [model.site(site).at(pos=-1) for site in sites]
    parts: dict[str, list[Tensor]] = {site: [] for site in sites}
    for start in range(0, len(texts), batch_size):
        with torch.no_grad():
            acts = model.run(list(texts[start : start + batch_size]), read=places).acts
        for site, place in zip(sites, places, strict=True):
            parts[site].append(acts[place.name].float().cpu())
    return {site: torch.cat(rows) for site, rows in parts.items()}


def auc(positive: Float[Tensor, " N"], negative: Float[Tensor, " M"]) -> float:
    """Area under the ROC curve of two groups of scores; ties count half.

    >>> auc(torch.tensor([2.0, 3.0]), torch.tensor([1.0, 2.0]))
    0.875
    """
    if not len(positive) or not len(negative):
        raise InputError(f"auc() was given {len(positive)} and {len(negative)} scores: expected at least one in each.")
    gap = positive.double()[:, None] - negative.double()[None, :]
    return float((gap > 0).double().mean() + 0.5 * (gap == 0).double().mean())


@dataclasses.dataclass(frozen=True)
class Separation:
    """How well the mean difference at one site tells two groups apart on texts it was not fitted on.

    auc       on held-out texts      shuffled  AUC of directions fitted on shuffled labels, one per seed: fitting noise
    norm      typical length of an activation at the site (mean over the fitting texts of |h|)
    """

    site: str
    auc: float
    shuffled: tuple[float, ...]
    norm: float


def separation(
    site: str,
    fit: tuple[Tensor, Tensor],
    held: tuple[Tensor, Tensor],
    seeds: int = 8,
) -> Separation:
    """Fit the mean difference on (positive, negative) pairs and score other pairs, and so with shuffled labels.

    fit   activations of the two groups, each [N D]        held  of texts kept apart, each [M D]
    Raises ShapeError when the two groups of a pair differ in shape or are empty.
    """
    for name, (a, b) in {"fit": fit, "held": held}.items():
        if a.shape != b.shape or a.dim() != 2 or not len(a):
            raise ShapeError(
                f"{site}: the {name} groups have shapes {tuple(a.shape)} and {tuple(b.shape)}, expected equal [N D] "
                "with "
                "N >= 1. Give pairs: one negative text for each positive one."
            )
    gaps = fit[0] - fit[1]
    shuffled = []
    for seed in range(seeds):
        # Half of the pairs swap their labels, so that no trace of the true contrast is left on average.
        flip = torch.ones(len(gaps), 1)
        flip[torch.randperm(len(gaps), generator=generator(seed))[: len(gaps) // 2]] = -1
        shuffled.append(_score((gaps * flip).mean(0), held))
    norm = float(torch.cat(fit).norm(dim=-1).mean())
    return Separation(site, _score(gaps.mean(0), held), tuple(shuffled), norm)


def _score(vector: Tensor, held: tuple[Tensor, Tensor]) -> float:
    return auc(held[0] @ vector, held[1] @ vector)

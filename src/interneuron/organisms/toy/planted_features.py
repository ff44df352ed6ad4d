"""`planted_features`: activations that are sparse sums of known directions, some of which drive an output.

Equations. x = sum_k c_k d_k + noise, c_k = gamma draw with probability `density` else 0; y = sum_k effect_k c_k.
Truth. `dictionary` Float[m d] (unit rows), `codes` Float[n m] of the samples, `effect` Float[m], `coherence` (largest
|cosine| of two directions).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from interneuron.core.errors import InputError


@dataclass(frozen=True)
class PlantedFeatures:
    """x Float[n d], y Float[n] and their truth."""

    x: Tensor
    y: Tensor
    truth: dict[str, Tensor]


def make(
    seed: int,
    *,
    m: int = 64,
    d: int = 32,
    n: int = 4096,
    density: float = 0.05,
    coherence: float = 0.0,
    effective: int = 8,
    noise: float = 0.01,
) -> PlantedFeatures:
    """Sparse features in superposition (m > d allowed).

    coherence   0 leaves the directions random; towards 1 pulls each into a common cone
    effective   how many of the features change y; the others are read-only
    """
    if not 0.0 < density <= 1.0 or not 0.0 <= coherence < 1.0 or effective > m:
        raise InputError(
            f"planted_features needs 0 < density <= 1, 0 <= coherence < 1 and effective <= m; got {density}, "
            f"{coherence}, {effective} of {m}."
        )
    rng = torch.Generator().manual_seed(seed)
    own = F.normalize(torch.randn(m, d, generator=rng), dim=1)
    shared = F.normalize(torch.randn(1, d, generator=rng), dim=1)
    dictionary = F.normalize((1 - coherence) ** 0.5 * own + coherence**0.5 * shared, dim=1)
    on = torch.rand(n, m, generator=rng) < density
    # gamma with shape 2: the sum of two exponentials, bounded away from zero more than one
    size = -torch.rand(2, n, m, generator=rng).clamp_min(1e-9).log().sum(0) / 2
    codes = torch.where(on, size, 0.0)
    effect = torch.zeros(m)
    chosen = torch.randperm(m, generator=rng)[:effective]
    effect[chosen] = torch.where(torch.rand(effective, generator=rng) < 0.5, -1.0, 1.0)
    x = codes @ dictionary + noise * torch.randn(n, d, generator=rng)
    cosines = (dictionary @ dictionary.T).fill_diagonal_(0.0).abs().max()
    truth = {"dictionary": dictionary, "codes": codes, "effect": effect, "coherence": cosines}
    return PlantedFeatures(x, codes @ effect, truth)


def recovery(learned: Tensor, truth: Tensor) -> Tensor:
    """For each true direction, the largest |cosine| to a learned one, one to one: Float[m]. learned Float[k d]."""
    from scipy.optimize import linear_sum_assignment

    cosines = (F.normalize(truth, dim=1) @ F.normalize(learned, dim=1).T).abs()
    rows, columns = linear_sum_assignment(-cosines.numpy())
    out = torch.zeros(len(truth))
    out[torch.from_numpy(rows)] = cosines[torch.from_numpy(rows), torch.from_numpy(columns)]
    return out

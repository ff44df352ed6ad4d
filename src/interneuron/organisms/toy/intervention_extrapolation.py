"""`intervention_extrapolation`: actions move hidden factors, factors are seen through a mixing; what if we act harder?

Equations. A uniform in [-1, 1]^a, V ~ N(0, s^2 I), Z = A M + V, X = g(Z) (two injective leaky-ReLU layers),
Y = l(Z) + U with U = w . V + noise: U hides in V, so regressing Y on Z is biased where V is not accounted for.
E[Y | do(A = a)] = E_V[l(a M + V)], by Gauss-Hermite quadrature.

Shapes. a Float[n A], x Float[n D], y Float[n 1]; truth: z, v, mixing M, and `effect`: actions Float[K A] -> Float[K].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from interneuron.core.errors import InputError


@dataclass(frozen=True)
class Interventions:
    """truth: z, v Float[n Z], mixing Float[A Z], outcome (l), effect (of actions, exact), unseen Float[5 A]."""

    a: Tensor
    x: Tensor
    y: Tensor
    truth: dict[str, Any]


def make(seed: int, *, n: int = 2000, actions: int = 2, width: int = 10, spread: float = 0.3) -> Interventions:
    """`n` samples with actions inside [-1, 1]; `truth["unseen"]` are five actions of size 1.2 to 1.4 to ask about."""
    if n < 2 or not 1 <= actions <= 3 or width < actions or spread <= 0:
        raise InputError(
            f"intervention_extrapolation needs n >= 2, 1 <= actions <= 3, width >= actions and spread > 0; got {n}, "
            f"{actions}, {width}, {spread}."
        )
    rng = torch.Generator().manual_seed(seed)
    mixing = torch.linalg.qr(torch.randn(actions, actions, generator=rng))[0] * 1.2
    a = 2 * torch.rand(n, actions, generator=rng) - 1
    v = spread * torch.randn(n, actions, generator=rng)
    z = a @ mixing + v
    first = torch.linalg.qr(torch.randn(width, width, generator=rng))[0][:actions]
    second = torch.linalg.qr(torch.randn(width, width, generator=rng))[0]
    bias = 0.3 * torch.randn(width, generator=rng)
    x = F.leaky_relu(2.0 * z @ first + bias, 0.3) @ second  # full rank and monotone: injective
    x = F.leaky_relu(x, 0.3)
    hidden = torch.randn(actions, generator=rng)

    def outcome(at: Tensor) -> Tensor:
        return torch.sin(1.5 * at[..., 0]) + 0.7 * at[..., -1] ** 2 + 0.5 * at.sum(-1)

    y = outcome(z) + v @ hidden / spread * 0.5 + 0.05 * torch.randn(n, generator=rng)
    turn = torch.randn(5, actions, generator=rng).sign()
    unseen = turn * (1.2 + 0.2 * torch.rand(5, actions, generator=rng))
    truth = {"z": z, "v": v, "mixing": mixing, "outcome": outcome, "unseen": unseen}
    return Interventions(a, x, y[:, None], truth | {"effect": _effect(outcome, mixing, spread)})


def _effect(outcome: Callable[[Tensor], Tensor], mixing: Tensor, spread: float) -> Callable[[Tensor], Tensor]:
    """E_V[l(a M + V)] with 20 nodes an axis."""
    nodes, weights = (torch.from_numpy(v).float() for v in np.polynomial.hermite_e.hermegauss(20))
    axes = mixing.shape[1]
    grid = spread * torch.cartesian_prod(*[nodes] * axes).reshape(-1, axes)
    mass = torch.cartesian_prod(*[weights / weights.sum()] * axes).reshape(-1, axes).prod(1)

    def effect(actions: Tensor) -> Tensor:
        return outcome((actions @ mixing)[:, None] + grid) @ mass

    return effect

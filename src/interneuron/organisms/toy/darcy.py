"""`darcy`: steady flow through a random medium in one dimension, solved by two integrals.

Equations. -(a u')' = 1 on [0, 1], u(0) = u(1) = 0. Hence a u' = c - x, u(x) = int_0^x (c - s) / a(s) ds and
c = int_0^1 s / a ds / int_0^1 1 / a ds. a = exp(random cosine series); integrals by Simpson's rule on 4096 intervals.
Shapes. inputs a, outputs u: Float[n R] at R points from 0 to 1, both ends included.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from interneuron.core.errors import InputError

FINE = 4096


@dataclass(frozen=True)
class Darcy:
    """Media and flows. `at(R)` gives the same functions on another grid. truth: cosine Float[n K], c Float[n]."""

    x: Tensor
    inputs: Tensor
    outputs: Tensor
    truth: dict[str, Tensor]

    def at(self, resolution: int) -> Darcy:
        """The same functions at R points (R - 1 divides 4096, or any R: values between are interpolated linearly)."""
        return _solve(self.truth["cosine"], resolution)


def make(seed: int, *, n: int = 64, resolution: int = 65, modes: int = 6, contrast: float = 1.0) -> Darcy:
    """`n` random media; `contrast` is the standard deviation of log a."""
    if n < 1 or modes < 1 or resolution < 2 or contrast < 0:
        raise InputError(f"darcy needs n, modes >= 1, resolution >= 2, contrast >= 0; got {n}, {modes}, {resolution}.")
    rng = torch.Generator().manual_seed(seed)
    waves = torch.arange(1, modes + 1, dtype=torch.float64)
    cosine = torch.randn(n, modes, generator=rng, dtype=torch.float64) / waves
    scale = contrast / (0.5 * waves.square().reciprocal().sum()).sqrt()
    return _solve(cosine * scale, resolution)


def _solve(cosine: Tensor, resolution: int) -> Darcy:
    def medium(at: Tensor) -> Tensor:
        k = torch.arange(1, cosine.shape[1] + 1, dtype=torch.float64)[:, None]
        return (cosine @ torch.cos(math.pi * k * at)).exp()

    ends = torch.linspace(0, 1, FINE + 1, dtype=torch.float64)
    points = torch.linspace(0, 1, 2 * FINE + 1, dtype=torch.float64)  # ends and middles
    inverse = 1.0 / medium(points)
    whole, moment = (_integral(f) for f in (inverse, points * inverse))
    c = moment[:, -1] / whole[:, -1]
    u = c[:, None] * whole - moment
    x = torch.linspace(0, 1, resolution, dtype=torch.float64)
    place = (x * FINE).clamp(max=FINE)
    low = place.floor().long().clamp(max=FINE - 1)
    value = torch.lerp(u[:, low], u[:, low + 1], place - low)
    assert len(ends) == u.shape[1]
    return Darcy(x.float(), medium(x).float(), value.float(), {"cosine": cosine, "c": c})


def _integral(f: Tensor) -> Tensor:
    """Running integral at the interval ends from values at ends and middles: Float[n 2I+1] -> Float[n I+1]."""
    parts = (f[:, :-1:2] + 4 * f[:, 1::2] + f[:, 2::2]) / (6 * FINE)
    return torch.nn.functional.pad(parts.cumsum(1), (1, 0))

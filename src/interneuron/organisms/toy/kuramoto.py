"""`kuramoto`: coupled oscillators whose onset of synchrony is known.

Equations. dtheta_i / dt = omega_i + (K / deg_i) sum_j A_ij sin(theta_j - theta_i) + noise;  r = |mean e^{i theta}|.
For natural frequencies of a Lorentz law of half width g on a complete graph K_c = 2 / (pi g(0)) = 2 g and, above,
r = sqrt(1 - K_c / K).
Source. Kuramoto 1975; Strogatz 2000.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from interneuron.core.errors import InputError, ShapeError


@dataclass(frozen=True)
class Oscillators:
    """omega, start Float[N], adjacency Bool[N N] or None (complete). truth: critical, width, modules Int[N]."""

    omega: Tensor
    start: Tensor
    adjacency: Tensor | None
    truth: dict[str, Tensor]

    def order(self, coupling: float) -> float:
        """The order parameter that theory predicts for a large complete graph."""
        critical = float(self.truth["critical"])
        return math.sqrt(1 - critical / coupling) if coupling > critical else 0.0

    def simulate(
        self,
        coupling: float,
        *,
        steps: int = 4000,
        dt: float = 0.02,
        noise: float = 0.0,
        seed: int = 0,
        every: int = 10,
    ) -> Tensor:
        """Phases Float[steps / every, N] by Heun's rule."""
        rng = torch.Generator().manual_seed(seed)
        theta, kept = self.start.clone(), []
        for step in range(steps):
            first = self._speed(theta, coupling)
            second = self._speed(theta + dt * first, coupling)
            theta = theta + dt / 2 * (first + second)
            if noise:
                theta = theta + noise * dt**0.5 * torch.randn(len(theta), generator=rng, dtype=theta.dtype)
            if step % every == every - 1:
                kept.append(theta)
        return torch.stack(kept)

    def _speed(self, theta: Tensor, coupling: float) -> Tensor:
        if self.adjacency is None:  # sum over all others through the mean field: O(N)
            n = len(theta)
            pull = torch.cos(theta) * torch.sin(theta).sum() - torch.sin(theta) * torch.cos(theta).sum()
            return self.omega + coupling / n * pull
        weight = self.adjacency.to(theta.dtype)
        sine, cosine = weight @ torch.sin(theta), weight @ torch.cos(theta)
        pull = torch.cos(theta) * sine - torch.sin(theta) * cosine
        return self.omega + coupling / weight.sum(1).clamp_min(1) * pull


def synchrony(phases: Tensor) -> Tensor:
    """r at every time: Float[T N] -> Float[T]."""
    return torch.hypot(torch.cos(phases).mean(-1), torch.sin(phases).mean(-1))


def make(
    seed: int, *, n: int = 500, width: float = 0.5, modules: int = 0, degree: int = 20, inside: float = 0.8
) -> Oscillators:
    """`n` oscillators with Lorentzian frequencies (at evenly spaced quantiles, so that finite N wobbles less).

    modules   0 is the complete graph; else a random graph of this mean degree, a share `inside` of it within modules
    """
    if n < 2 or width <= 0 or modules < 0 or not 0.0 <= inside <= 1.0:
        raise InputError(
            f"kuramoto needs n >= 2, width > 0, modules >= 0, 0 <= inside <= 1; got {n}, {width}, {modules}."
        )
    rng = torch.Generator().manual_seed(seed)
    quantile = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    omega = width * torch.tan(math.pi * (quantile - 0.5))
    omega = omega[torch.randperm(n, generator=rng)]
    start = 2 * math.pi * torch.rand(n, generator=rng, dtype=torch.float64)
    truth = {"critical": torch.tensor(2 * width), "width": torch.tensor(width)}
    if not modules:
        return Oscillators(omega, start, None, truth | {"modules": torch.zeros(n, dtype=torch.int64)})
    member = torch.arange(n) % modules
    same = member[:, None] == member
    chance = torch.where(same, inside * degree * modules / n, (1 - inside) * degree / max(n - n / modules, 1))
    upper = (torch.rand(n, n, generator=rng) < chance).triu(1)
    return Oscillators(omega, start, upper | upper.T, truth | {"modules": member})


def reservoir(oscillators: Oscillators, seed: int, radius: float = 0.9) -> Tensor:
    """Random weights on the graph, scaled to a spectral radius: Float[N N] for echo-state comparisons."""
    if oscillators.adjacency is None:
        raise ShapeError("reservoir(): the graph is complete, so nothing is sparse. Make it with modules=1 or more.")
    rng = torch.Generator().manual_seed(seed)
    shape = oscillators.adjacency.shape
    weight = torch.randn(shape, generator=rng, dtype=torch.float64) * oscillators.adjacency
    return weight * (radius / torch.linalg.eigvals(weight).abs().max())

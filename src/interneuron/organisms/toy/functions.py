"""`functions`: twelve targets with exact values at any resolution, and small networks fitted to them.

Truth. `data.f(x)` gives the exact value anywhere; `truth["gradient"](x)` the exact derivative by autograd in float64.
Shapes. x Float[N d] in [-1, 1]^d -> y Float[N 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from interneuron.core.errors import InputError, did_you_mean

from .cache import Trained, cached
from .nets import seeded

TARGETS: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
    "line": (1, lambda x: 0.7 * x[:, 0] - 0.2),
    "square": (1, lambda x: x[:, 0] ** 2),
    "cubic": (1, lambda x: 2 * x[:, 0] ** 3 - x[:, 0]),
    "sine": (1, lambda x: torch.sin(math.pi * x[:, 0])),
    "fast sine": (1, lambda x: torch.sin(6 * math.pi * x[:, 0])),
    "two tones": (1, lambda x: torch.sin(math.pi * x[:, 0]) + 0.3 * torch.sin(8 * math.pi * x[:, 0])),
    "absolute": (1, lambda x: x[:, 0].abs()),
    "step": (1, lambda x: torch.tanh(20 * x[:, 0])),
    "bump": (1, lambda x: torch.exp(-8 * x[:, 0] ** 2)),
    "product": (2, lambda x: x[:, 0] * x[:, 1]),
    "exponential of a sum": (2, lambda x: torch.exp(torch.sin(math.pi * x[:, 0]) + x[:, 1] ** 2 - 1)),
    "ripple": (2, lambda x: torch.cos(6 * (x[:, 0] ** 2 + x[:, 1] ** 2))),
}
"""Name -> (number of inputs, function of Float[N d])."""


@dataclass(frozen=True)
class FunctionData:
    """Samples of one target. `f` is exact anywhere; `truth["gradient"]` is its derivative Float[N d] -> Float[N d]."""

    name: str
    x: Tensor
    y: Tensor
    f: Callable[[Tensor], Tensor]
    truth: dict[str, Callable[[Tensor], Tensor]]

    def grid(self, per_side: int) -> tuple[Tensor, Tensor]:
        """The target on a regular grid: x Float[per_side^d d], y Float[per_side^d 1]."""
        line = torch.linspace(-1, 1, per_side)
        d = self.x.shape[1]
        x = line[:, None] if d == 1 else torch.cartesian_prod(*[line] * d)
        return x, self.f(x)


def make(seed: int, *, name: str = "two tones", samples: int = 512, noise: float = 0.0) -> FunctionData:
    """Uniform samples of a target with optional Gaussian noise on y."""
    d, function = _dimensions(name), TARGETS[name][1]

    def f(x: Tensor) -> Tensor:
        return function(x)[:, None]

    def gradient(x: Tensor) -> Tensor:
        point = x.detach().double().requires_grad_(True)
        (slope,) = torch.autograd.grad(function(point).sum(), point)
        return slope.to(x.dtype)

    rng = torch.Generator().manual_seed(seed)
    x = torch.rand(samples, d, generator=rng) * 2 - 1
    y = f(x) + noise * torch.randn(samples, 1, generator=rng)
    return FunctionData(name, x, y, f, {"gradient": gradient})


def _dimensions(name: str) -> int:
    if name not in TARGETS:
        raise InputError(f"no target {name!r}; expected one of {', '.join(TARGETS)}.{did_you_mean(name, TARGETS)}")
    return TARGETS[name][0]


def network(d: int, seed: int, width: int = 64, depth: int = 3, spread: float = 6.0) -> nn.Sequential:
    """A tanh MLP whose first-layer weights are `spread` times PyTorch's."""
    with seeded(seed):
        sizes = [d, *[width] * depth]
        layers: list[nn.Module] = []
        for a, b in pairwise(sizes):
            layers += [nn.Linear(a, b), nn.Tanh()]
        with torch.no_grad():
            # wide first-layer weights: otherwise the fast tones are learned last or not at all
            layers[0].weight.mul_(spread)  # type: ignore[operator,union-attr]
        return nn.Sequential(*layers, nn.Linear(width, 1))


def _train(model: nn.Module, data: FunctionData, steps: int) -> dict[str, Any]:
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    scale = torch.optim.lr_scheduler.OneCycleLR(optimiser, 6e-3, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        loss = (model(data.x) - data.y).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        scale.step()
    x, y = data.grid(201 if data.x.shape[1] == 1 else 31)
    with torch.no_grad():
        unexplained = float((model(x) - y).square().mean() / y.var())
    return {
        "unexplained_variance": unexplained,
        "required": "unexplained variance on a grid <= 0.01",
        "passed": unexplained <= 0.01,
    }


def trained(seed: int = 0, *, name: str = "two tones") -> Trained:
    """An MLP of three hidden layers fitted to one target."""
    d = _dimensions(name)
    # the ripple is fast in its corners only: it needs more samples and steps there, and a smoother start between them
    samples, steps, spread, seconds = (4096, 5000, 1.0, 50) if name == "ripple" else (512 * d**2, 2500, 6.0, 8)
    data = make(seed, name=name, samples=samples)
    model = network(d, seed, spread=spread)
    card = cached("functions", {"seed": seed, "name": name}, model, lambda m: _train(m, data, steps), seconds, __name__)
    return Trained(model, data, card)

"""`tabular6`: six tables to classify, with the best accuracy anybody can reach and the columns that matter.

line      the sign of a weighted sum of 4 of 12 columns
clusters  four Gaussian clouds
parity    the sign of the product of 3 of 10 columns
rings     distance from the origin in 2 of 6 columns
spirals   two arms in the plane
waves     y1 > sin(3 y2), and a step in y3 that turns the label round

Labels are flipped with probability `flip`, so the best accuracy is 1 - flip (clusters: also their overlap).
Shapes. x Float[n d], standardised; y Int[n]; truth: relevant Bool[d], clean Int[n] (labels before flips), best Float[].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from interneuron.core.errors import InputError, did_you_mean

NAMES = ("line", "clusters", "parity", "rings", "spirals", "waves")


@dataclass(frozen=True)
class Table:
    """One table and its truth."""

    name: str
    x: Tensor
    y: Tensor
    n_classes: int
    truth: dict[str, Tensor]


def make(seed: int, *, name: str = "parity", n: int = 1000, flip: float = 0.05) -> Table:
    """`n` rows of one of the six. The rule belongs to the name; the seed draws rows, so seeds give train and test."""
    if name not in NAMES:
        raise InputError(f"tabular6 has no table {name!r}; expected {', '.join(NAMES)}.{did_you_mean(name, NAMES)}")
    if n < 1 or not 0.0 <= flip < 0.5:
        raise InputError(f"tabular6 needs n >= 1 and 0 <= flip < 0.5, got {n} and {flip}.")
    rng = torch.Generator().manual_seed(seed)
    x, clean, relevant, best = _RULES[name](rng, n)
    classes = 4 if name == "clusters" else 2
    flipped = torch.rand(n, generator=rng) < flip
    shift = torch.randint(1, classes, (n,), generator=rng)
    y = torch.where(flipped, (clean + shift) % classes, clean)
    # a flip sends mass away from the best class and, when the best class is wrong, sometimes back to it
    reach = best * (1 - flip) + (1 - best) * flip / (classes - 1)
    return Table(name, x, y, classes, {"relevant": relevant, "clean": clean, "best": torch.tensor(reach)})


def _columns(d: int, used: int) -> Tensor:
    return torch.arange(d) < used


_Rows = tuple[Tensor, Tensor, Tensor, float]


def _line(rng: torch.Generator, n: int) -> _Rows:
    x = torch.randn(n, 12, generator=rng)
    return x, (x[:, :4] @ torch.tensor([1.0, -1.0, 0.7, 0.5]) > 0).long(), _columns(12, 4), 1.0


def _clusters(rng: torch.Generator, n: int) -> _Rows:
    label = torch.randint(4, (n,), generator=rng)
    corner = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0], [-1.0, 1.0]])
    x = torch.randn(n, 8, generator=rng)
    x[:, :2] = (1.4 * corner[label] + x[:, :2]) / math.sqrt(1 + 1.4**2)
    # right when both coordinates stay on their side of 0, each with chance Phi(1.4)
    return x, label, _columns(8, 2), (0.5 * (1 + math.erf(1.4 / math.sqrt(2)))) ** 2


def _parity(rng: torch.Generator, n: int) -> _Rows:
    x = torch.randn(n, 10, generator=rng)
    return x, (x[:, :3].prod(1) > 0).long(), _columns(10, 3), 1.0


def _rings(rng: torch.Generator, n: int) -> _Rows:
    x = torch.randn(n, 6, generator=rng)
    radius = x[:, :2].norm(dim=1)  # cut at quantiles of the Rayleigh law that share the mass evenly
    edges = [math.sqrt(-2 * math.log(1 - q)) for q in (0.25, 0.5, 0.75)]
    return x, torch.bucketize(radius, torch.tensor(edges)) % 2, _columns(6, 2), 1.0


def _spirals(rng: torch.Generator, n: int) -> _Rows:
    label = torch.randint(2, (n,), generator=rng)
    t = 0.25 + 1.5 * torch.rand(n, generator=rng)
    # jitter in angle stays within a quarter turn, so the arms never touch
    angle = 2 * math.pi * t + math.pi * label + (torch.rand(n, generator=rng) - 0.5)
    return torch.stack([t * torch.cos(angle), t * torch.sin(angle)], 1) / 0.77, label, _columns(2, 2), 1.0


def _waves(rng: torch.Generator, n: int) -> _Rows:
    x = torch.randn(n, 9, generator=rng)
    return x, ((x[:, 0] > torch.sin(3 * x[:, 1])) ^ (x[:, 2] > 0)).long(), _columns(9, 3), 1.0


_RULES = {
    "line": _line,
    "clusters": _clusters,
    "parity": _parity,
    "rings": _rings,
    "spirals": _spirals,
    "waves": _waves,
}

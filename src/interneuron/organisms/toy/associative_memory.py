"""`associative_memory`: keys with values to store and recall, and the schedules of classical conditioning.

Equations. A Hebbian store of N random unit keys of width d answers key j with v_j + crosstalk of variance (N - 1) / d
per unit of value, so SNR = d / (N - 1). Correlated keys share a component: k = sqrt(1 - rho) own + sqrt(rho) common.
Shapes. keys Float[N d] (unit), values Float[N d_v] (unit). Schedule: stimuli Float[T d], outcomes Float[T].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from interneuron.core.errors import InputError, did_you_mean

PROTOCOLS = ("acquisition", "extinction", "blocking", "control", "overshadowing", "discrimination")


@dataclass(frozen=True)
class AssociativeMemory:
    """truth: snr (of a Hebbian store of random keys), common Float[d], rho, worst (largest sum of |key . others|)."""

    keys: Tensor
    values: Tensor
    truth: dict[str, Tensor]


@dataclass(frozen=True)
class Schedule:
    """Trials in order: stimuli Float[T d], outcomes Float[T], phase Int[T]; `cues` Float[2 d] are A and B."""

    stimuli: Tensor
    outcomes: Tensor
    phase: Tensor
    cues: Tensor


def make(seed: int, *, n: int = 32, d: int = 64, d_value: int = 64, rho: float = 0.0) -> AssociativeMemory:
    """`n` pairs; `rho` is the mean cosine of two keys."""
    if n < 2 or min(d, d_value) < 2 or not 0.0 <= rho < 1.0:
        raise InputError(f"associative_memory needs n >= 2, d >= 2 and 0 <= rho < 1, got {n}, {d}, {d_value}, {rho}.")
    rng = torch.Generator().manual_seed(seed)
    common = F.normalize(torch.randn(d, generator=rng), dim=0)
    own = torch.randn(n, d, generator=rng)
    own = F.normalize(own - (own @ common)[:, None] * common if rho else own, dim=1)
    keys = (1 - rho) ** 0.5 * own + rho**0.5 * common
    values = F.normalize(torch.randn(n, d_value, generator=rng), dim=1)
    worst = ((keys @ keys.T).abs().sum(1) - 1.0).max()
    truth = {"snr": torch.tensor(d / (n - 1)), "common": common, "rho": torch.tensor(rho), "worst": worst}
    return AssociativeMemory(keys, values, truth)


def conditioning(protocol: str, seed: int = 0, *, d: int = 32, trials: int = 20) -> Schedule:
    """The trials of one protocol with two orthogonal cues A and B and an outcome of 1 or 0.

    acquisition     A then 1                    extinction      A 1, later A 0
    blocking        A 1, later A and B 1        control         nothing, later A and B 1 (what blocking is compared
                    with)
    overshadowing   A and B 1, A three times as strong          discrimination  A 1 and B 0, in turns
    """
    if protocol not in PROTOCOLS:
        raise InputError(
            f"no protocol {protocol!r}; expected {', '.join(PROTOCOLS)}.{did_you_mean(protocol, PROTOCOLS)}"
        )
    rng = torch.Generator().manual_seed(seed)
    a, b = torch.linalg.qr(torch.randn(d, 2, generator=rng))[0].T
    none = torch.zeros(d)
    phases: dict[str, list[list[tuple[Tensor, float]]]] = {
        "acquisition": [[(a, 1.0)]],
        "extinction": [[(a, 1.0)], [(a, 0.0)]],
        "blocking": [[(a, 1.0)], [(a + b, 1.0)]],
        "control": [[(none, 0.0)], [(a + b, 1.0)]],
        "overshadowing": [[((3 * a + b) / 10**0.5, 1.0)]],
        "discrimination": [[(a, 1.0), (b, 0.0)]],
    }
    rows = [(s, o, i) for i, kinds in enumerate(phases[protocol]) for _ in range(trials) for s, o in kinds]
    return Schedule(
        torch.stack([r[0] for r in rows]), torch.tensor([r[1] for r in rows]), torch.tensor([r[2] for r in rows]),
        torch.stack([a, b]),
    )  # fmt: skip

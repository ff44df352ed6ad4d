"""`phase_code`: items told apart by when in a slow wave they fire, and rhythms with or without coupling of two waves.

Idea. Each slow (theta) cycle holds a few fast (gamma) cycles; item m of a sequence is active in gamma cycle m. A
sequence fits as long as it has no more items than a theta cycle has gamma cycles; further ones fall onto places already
taken.

Equations. place(m) = m mod C, C = floor(gamma / theta). Field with coupling c:
sin(theta) + (1 - c + c (1 + cos theta) / 2) sin(gamma) + noise; c = 0 leaves the fast amplitude free.
Shapes. rates Float[n T D] (D = width of an item's pattern), items Int[n m], patterns Float[vocabulary D].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from interneuron.core.errors import InputError


@dataclass(frozen=True)
class PhaseCode:
    """Sequences as activity. truth: items Int[n m], patterns Float[V D], place Int[T] (gamma cycle of each time step),
    capacity Int[], theta_phase Float[T]."""

    rates: Tensor
    superposed: Tensor
    fs: float
    truth: dict[str, Tensor]

    def read(self) -> Tensor:
        """The nearest pattern in each gamma cycle, averaged over theta cycles: Int[n C], the best reader there is."""
        capacity = int(self.truth["capacity"])
        slots = F.one_hot(self.truth["place"], capacity).to(self.rates.dtype)
        mean = torch.einsum("ntd,tc->ncd", self.rates, slots / slots.sum(0))
        return (mean @ self.truth["patterns"].T).argmax(-1)


def make(
    seed: int,
    *,
    n: int = 64,
    items: int = 5,
    vocabulary: int = 32,
    width: int = 32,
    theta: float = 6.0,
    gamma: float = 40.0,
    cycles: int = 3,
    noise: float = 0.5,
    fs: float = 480.0,
) -> PhaseCode:
    """`n` sequences of distinct items over some theta cycles; `superposed` Float[n D] is their sum without order."""
    capacity = int(gamma // theta)
    if capacity < 1 or not 1 <= items <= vocabulary or fs < 4 * gamma or min(n, cycles) < 1:
        raise InputError(
            f"phase_code needs gamma >= theta, 1 <= items <= vocabulary, fs >= 4 gamma and n, cycles >= 1; got "
            f"{gamma}, {theta}, {items}, {vocabulary}, {fs}, {n}, {cycles}."
        )
    rng = torch.Generator().manual_seed(seed)
    patterns = F.normalize(torch.randn(vocabulary, width, generator=rng), dim=1)
    order = torch.rand(n, vocabulary, generator=rng).argsort(1)[:, :items]
    time = torch.arange(int(cycles * fs / theta)) / fs
    share = (time * theta) % 1.0
    place = (share * capacity).long().clamp(max=capacity - 1)
    active = torch.zeros(n, capacity, width)
    for m in range(items):
        active[:, m % capacity] += patterns[order[:, m]]
    envelope = torch.sin(math.pi * ((share * capacity) % 1.0))[:, None]  # one bump a gamma cycle
    rates = active[:, place] * envelope
    rates = rates + noise * torch.randn(rates.shape, generator=rng) / width**0.5
    superposed = patterns[order].sum(1) + noise * torch.randn(n, width, generator=rng) / width**0.5
    truth = {"items": order, "patterns": patterns, "place": place, "capacity": torch.tensor(capacity)}
    return PhaseCode(rates, superposed, fs, truth | {"theta_phase": 2 * math.pi * share})


def rhythm(
    seed: int,
    *,
    n: int = 16,
    seconds: float = 10.0,
    coupling: float = 0.8,
    theta: float = 6.0,
    gamma: float = 40.0,
    noise: float = 0.5,
    fs: float = 480.0,
) -> tuple[Tensor, Tensor]:
    """Field potentials Float[n T] and their slow phase Float[n T]. The slow wave drifts in frequency."""
    if not 0.0 <= coupling <= 1.0:
        raise InputError(f"rhythm() needs 0 <= coupling <= 1, got {coupling}.")
    rng = torch.Generator().manual_seed(seed)
    steps = int(seconds * fs)
    drift = 1 + 0.1 * torch.randn(n, steps, generator=rng).cumsum(1) / steps**0.5
    slow = 2 * math.pi * (torch.rand(n, 1, generator=rng) + theta * drift.cumsum(1) / fs)
    fast = 2 * math.pi * (torch.rand(n, 1, generator=rng) + gamma * torch.arange(steps) / fs)
    size = 1 - coupling + coupling * (1 + torch.cos(slow)) / 2
    field = torch.sin(slow) + size * torch.sin(fast) + noise * torch.randn(n, steps, generator=rng)
    return field, slow % (2 * math.pi)

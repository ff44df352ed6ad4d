"""`calcium`: fluorescence of neurons that fire together in assemblies, each in its own time and its own animals.

Equations. drive_n(t) = sum_a member_na active_a(t) present_sa burst_sa(t); events ~ Poisson(base + drive);
fluorescence = events * e^{-t / tau} + noise, scaled to [0, 1] for each neuron. Some neurons of an animal are not found.

Truth. member Bool[A N], active Bool[A T], present Bool[S A], found Bool[S N], bursts Float[S A T].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from interneuron.core.errors import InputError
from interneuron.core.seeds import generator


@dataclass(frozen=True)
class Traces:
    """traces Float[S T N] in [0, 1], NaN for neurons that were not found in an animal."""

    traces: Tensor
    truth: dict[str, Tensor]


def make(
    seed: int,
    *,
    subjects: int = 5,
    neurons: int = 60,
    assemblies: int = 3,
    steps: int = 600,
    overlap: float = 0.1,
    missing: float = 0.15,
    noise: float = 0.3,
    decay: float = 8.0,
) -> Traces:
    """Assemblies of equal size that share a few members; each is active in one stretch of time and most animals."""
    if min(subjects, assemblies, steps) < 1 or neurons < 2 * assemblies or not 0 <= missing < 1 or not 0 <= overlap < 1:
        raise InputError(
            f"calcium needs subjects, assemblies, steps >= 1, neurons >= 2 * assemblies, shares below 1; got "
            f"{subjects}, {assemblies}, {steps}, {neurons}, {missing}, {overlap}."
        )
    rng = generator(seed)
    size = neurons // (assemblies + 1)  # a quarter of the neurons (of three assemblies) belongs to none
    member = torch.zeros(assemblies, neurons, dtype=torch.bool)
    order = torch.randperm(neurons, generator=rng)
    for a in range(assemblies):
        member[a, order[a * size : (a + 1) * size]] = True
        others = order[((a + 1) % assemblies) * size :][: round(overlap * size)]
        member[a, others] = True
    length = steps // (assemblies + 1)
    active = torch.zeros(assemblies, steps, dtype=torch.bool)
    for a in range(assemblies):
        start = a * steps // assemblies + int(torch.randint(max(steps // assemblies - length, 1), (), generator=rng))
        active[a, start : start + length] = True
    present = torch.rand(subjects, assemblies, generator=rng) < 0.7
    present[torch.arange(assemblies) % subjects, torch.arange(assemblies)] = True  # somebody has each
    bursts = (torch.rand(subjects, assemblies, steps, generator=rng) < 0.08) * active * present[:, :, None] * 2.0
    drive = torch.einsum("sat,an->stn", bursts, member.float())
    events = torch.poisson(0.02 + drive, generator=rng)
    level, kept = torch.zeros(subjects, neurons), []
    for t in range(steps):
        level = level * torch.exp(torch.tensor(-1.0 / decay)) + events[:, t]
        kept.append(level)
    traces = torch.stack(kept, 1) + noise * torch.randn(subjects, steps, neurons, generator=rng)
    low, high = traces.amin(1, keepdim=True), traces.amax(1, keepdim=True)
    found = torch.rand(subjects, neurons, generator=rng) >= missing
    traces = ((traces - low) / (high - low)).where(found[:, None], torch.nan)
    return Traces(traces, {"member": member, "active": active, "present": present, "found": found, "bursts": bursts})

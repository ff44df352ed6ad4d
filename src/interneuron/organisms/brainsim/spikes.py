"""`spikes`: networks of neurons that excite and inhibit each other over known wires, with known delays and moods.

Equations. y_n(t) ~ Poisson(rate_n(t)),
    rate_n(t) = min(5, softplus(base_n + sum_m w^k_nm y_m(t - delay_nm) + gain_n stimulus(t))),  k = state(t), Markov;
    w^k = sign * strength^k: the wiring (sign of each edge, -1, 0 or 1) is one for all states, the strengths are not.
The first `hubs` neurons hear the stimulus (an autoregressive process); `behaviour` is the smoothed rate of a hidden
pool that follows the stimulus as well.

Truth. adjacency Int[N N] (row: target, column: source), delay Int[N N] in steps, weights Float[K N N], state Int[R T],
transition Float[K K], rate Float[R T N], base Float[N], gain Float[N].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from interneuron.core.errors import InputError
from interneuron.core.seeds import generator

CEILING = 5.0


@dataclass(frozen=True)
class SpikeTrains:
    """counts Float[R T N] of R trials, stimulus Float[R T], behaviour Float[R T], and the truth."""

    counts: Tensor
    stimulus: Tensor
    behaviour: Tensor
    truth: dict[str, Tensor]

    def delayed(self) -> Tensor:
        """What reaches each neuron along each wire, were it there: Float[R T N N], entry (n, m) = y_m(t - delay_nm)."""
        delay = self.truth["delay"]
        out = torch.zeros(*self.counts.shape, self.counts.shape[2])
        for lag in delay.unique().tolist():
            shifted = F.pad(self.counts, (0, 0, lag, 0))[:, : self.counts.shape[1]]
            out = torch.where(delay == lag, shifted[:, :, None], out)
        return out

    def log_likelihood(self, rate: Tensor) -> float:
        """Mean Poisson log-likelihood a bin and neuron, without the factorial: rate Float[R T N]."""
        return float((self.counts * rate.clamp_min(1e-9).log() - rate).mean())


def make(
    seed: int,
    *,
    neurons: int = 10,
    states: int = 3,
    steps: int = 2000,
    trials: int = 4,
    density: float = 0.3,
    drop: float = 0.05,
    strength: float = 1.5,
    delays: tuple[int, int] = (1, 3),
    stay: float = 0.995,
    hubs: int = 0,
) -> SpikeTrains:
    """One network, recorded in several trials.

    density   share of ordered pairs that are wired;  drop: share of those cut in any one state
    stay      chance to remain in a state from one step to the next
    """
    low, high = delays
    if min(neurons, states, steps, trials) < 1 or not 0 <= hubs <= neurons or not 1 <= low <= high < steps:
        raise InputError(
            "spikes needs neurons, states, steps, trials >= 1, 0 <= hubs <= neurons, 1 <= delays < steps; got "
            f"{neurons}, {states}, {steps}, {trials}, {hubs}, {delays}."
        )
    if not (0.0 <= density <= 1.0 and 0.0 <= drop < 1.0 and 0.0 < stay <= 1.0):
        raise InputError(f"spikes: density, drop and stay are shares, got {density}, {drop} and {stay}.")
    rng = generator(seed)
    wiring = _wiring(rng, neurons, states, density, drop, strength)
    delay = torch.randint(low, high + 1, (neurons, neurons), generator=rng)
    transition = torch.full((states, states), (1 - stay) / max(states - 1, 1)).fill_diagonal_(
        stay if states > 1 else 1.0
    )
    state = _chain(rng, transition, trials, steps)
    stimulus = _slow(rng, trials, steps, 0.98)
    gain = torch.where(torch.arange(neurons) < hubs, 1.0, 0.0)
    base = -1.2 + 0.3 * torch.randn(neurons, generator=rng)
    counts, rate = _run(rng, wiring["weights"], delay, state, base, gain, stimulus)
    pool = F.softplus(-1.0 + stimulus) + 0.1 * torch.randn(trials, steps, generator=rng)
    smooth = torch.ones(1, 1, 9) / 9
    behaviour = F.conv1d(F.pad(pool[:, None], (8, 0), mode="replicate"), smooth)[:, 0]
    truth = {
        **wiring,
        "delay": delay,
        "state": state,
        "transition": transition,
        "rate": rate,
        "base": base,
        "gain": gain,
    }
    return SpikeTrains(counts, stimulus, behaviour, truth)


def _wiring(
    rng: torch.Generator, n: int, states: int, density: float, drop: float, strength: float
) -> dict[str, Tensor]:
    sign = torch.where(torch.rand(n, n, generator=rng) < 0.5, -1, 1)
    on = (torch.rand(n, n, generator=rng) < density).fill_diagonal_(False)
    adjacency = torch.where(on, sign, 0)
    size = strength * (0.2 + 1.6 * torch.rand(states, n, n, generator=rng))
    kept = torch.rand(states, n, n, generator=rng) >= drop
    weights = adjacency * size * kept
    # excitation alone must die out: where it feeds itself too strongly (radius over 0.6) it is scaled down
    radius = torch.linalg.eigvals(weights.clamp_min(0)).abs().amax(1)
    calm = (0.6 / radius.clamp_min(0.6))[:, None, None]
    return {"adjacency": adjacency, "weights": torch.where(weights > 0, weights * calm, weights)}


def _chain(rng: torch.Generator, transition: Tensor, trials: int, steps: int) -> Tensor:
    """Markov chains Int[R T] from a uniform start."""
    edges = transition.cumsum(1)
    u = torch.rand(trials, steps, generator=rng)
    now = torch.randint(len(transition), (trials,), generator=rng)
    path = [now]
    for t in range(1, steps):
        now = (u[:, t, None] > edges[now]).sum(1).clamp(max=len(transition) - 1)
        path.append(now)
    return torch.stack(path, 1)


def _slow(rng: torch.Generator, rows: int, steps: int, memory: float) -> Tensor:
    """Autoregressive noise of unit variance, Float[rows steps]."""
    shock = torch.randn(rows, steps, generator=rng) * (1 - memory**2) ** 0.5
    level, out = torch.randn(rows, generator=rng), []
    for t in range(steps):
        level = memory * level + shock[:, t]
        out.append(level)
    return torch.stack(out, 1)


def firing(drive: Tensor) -> Tensor:
    """Expected spikes of a step for a drive, any shape."""
    return F.softplus(drive).clamp_max(CEILING)


def _run(
    rng: torch.Generator, weights: Tensor, delay: Tensor, state: Tensor, base: Tensor, gain: Tensor, stimulus: Tensor
) -> tuple[Tensor, Tensor]:
    trials, steps = state.shape
    n, longest = len(base), int(delay.max())
    counts = torch.zeros(trials, steps + longest, n)
    rates = torch.empty(trials, steps, n)
    source = torch.arange(n).expand(n, n)
    for t in range(steps):
        heard = counts[:, t + longest - delay, source]
        drive = (weights[state[:, t]] * heard).sum(2)
        rates[:, t] = firing(base + drive + gain * stimulus[:, t, None])
        counts[:, t + longest] = torch.poisson(rates[:, t], generator=rng)
    return counts[:, longest:], rates

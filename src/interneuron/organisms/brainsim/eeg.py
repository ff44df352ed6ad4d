"""`eeg`: sources inside a head, a lead field that mixes them at the electrodes, and what eyes, muscles and mains add.

Equations. electrodes(t) = L sources(t) + artefacts(t) + noise. L is the potential of dipoles in a unit sphere at
electrodes on its upper half, columns of unit length.

kind "rotation"  two sources turn about each other, s_t = r R(+-theta) s_{t-1} + noise; the class is the sense, so
                 covariances at lag 0 are equal by construction
kind "power"     the class doubles the power of source 0
kind "pairs"     alpha power of two pairs of sources; the class is the sign of the product of both pairs' differences
kind "erp"       bumps like N1, P3 and RewP with latencies and sizes of their own; the class is a late P3
kind "network"   sources drive each other by known lagged weights (a multivariate autoregression)

Shapes. x Float[n C T], y Int[n]; truth: clean Float[n C T], sources Float[n S T], lead Float[C S] and, by kind,
`angle`, `power`, `amplitude` and `latency` Float[n 3] (seconds), `coupling` Float[lags S S] (row: target).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from interneuron.core.errors import InputError, did_you_mean
from interneuron.core.seeds import generator

KINDS = ("rotation", "power", "pairs", "erp", "network")
ARTEFACTS = ("blink", "saccade", "muscle", "line")
_BUMPS = ((0.15, 0.02, -1.0), (0.40, 0.05, 1.5), (0.28, 0.03, 0.8))  # N1, P3, RewP: centre, width, size


@dataclass(frozen=True)
class EEG:
    """Trials at `fs` samples a second; `positions` Float[C 3] of the electrodes."""

    x: Tensor
    y: Tensor
    fs: float
    positions: Tensor
    truth: dict[str, Tensor]


def make(
    seed: int,
    *,
    kind: str = "rotation",
    n: int = 200,
    channels: int = 8,
    sources: int = 4,
    seconds: float = 2.0,
    fs: float = 128.0,
    noise: float = 0.3,
    artefacts: tuple[str, ...] = (),
    coupling: float = 0.5,
) -> EEG:
    """`n` trials of one kind, half of each class (network: y is 0), with the named artefacts on top."""
    if kind not in KINDS:
        raise InputError(f"eeg has no kind {kind!r}; expected {', '.join(KINDS)}.{did_you_mean(kind, KINDS)}")
    for name in artefacts:
        if name not in ARTEFACTS:
            raise InputError(
                f"eeg has no artefact {name!r}; expected {', '.join(ARTEFACTS)}.{did_you_mean(name, ARTEFACTS)}"
            )
    least = {"rotation": 2, "power": 1, "pairs": 4, "erp": 3, "network": 3}[kind]
    steps = int(seconds * fs)
    if n < 2 or channels < 2 or sources < least or steps < 16 or noise < 0:
        raise InputError(
            f"eeg {kind!r} needs n, channels >= 2, sources >= {least}, 16 samples and noise >= 0; got {n}, {channels}, "
            f"{sources}, {steps}, {noise}."
        )
    rng = generator(seed)
    positions, lead = _head(rng, channels, sources)
    y = (torch.arange(n) % 2)[torch.randperm(n, generator=rng)]
    activity, truth = _SOURCES[kind](rng, y, sources, steps, fs, coupling)
    clean = torch.einsum("cs,nst->nct", lead, activity)
    x = clean + noise * clean.std() * torch.randn(clean.shape, generator=rng)
    for name in artefacts:
        x = x + clean.std() * artefact(name, positions, n, steps, fs, seed)
    y = torch.zeros_like(y) if kind == "network" else y
    return EEG(x, y, fs, positions, {"clean": clean, "sources": activity, "lead": lead, **truth})


def _head(rng: torch.Generator, channels: int, sources: int) -> tuple[Tensor, Tensor]:
    i = torch.arange(channels) + 0.5
    height = i / channels  # a spiral over the upper half sphere; the nose points along +y
    turn = math.pi * (1 + 5**0.5) * i
    ring = (1 - height.square()).sqrt()
    electrodes = torch.stack([ring * torch.cos(turn), ring * torch.sin(turn), height], 1)
    inside = F.normalize(torch.randn(sources, 3, generator=rng), dim=1) * 0.7
    inside[:, 2] = inside[:, 2].abs()
    facing = F.normalize(torch.randn(sources, 3, generator=rng), dim=1)
    gap = electrodes[:, None] - inside
    lead = (gap * facing).sum(-1) / gap.norm(dim=-1) ** 3  # a dipole's potential
    return electrodes, lead / lead.norm(dim=0)


_Made = tuple[Tensor, dict[str, Tensor]]


def _band(rng: torch.Generator, shape: tuple[int, ...], fs: float, low: float, high: float) -> Tensor:
    """Noise of unit variance between two frequencies, Float[*shape]."""
    wave = torch.fft.rfft(torch.randn(*shape, generator=rng))
    frequency = torch.fft.rfftfreq(shape[-1], 1 / fs)
    out = torch.fft.irfft(wave * ((frequency >= low) & (frequency <= high)), n=shape[-1])
    return out / out.std(-1, keepdim=True)


def _rotation(rng: torch.Generator, y: Tensor, sources: int, steps: int, fs: float, coupling: float) -> _Made:
    n, radius, angle = len(y), 0.97, 2 * math.pi * 10.0 / fs
    turn = angle * (2.0 * y - 1.0)
    matrix = radius * torch.stack([turn.cos(), -turn.sin(), turn.sin(), turn.cos()], 1).reshape(n, 2, 2)
    shock = torch.randn(n, steps, 2, generator=rng) * (1 - radius**2) ** 0.5
    state, path = torch.randn(n, 2, generator=rng), []
    for t in range(steps):
        state = (matrix @ state[:, :, None])[:, :, 0] + shock[:, t]
        path.append(state)
    rest = _band(rng, (n, sources - 2, steps), fs, 1.0, 40.0) if sources > 2 else torch.zeros(n, 0, steps)
    return torch.cat([torch.stack(path, 2), rest], 1), {"angle": turn}


def _power(rng: torch.Generator, y: Tensor, sources: int, steps: int, fs: float, coupling: float) -> _Made:
    activity = _band(rng, (len(y), sources, steps), fs, 8.0, 12.0)
    power = torch.ones(len(y), sources)
    power[:, 0] = 1.0 + y
    return activity * power.sqrt()[..., None], {"power": power}


def _pairs(rng: torch.Generator, y: Tensor, sources: int, steps: int, fs: float, coupling: float) -> _Made:
    activity = _band(rng, (len(y), sources, steps), fs, 8.0, 12.0)
    first = 2.0 * torch.randint(2, (len(y),), generator=rng) - 1.0
    second = first * (2.0 * y - 1.0)
    log_power = 0.3 * torch.randn(len(y), sources, generator=rng)
    for pair, sign in enumerate((first, second)):
        log_power[:, 2 * pair] += 0.6 * sign
        log_power[:, 2 * pair + 1] -= 0.6 * sign
    return activity * (log_power / 2).exp()[..., None], {"power": log_power.exp()}


def _erp(rng: torch.Generator, y: Tensor, sources: int, steps: int, fs: float, coupling: float) -> _Made:
    n = len(y)
    time = torch.arange(steps) / fs
    centre, width, size = (torch.tensor(v) for v in zip(*_BUMPS, strict=True))
    amplitude = size * (1 + 0.3 * torch.randn(n, 3, generator=rng))
    latency = centre + torch.tensor([0.01, 0.02, 0.01]) * torch.randn(n, 3, generator=rng)
    latency[:, 1] += 0.08 * y
    bumps = amplitude[..., None] * torch.exp(-((time - latency[..., None]) ** 2) / (2 * width[:, None] ** 2))
    background = 0.5 * _band(rng, (n, sources, steps), fs, 1.0, 30.0)
    background[:, :3] += bumps
    return background, {"amplitude": amplitude, "latency": latency}


def _network(rng: torch.Generator, y: Tensor, sources: int, steps: int, fs: float, coupling: float) -> _Made:
    """A cascade 0 -> 1 -> 2 ... at lags 1 and 2; every source also has a damped rhythm of its own."""
    weights = torch.zeros(2, sources, sources)
    angle = 2 * math.pi * (8.0 + 3.0 * torch.arange(sources)) / fs
    weights[0].diagonal().copy_(1.8 * torch.cos(angle))
    weights[1].diagonal().fill_(-0.81)
    for s in range(sources - 1):
        weights[s % 2, s + 1, s] = 0.4 * coupling
    warm = 200
    past = torch.zeros(len(y), 2, sources)
    path = []
    for shock in torch.randn(warm + steps, len(y), sources, generator=rng):
        now = torch.einsum("lts,nls->nt", weights, past) + shock
        past = torch.stack([now, past[:, 0]], 1)
        path.append(now)
    return torch.stack(path[warm:], 2), {"coupling": weights}


_SOURCES = {"rotation": _rotation, "power": _power, "pairs": _pairs, "erp": _erp, "network": _network}


def artefact(name: str, positions: Tensor, n: int, steps: int, fs: float, seed: int) -> Tensor:
    """One artefact in units of the clean signal's deviation, Float[n C T].

    blink    slow bumps, strongest at the front;  saccade  steps that decay, of opposite sign left and right
    muscle   bursts above 20 Hz at one side;      line     50 Hz everywhere
    """
    rng = generator(seed * len(ARTEFACTS) + ARTEFACTS.index(name) + 1)
    time = torch.arange(steps) / fs
    start = time[-1] * torch.rand(n, 1, 1, generator=rng)
    front, side = positions[:, 1], positions[:, 0]
    if name == "blink":
        shape = torch.exp(-((time - start) ** 2) / (2 * 0.08**2))
        return 8.0 * (front - front.min())[:, None] / (front.max() - front.min()) * shape
    if name == "saccade":
        shape = torch.where(time >= start, torch.exp(-(time - start).clamp_min(0) / 0.3), 0.0)
        sign = 2.0 * torch.randint(2, (n, 1, 1), generator=rng) - 1.0
        return 4.0 * sign * (side * (front > front.median()))[:, None] * shape
    if name == "muscle":
        burst = _band(rng, (n, 1, steps), fs, 20.0, fs / 2)
        window = ((time - start).abs() < 0.25).float()
        return 3.0 * side.clamp_min(0)[:, None] * burst * window
    phase = 2 * math.pi * torch.rand(n, 1, 1, generator=rng)
    return torch.sin(2 * math.pi * 50.0 * time + phase).expand(n, len(positions), steps).clone()


def bold(data: EEG, seed: int = 0, *, regions: int = 4, every: float = 1.0) -> tuple[Tensor, Tensor]:
    """Slow signals driven by the sources' power: Float[n R T'] and the weights Float[R S] behind them.

    Equations. bold_r(t) = sum_s weight_rs (power_s * hrf)(t), the response a gamma of 5 s; then noise of a third.
    """
    rng = generator(seed)
    activity = data.truth["sources"]
    weights = torch.rand(regions, activity.shape[1], generator=rng)
    window = int(every * data.fs)
    power = F.avg_pool1d(activity.square(), window, window)
    lag = torch.arange(0.0, 16.0, every) + every / 2
    response = lag**5 * torch.exp(-lag)
    response = (response / response.sum()).flip(0)[None, None]
    flat = F.pad(power.flatten(0, 1)[:, None], (len(lag) - 1, 0), mode="replicate")
    slow = F.conv1d(flat, response).reshape(power.shape)
    signal = torch.einsum("rs,nst->nrt", weights, slow)
    return signal + signal.std() / 3 * torch.randn(signal.shape, generator=rng), weights

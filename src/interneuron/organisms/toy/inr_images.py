"""`inr_images`: pictures that are functions of the plane, exact at any place, from rough to smooth.

kind "noise"  a random Fourier series whose power falls as frequency^-beta (beta 1 rough, 3 smooth)
kind "discs"  bright discs on dark, few and large or many and small

What an implicit network finds hard is its frequencies: `truth["spectrum"]` is the radial spectrum on the grid asked
for. Shapes. coordinates Float[R*R 2] in [0, 1)^2, values Float[R*R 1] of mean 0 and deviation 1; train Bool[R*R]
(checkerboard).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from interneuron.core.errors import InputError

PRESETS = {
    "beta 1": {"kind": "noise", "beta": 1.0}, "beta 2": {"kind": "noise", "beta": 2.0},
    "beta 3": {"kind": "noise", "beta": 3.0}, "large discs": {"kind": "discs", "discs": 5, "radius": 0.2},
    "small discs": {"kind": "discs", "discs": 60, "radius": 0.04},
}  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """One picture. `f` gives it at any coordinates Float[M 2] -> Float[M 1]; truth: spectrum Float[R / 2]."""

    x: Tensor
    y: Tensor
    train: Tensor
    resolution: int
    f: Callable[[Tensor], Tensor]
    truth: dict[str, Tensor]

    @property
    def image(self) -> Tensor:
        """Float[R R]."""
        return self.y.reshape(self.resolution, self.resolution)


def make(
    seed: int,
    *,
    kind: str = "noise",
    resolution: int = 64,
    beta: float = 2.0,
    discs: int = 5,
    radius: float = 0.2,
) -> Picture:
    """One picture of a kind (`PRESETS` has the five of the usual suite)."""
    if kind not in ("noise", "discs") or resolution < 4 or resolution % 2 or discs < 1 or radius <= 0:
        raise InputError(
            f"inr_images needs kind noise or discs, an even resolution >= 4, discs >= 1 and radius > 0; got {kind!r}, "
            f"{resolution}, {discs}, {radius}."
        )
    rng = torch.Generator().manual_seed(seed)
    raw = _noise(rng, beta) if kind == "noise" else _discs(rng, discs, radius)
    line = torch.arange(resolution, dtype=torch.float64) / resolution
    x = torch.cartesian_prod(line, line)
    values = raw(x)
    mean, scale = values.mean(), values.std()

    def f(at: Tensor) -> Tensor:
        return ((raw(at.double()) - mean) / scale)[:, None].to(at.dtype)

    row, column = torch.meshgrid(torch.arange(resolution), torch.arange(resolution), indexing="ij")
    y = f(x)
    truth = {"spectrum": radial_spectrum(y.reshape(resolution, resolution)).float()}
    return Picture(x.float(), y.float(), ((row + column) % 2 == 0).flatten(), resolution, f, truth)


def _noise(rng: torch.Generator, beta: float, highest: int = 24) -> Callable[[Tensor], Tensor]:
    wave = torch.cartesian_prod(*[torch.arange(-highest, highest + 1, dtype=torch.float64)] * 2)
    size = wave.norm(dim=1)
    half = (size > 0) & (size <= highest) & ((wave[:, 0] > 0) | ((wave[:, 0] == 0) & (wave[:, 1] > 0)))
    wave, size = wave[half], size[half]
    # power per mode falls by one more than power per ring, because rings grow with the frequency
    amplitude = size ** (-(beta + 1) / 2) * torch.randn(2, len(size), generator=rng, dtype=torch.float64)

    def f(at: Tensor) -> Tensor:
        parts = []
        for rows in at.split(1024):
            angle = 2 * math.pi * rows @ wave.T
            parts.append(torch.cos(angle) @ amplitude[0] + torch.sin(angle) @ amplitude[1])
        return torch.cat(parts)

    return f


def _discs(rng: torch.Generator, discs: int, radius: float) -> Callable[[Tensor], Tensor]:
    middle = torch.rand(discs, 2, generator=rng, dtype=torch.float64)
    size = radius * (0.6 + 0.8 * torch.rand(discs, generator=rng, dtype=torch.float64))

    def f(at: Tensor) -> Tensor:
        return (torch.cdist(at, middle) < size).any(1).double()

    return f


def radial_spectrum(image: Tensor) -> Tensor:
    """Mean |DFT| by whole radial frequency 1 .. R/2, scaled to sum 1: Float[R R] -> Float[R / 2]."""
    size = image.shape[0]
    power = torch.fft.fft2(image - image.mean()).abs()
    wave = torch.fft.fftfreq(size) * size
    ring = torch.hypot(wave[:, None], wave[None]).round().long()
    out = torch.zeros(int(ring.max()) + 1, dtype=power.dtype).index_add_(0, ring.flatten(), power.flatten())
    count = torch.bincount(ring.flatten())
    mean = (out / count)[1 : size // 2 + 1]
    return mean / mean.sum()

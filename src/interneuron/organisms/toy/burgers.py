"""`burgers`: the viscous Burgers equation on a circle, solved exactly at any resolution.

Equations. u_t + u u_x = nu u_xx on [0, 2 pi). With u = -2 nu phi_x / phi (Cole, Hopf) phi obeys the heat equation:
phi_0 = exp(-int u_0 / (2 nu)), phi_k(t) = phi_k(0) e^{-nu k^2 t}. u_0 is a random Fourier series of mean 0, so all is
periodic; on a fine grid in float64 the solution is exact to rounding.
Shapes. inputs u_0, outputs u(t): Float[n R]; coordinates x Float[R].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from interneuron.core.errors import InputError

FINE = 2048


@dataclass(frozen=True)
class Burgers:
    """Initial states and solutions on R points. `at(R)` gives the same functions on another grid.

    truth: cosine, sine Float[n K] of u_0, viscosity, time
    """

    x: Tensor
    inputs: Tensor
    outputs: Tensor
    truth: dict[str, Tensor]

    def at(self, resolution: int) -> Burgers:
        """The same functions on a grid of another size (a divisor of 2048)."""
        return _solve(self.truth, resolution)


def make(
    seed: int, *, n: int = 64, resolution: int = 64, modes: int = 5, viscosity: float = 0.1, time: float = 1.0
) -> Burgers:
    """`n` random initial states with amplitudes that fall as 1 / k, and what becomes of them."""
    if n < 1 or modes < 1 or viscosity < 0.02 or time < 0:
        raise InputError(
            f"burgers needs n, modes >= 1, viscosity >= 0.02 (below, the transform overflows) and time >= 0; got {n}, "
            f"{modes}, {viscosity}, {time}."
        )
    rng = torch.Generator().manual_seed(seed)
    waves = torch.arange(1, modes + 1, dtype=torch.float64)
    cosine, sine = (torch.randn(n, modes, generator=rng, dtype=torch.float64) / waves for _ in range(2))
    size = (cosine.square() + sine.square()).sum(1, keepdim=True).sqrt()
    values = {"viscosity": torch.tensor(viscosity).double(), "time": torch.tensor(time).double()}
    return _solve({"cosine": cosine / size, "sine": sine / size, **values}, resolution)


def _solve(truth: dict[str, Tensor], resolution: int) -> Burgers:
    if resolution < 2 or FINE % resolution:
        raise InputError(f"burgers is solved on {FINE} points; resolution must divide that, got {resolution}.")
    x = torch.arange(FINE, dtype=torch.float64) * (2 * math.pi / FINE)
    k = torch.arange(1, truth["cosine"].shape[1] + 1, dtype=torch.float64)[:, None]
    start = truth["cosine"] @ torch.cos(k * x) + truth["sine"] @ torch.sin(k * x)
    integral = (truth["cosine"] / k.T) @ torch.sin(k * x) - (truth["sine"] / k.T) @ torch.cos(k * x)
    nu, time = truth["viscosity"], truth["time"]
    exponent = -integral / (2 * nu)
    phi = torch.fft.rfft((exponent - exponent.amax(1, keepdim=True)).exp())
    wave = torch.arange(FINE // 2 + 1, dtype=torch.float64)
    phi = phi * torch.exp(-nu * wave.square() * time)
    slope = torch.fft.irfft(1j * wave * phi, n=FINE)
    end = -2 * nu * slope / torch.fft.irfft(phi, n=FINE)
    every = FINE // resolution
    return Burgers(x[::every].float(), start[:, ::every].float(), end[:, ::every].float(), truth)

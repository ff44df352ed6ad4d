"""Few-bit copies of tensors, a range and an offset per group.

    q = clip(floor((x - beta) (2^b - 1) / alpha + u), 0, 2^b - 1),   x' = q alpha / (2^b - 1) + beta

u = 1/2 rounds to the nearest level; u uniform in [0, 1) makes E x' = x (stochastic rounding). A tensor is seen as
[O G I]: outer positions, groups, inner positions; one alpha and one beta serve a group at all outer positions.

On the CPU float32 goes through a compiled kernel where numba is installed (the extra `fast`), all else in chunks that
stay in the cache: temporaries of the size of the tensor cost several times the arithmetic. Levels of 2 and 4 bits are
packed, four and two to a byte.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interneuron.core.errors import InputError, ShapeError
from interneuron.core.seeds import generator, numpy_rng

CHUNK = 1 << 15
BITS = (2, 4, 8)
_HALF = np.full(CHUNK, 0.5, dtype=np.float32)


@dataclass(frozen=True)
class Quantised:
    """A few-bit copy: levels (packed for 2 and 4 bits), range and offset of each group, and how it is unpacked."""

    levels: Tensor
    alpha: Float[Tensor, " G"]
    beta: Float[Tensor, " G"]
    bits: int
    shape: tuple[int, int, int]

    @property
    def nbytes(self) -> int:
        """Bytes of the copy, ranges and offsets among them."""
        return self.levels.nbytes + self.alpha.nbytes + self.beta.nbytes


class Dither:
    """Uniform numbers for stochastic rounding: each is uniform in [0, 1) by itself, whatever its place.

    On the CPU they are windows at random offsets of one shuffled table of equally spaced numbers, which costs a read
    instead of a random draw per number; elsewhere they are drawn.
    """

    def __init__(self, seed: int = 0, device: torch.device | str = "cpu") -> None:
        self._rng = generator(seed, device=device)
        self._offsets = numpy_rng(seed, "dither")
        table = (torch.randperm(CHUNK, generator=generator(seed)).float() + 0.5) / CHUNK
        self.table = torch.cat([table, table])
        """Two periods, [2 CHUNK]."""

    def start(self) -> int:
        """A random place in the table."""
        return int(self._offsets.integers(CHUNK))

    def take(self, like: Tensor) -> Tensor:
        """Numbers for `like`, in its shape; at most CHUNK of them on the CPU."""
        if like.device.type != "cpu":
            return torch.rand(like.shape, generator=self._rng, device=like.device)
        start = self.start()
        return self.table[start : start + like.numel()].view(like.shape)


def all_finite(x: Tensor) -> bool:
    """Whether no number is NaN or infinite: no sum of float32 numbers overflows in float64."""
    return math.isfinite(x.sum(dtype=torch.float64).item())


def group_ranges(x: Float[Tensor, "O G I"]) -> tuple[Float[Tensor, " G"], Float[Tensor, " G"]]:
    """Range max - min and offset min of every group, in float32."""
    _check(x)
    x = x.detach()
    if kernels := _kernels(x):
        low, high = x.new_empty(x.shape[1]), x.new_empty(x.shape[1])
        kernels.ranges(*(part.view(torch.int32).numpy() for part in (x, low, high)))
    else:
        low, high = x.amin(-1).amin(0).float(), x.amax(-1).amax(0).float()
    return high - low, low


def quantise_groups(
    x: Float[Tensor, "O G I"],
    alpha: Float[Tensor, " G"] | None = None,
    beta: Float[Tensor, " G"] | None = None,
    bits: int = 8,
    dither: Dither | None = None,
) -> Quantised:
    """The few-bit copy of a contiguous tensor.

    alpha, beta  range and offset of each group; what lies outside is clipped, NaN too. None: those of x itself
    dither       None: round to the nearest level; else stochastic rounding

    Raises:
        InputError: bits other than 2, 4 or 8, or numbers that are not finite.
        ShapeError: x has not three axes or no numbers, or the ranges are not one per group.
    """
    if bits not in BITS:
        raise InputError(f"quantise_groups: bits={bits}, expected one of {BITS}")
    _check(x, alpha, beta)
    x, top = x.detach(), 2**bits - 1
    levels = torch.empty(x.shape, dtype=torch.uint8, device=x.device)
    kernels, finite = _kernels(x), True
    if kernels and (alpha is None or beta is None) and len(x) == 1 and x.shape[2] <= kernels.BLOCK:
        alpha, beta = x.new_empty(x.shape[1]), x.new_empty(x.shape[1])
        given = (part.numpy() for part in (x[0], alpha, beta))
        finite = kernels.quantise_own(*given, top, levels[0].numpy(), *_table(kernels, dither))
    else:
        if alpha is None or beta is None:
            alpha, beta = group_ranges(x)
        finite = all_finite(alpha) and all_finite(beta)
        scale = top / alpha.clamp_min(torch.finfo(torch.float32).tiny)
        if kernels:
            given = (part.numpy() for part in (x, beta, scale))
            kernels.quantise(*given, top, levels.numpy(), *_table(kernels, dither))
        else:
            _quantise_chunks(x, beta, scale, top, levels, dither)
    if not finite:
        raise InputError(
            "quantise_groups: a range is NaN, infinite or beyond 2^127. Quantise finite numbers of ordinary size"
        )
    return Quantised(_pack(levels, bits), alpha, beta, bits, (x.shape[0], x.shape[1], x.shape[2]))


def dequantise_groups(copy: Quantised, dtype: torch.dtype = torch.float32) -> Float[Tensor, "O G I"]:
    """The numbers a few-bit copy stands for."""
    levels = _unpack(copy.levels, copy.bits, copy.shape)
    top = 2**copy.bits - 1
    out = torch.empty(copy.shape, dtype=dtype, device=levels.device)
    if kernels := _kernels(out):
        kernels.dequantise(*(part.numpy() for part in (levels, copy.alpha, copy.beta)), top, out.numpy())
        return out
    step = copy.alpha / top
    for o, g, i in _chunks(levels):
        real = levels[o, g, i].float()
        out[o, g, i] = torch.addcmul(copy.beta[g, None], real, step[g, None])
    return out


def _table(kernels: Any, dither: Dither | None) -> tuple[Any, int]:
    """Dither for the kernels, and where they start to read it; 1/2 throughout without one."""
    if dither is None:
        return _HALF, 0
    return dither.table[: CHUNK + kernels.BLOCK].numpy(), dither.start()


def _quantise_chunks(x: Tensor, beta: Tensor, scale: Tensor, top: int, levels: Tensor, dither: Dither | None) -> None:
    """What the kernel does, where it does not run."""
    for o, g, i in _chunks(x):
        real = (x[o, g, i].float() - beta[g, None]).mul_(scale[g, None])
        real = real.add_(dither.take(real) if dither else 0.5)
        levels[o, g, i] = real.clamp_(0, top + 0.5).to(torch.uint8)  # the cast drops the fraction


def _kernels(x: Tensor) -> Any:
    """The compiled kernels, or None where numba is not installed or they do not apply."""
    return _compiled() if x.dtype == torch.float32 and x.device.type == "cpu" else None


@cache
def _compiled() -> Any:
    if importlib.util.find_spec("numba") is None:
        return None
    from interneuron.parts import quantiser_kernels

    return quantiser_kernels


def _chunks(x: Tensor) -> Iterator[tuple[slice, slice, slice]]:
    """Slices of the three axes that cover x in contiguous pieces of at most CHUNK numbers (one piece off the CPU)."""
    outer, groups, inner = x.shape
    whole = slice(None)
    if x.device.type != "cpu":
        yield whole, whole, whole
    elif groups * inner <= CHUNK:
        step = max(CHUNK // (groups * inner), 1)
        for o in range(0, outer, step):
            yield slice(o, o + step), whole, whole
    else:
        step, stride = max(CHUNK // inner, 1), min(inner, CHUNK)
        for o in range(outer):
            for g in range(0, groups, step):
                for i in range(0, inner, stride):
                    yield slice(o, o + 1), slice(g, g + step), slice(i, i + stride)


def _pack(levels: Tensor, bits: int) -> Tensor:
    per = 8 // bits
    if per == 1:
        return levels
    flat = levels.view(-1)
    if flat.numel() % per:
        flat = torch.cat([flat, flat.new_zeros(per - flat.numel() % per)])
    columns = flat.view(-1, per)
    packed = columns[:, 0].clone()
    for k in range(1, per):
        packed |= columns[:, k] << (bits * k)
    return packed


def _unpack(packed: Tensor, bits: int, shape: tuple[int, int, int]) -> Tensor:
    if bits == 8:
        return packed
    columns = [(packed >> (bits * k)) & (2**bits - 1) for k in range(8 // bits)]
    n = shape[0] * shape[1] * shape[2]
    return torch.stack(columns, dim=1).view(-1)[:n].view(shape)


def _check(x: Tensor, alpha: Tensor | None = None, beta: Tensor | None = None) -> None:
    if x.ndim != 3 or not x.numel() or not x.is_floating_point():
        raise ShapeError(
            f"quantise_groups: a tensor {x.dtype} {list(x.shape)}, expected floating point [outer groups inner] with "
            "at least one number. Reshape it"
        )
    if alpha is None or beta is None:
        return
    if alpha.shape != (x.shape[1],) or beta.shape != alpha.shape:
        raise ShapeError(
            f"quantise_groups: ranges {list(alpha.shape)} and offsets {list(beta.shape)} for {x.shape[1]} groups. "
            "Give one of each per group"
        )

"""Kernels of few-bit copies: one pass over the numbers, no temporaries. Importing this needs numba.

Compiled code is kept beside this file, so only the first use on a machine pays for it.

Least and greatest numbers are found by their bits: with those of negative numbers flipped below the sign, they are
whole numbers of the same order, which the processor compares a register at a time (a float's minimum it does not, since
it would have to heed NaN). NaN comes out beyond the infinities, so that no range with one in it is finite.
"""

from __future__ import annotations

import inspect
from typing import Any, Literal

import numba
import numpy as np

BLOCK = 4096
"""Numbers that share one window of the table of dither."""
FLIP = np.int32(0x7FFFFFFF)
MOST = np.int32(0x7F000000)
"""The bits of 2^127: between it and its negative the range of float32 numbers is finite."""
TINY = np.finfo(np.float32).tiny


def _compiled(function: Any, inline: Literal["always", "never"] = "never") -> Any:
    # unwrapped, since run-time type checks cannot be compiled
    return numba.njit(fastmath=True, nogil=True, cache=True, inline=inline)(inspect.unwrap(function))


def _inlined(function: Any) -> Any:
    # a call costs more than a row of 256 numbers: each array that is handed over is counted
    return _compiled(function, "always")


@_inlined
def _key(bits: Any) -> Any:
    """A whole number ordered as the float32 of these bits; and the bits again, of a key."""
    return np.int32(bits ^ ((bits >> 31) & FLIP))


@_inlined
def _ends(bits: Any) -> Any:
    """Least and greatest key of a row of bits."""
    least, greatest = FLIP, np.int32(-FLIP)
    for i in range(len(bits)):
        key = _key(bits[i])
        least = key if key < least else least
        greatest = key if key > greatest else greatest
    return least, greatest


@_inlined
def _levels(x: Any, beta: Any, scale: Any, top: Any, u: Any, out: Any) -> None:
    """Levels of a run of numbers."""
    most = np.float32(top + 0.5)
    for i in range(len(x)):
        value = (x[i] - beta) * scale + u[i]
        out[i] = np.uint8(np.int32(min(max(value, np.float32(0.0)), most)))


@_compiled
def ranges(bits: Any, low: Any, high: Any) -> None:
    """Bits of the least and the greatest number of each group; `bits` [O G I] are those of float32 numbers."""
    outer, groups, _ = bits.shape
    for g in range(groups):
        least, greatest = _ends(bits[0, g])
        for o in range(1, outer):
            lower, higher = _ends(bits[o, g])
            least, greatest = min(least, lower), max(greatest, higher)
        low[g], high[g] = _key(least), _key(greatest)


@_compiled
def quantise(x: Any, beta: Any, scale: Any, top: Any, levels: Any, table: Any, start: int) -> None:
    """levels of x, both [O G I]; `table` holds one period of dither and BLOCK numbers of the next, read from start."""
    outer, groups, inner = x.shape
    period, at = len(table) - BLOCK, start
    for o in range(outer):
        for g in range(groups):
            for first in range(0, inner, BLOCK):
                last = min(first + BLOCK, inner)
                u, out = table[at : at + last - first], levels[o, g, first:last]
                _levels(x[o, g, first:last], beta[g], scale[g], top, u, out)
                at = (at + last - first) % period


@_compiled
def quantise_own(x: Any, alpha: Any, beta: Any, top: Any, levels: Any, table: Any, start: int) -> bool:
    """levels of x [G I] in each row's own range, which goes to `alpha` and `beta`, found while the row is in the cache.

    At most BLOCK numbers a row. False at a number that is not finite or beyond 2^127; the rest is then left out.
    """
    bits, low, high = x.view(np.int32), beta.view(np.int32), alpha.view(np.int32)
    inner, period, at = x.shape[1], len(table) - BLOCK, start
    for g in range(len(x)):
        least, greatest = _ends(bits[g])
        if least <= -MOST or greatest >= MOST:
            return False
        low[g], high[g] = _key(least), _key(greatest)
        alpha[g] -= beta[g]
        scale = np.float32(top) / max(alpha[g], TINY)
        _levels(x[g], beta[g], scale, top, table[at : at + inner], levels[g])
        at = (at + inner) % period
    return True


@_compiled
def dequantise(levels: Any, alpha: Any, beta: Any, top: Any, out: Any) -> None:
    """out [O G I] = levels * alpha / top + beta."""
    outer, groups, inner = levels.shape
    for o in range(outer):
        for g in range(groups):
            s, b, row, real = alpha[g] / np.float32(top), beta[g], levels[o, g], out[o, g]
            for i in range(inner):
                real[i] = np.float32(row[i]) * s + b

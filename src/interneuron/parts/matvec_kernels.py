"""Kernels for one dense matrix times one sparse vector: rows of weights whose input is zero are never read.

The matrix is kept transposed, [in, out], so that everything one input touches lies in one run of memory. Outputs are
worked on in tiles that stay in the L1 cache while eight inputs at a time stream past. Importing this needs numba;
compiled code is kept beside this file, so only the first use on a machine pays for it.
"""

from __future__ import annotations

import inspect
from typing import Any

import numba

TILE = 2048
FUSED = 8


def _exact(function: Any) -> Any:
    # unwrapped, since run-time type checks cannot be compiled; no fast mathematics, which may assume away NaN
    return numba.njit(nogil=True, cache=True)(inspect.unwrap(function))


def _serial(function: Any) -> Any:
    return numba.njit(fastmath=True, nogil=True, cache=True)(inspect.unwrap(function))


def _parallel(function: Any) -> Any:
    return numba.njit(parallel=True, fastmath=True, nogil=True, cache=True)(inspect.unwrap(function))


@_exact
def kept(x: Any, index: Any) -> int:
    """Write the positions of the entries of x [in] that are not zero to `index` and return how many there are.

    NaN counts as an entry, so that it reaches the output.
    """
    n = 0
    for i in range(len(x)):
        index[n] = i
        n += x[i] != 0
    return n


@_serial
def block(columns: Any, x: Any, index: Any, n: int, y: Any, start: int, stop: int) -> None:
    """y[start:stop] = sum over the first n of `index` of x[i] columns[i, start:stop]."""
    for low in range(start, stop, TILE):
        high = min(low + TILE, stop)
        part = y[low:high]
        part[:] = 0
        i = 0
        while i + FUSED <= n:
            a, b, c, d = index[i], index[i + 1], index[i + 2], index[i + 3]
            e, f, g, h = index[i + 4], index[i + 5], index[i + 6], index[i + 7]
            w0, w1, w2, w3 = columns[a, low:high], columns[b, low:high], columns[c, low:high], columns[d, low:high]
            w4, w5, w6, w7 = columns[e, low:high], columns[f, low:high], columns[g, low:high], columns[h, low:high]
            x0, x1, x2, x3, x4, x5, x6, x7 = x[a], x[b], x[c], x[d], x[e], x[f], x[g], x[h]
            for j in range(high - low):
                left = x0 * w0[j] + x1 * w1[j] + x2 * w2[j] + x3 * w3[j]
                part[j] += left + (x4 * w4[j] + x5 * w5[j] + x6 * w6[j] + x7 * w7[j])
            i += FUSED
        while i < n:
            a = index[i]
            w0, x0 = columns[a, low:high], x[a]
            for j in range(high - low):
                part[j] += x0 * w0[j]
            i += 1


@_parallel
def blocks(columns: Any, x: Any, index: Any, n: int, y: Any, threads: int) -> None:
    """`block` over all outputs, an equal share of them on each thread."""
    out = len(y)
    for t in numba.prange(threads):
        block(columns, x, index, n, y, out * t // threads, out * (t + 1) // threads)

"""Kernels of few-bit copies: one pass over the numbers, no temporaries. Importing this needs numba.

Compiled code is kept beside this file, so only the first use on a machine pays for it.
"""

from __future__ import annotations

import inspect
from typing import Any

import numba
import numpy as np

BLOCK = 4096
"""Numbers that share one window of the table of dither."""


def _compiled(function: Any) -> Any:
    # unwrapped, since run-time type checks cannot be compiled
    return numba.njit(fastmath=True, nogil=True, cache=True)(inspect.unwrap(function))


@_compiled
def quantise(x: Any, beta: Any, scale: Any, top: Any, levels: Any, table: Any, start: int) -> None:
    """levels of x, both [O G I]; `table` holds one period of dither and BLOCK numbers of the next, read from start."""
    outer, groups, inner = x.shape
    period, at = len(table) - BLOCK, start
    for o in range(outer):
        for g in range(groups):
            s, b = scale[g], beta[g]
            for first in range(0, inner, BLOCK):
                row, out = x[o, g, first : first + BLOCK], levels[o, g, first : first + BLOCK]
                u = table[at : at + len(row)]
                for i in range(len(row)):
                    value = (row[i] - b) * s + u[i]
                    out[i] = np.uint8(np.int32(min(max(value, np.float32(0.0)), top)))
                at = (at + len(row)) % period


@_compiled
def dequantise(levels: Any, beta: Any, step: Any, out: Any) -> None:
    """out [O G I] = levels * step + beta."""
    outer, groups, inner = levels.shape
    for o in range(outer):
        for g in range(groups):
            s, b, row, real = step[g], beta[g], levels[o, g], out[o, g]
            for i in range(inner):
                real[i] = np.float32(row[i]) * s + b

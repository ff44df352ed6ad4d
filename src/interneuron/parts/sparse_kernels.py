"""Kernels that touch only the active features of a sparse code, forward and backward. Importing this needs numba.

A batch of codes is kept as rows of a compressed matrix: `ptr` [B+1] marks where each row's entries begin, `index` [n]
names their features, `value` [n] holds them. Weight gradients are gathered feature by feature from the transposed
(compressed-column) form, so threads never write to the same place. Everything is float32, in memory the caller owns.
Compiled code is kept beside this file, so only the first use on a machine pays for it.
"""

from __future__ import annotations

import inspect
from typing import Any

import numba
import numpy as np


def _parallel(function: Any) -> Any:
    # unwrapped, since run-time type checks cannot be compiled
    return numba.njit(parallel=True, fastmath=True, nogil=True, cache=True)(inspect.unwrap(function))


def _serial(function: Any) -> Any:
    return numba.njit(nogil=True, cache=True)(inspect.unwrap(function))


def use_threads(count: int) -> None:
    """Run the parallel kernels on this many threads, at most as many as numba was started with."""
    most = int(numba.config.NUMBA_NUM_THREADS)  # pyrefly: ignore[missing-attribute]
    numba.set_num_threads(max(1, min(count, most)))


@_parallel
def residual(ptr: Any, index: Any, value: Any, decoder: Any, bias: Any, x: Any, err: Any) -> None:
    """err = value decoder + bias - x, row by row; four features a pass keep the row in registers."""
    d = x.shape[1]
    for t in numba.prange(len(x)):
        e, row = err[t], x[t]
        for j in range(d):
            e[j] = bias[j] - row[j]
        n = ptr[t]
        while n + 4 <= ptr[t + 1]:
            a, b, c, f = value[n], value[n + 1], value[n + 2], value[n + 3]
            w0, w1, w2, w3 = decoder[index[n]], decoder[index[n + 1]], decoder[index[n + 2]], decoder[index[n + 3]]
            for j in range(d):
                e[j] += a * w0[j] + b * w1[j] + c * w2[j] + f * w3[j]
            n += 4
        while n < ptr[t + 1]:
            a, w0 = value[n], decoder[index[n]]
            for j in range(d):
                e[j] += a * w0[j]
            n += 1


@_parallel
def value_gradient(ptr: Any, index: Any, decoder: Any, err: Any, scale: Any, out: Any) -> None:
    """out = scale * (err decoder') at the active entries."""
    d = err.shape[1]
    for t in numba.prange(len(err)):
        e = err[t]
        for n in range(ptr[t], ptr[t + 1]):
            w, total = decoder[index[n]], np.float32(0)
            for j in range(d):
                total += e[j] * w[j]
            out[n] = total * scale


@_serial
def transpose(ptr: Any, index: Any, column_ptr: Any, row: Any, place: Any) -> None:
    """Compressed rows to compressed columns: entry q of a column sits in row[q], at place[q] of the row form."""
    column_ptr[:] = 0
    for n in range(len(index)):
        column_ptr[index[n] + 1] += 1
    for f in range(len(column_ptr) - 1):
        column_ptr[f + 1] += column_ptr[f]
    at = column_ptr[:-1].copy()
    for t in range(len(ptr) - 1):
        for n in range(ptr[t], ptr[t + 1]):
            f = index[n]
            row[at[f]], place[at[f]] = t, n
            at[f] += 1


@_parallel
def weight_gradient(
    column_ptr: Any, row: Any, place: Any, value: Any, grad: Any, x: Any, err: Any, scale: Any,
    decoder_grad: Any, encoder_grad: Any, bias_grad: Any,
) -> None:  # fmt: skip
    """decoder_grad = scale * value' err;  encoder_grad [F D] = grad' x;  bias_grad = sum of grad."""
    d = x.shape[1]
    for f in numba.prange(len(bias_grad)):
        into_decoder, into_encoder, total = decoder_grad[f], encoder_grad[f], np.float32(0)
        into_decoder[:] = 0
        into_encoder[:] = 0
        for q in range(column_ptr[f], column_ptr[f + 1]):
            v, g = value[place[q]] * scale, grad[place[q]]
            e, a = err[row[q]], x[row[q]]
            total += g
            for j in range(d):
                into_decoder[j] += v * e[j]
                into_encoder[j] += g * a[j]
        bias_grad[f] = total

"""Top-k codes without the dense float32 product: scores in bfloat16, then the few that can matter again, in float32.

    p_j = bf16(x^ w^_j),   x^, w^_j = x, w_j in bfloat16,   dx = |x^ - x|,   dw_j = |w^_j - w_j|
    |p_j + b_j - s_j| <= e_j = 2^-8 |p_j| + (dx + D 2^-22 |x|) |w_j| + (|x| + dx) dw_j + 2^-21 |b_j|
    candidates: the j where p_j + b_j + e_j reaches a number that k of the p + b - e reach
    code: the k largest s_j = x w_j + b_j of the candidates, in float32

The parts of e_j are: rounding p; the rounded factors, by Cauchy-Schwarz, with dx and dw measured; sums of D terms in
float32 here and on the dense path; the sum with the bias. So every feature that the dense product could choose is a
candidate, and the code is the same but for the order of summation. Rows to which the bound is of no use (too many
candidates; lengths whose squares overflow or vanish; NaN) take the dense product, and so does the batch where such
rows are many. Importing this needs numba.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from time import perf_counter
from typing import Any

import numba
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interneuron.parts.sparse_kernels import parallel, serial
from interneuron.parts.sparse_selection import top_rows

# Rows at a time: their bfloat16 scores and inputs stay in the cache between the product and the selection.
CHUNK = 1024
# With fewer weights than this the product is too short to gain by it.
SMALLEST = 1 << 18
# Steps that take the dense product at once after a batch in which many rows had to.
REST = 64
# Lengths between which neither the squares nor the products in the bound overflow or vanish in float32.
SHORTEST, LONGEST = 1e-15, 1e15
# A little above 2^-8 and what float32 needs: the bound is itself computed in float32.
ROUNDED, BIAS = np.float32(2**-8 * 1.01), np.float32(2**-21)


def worthwhile(d: int, n_features: int, k: int) -> bool:
    """Whether the dictionary is of a size that gains by bfloat16 on a CPU that multiplies it faster than float32."""
    return d * n_features >= SMALLEST and n_features >= 64 * k and _halves_products()


@cache
def _halves_products() -> bool:
    """Whether a product in bfloat16 takes well under the time of one in float32: measured once, in some 50 ms.

    That a CPU has instructions for it does not tell: with those of AVX-512 alone it can take longer.
    """
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    if not any(getattr(torch.cpu, name, lambda: False)() for name in probes):
        return False
    x, w = (torch.ones(n, 512, dtype=torch.float32, device="cpu") for n in (256, 2048))
    return _seconds(x.bfloat16(), w.bfloat16()) <= 0.7 * _seconds(x, w)


def _seconds(x: Tensor, w: Tensor) -> float:
    """The shortest of five products x w', after a first one, for which kernels may have to be built."""
    ends = []
    for _ in range(6):
        torch.mm(x, w.T)
        ends.append(perf_counter())
    return min(b - a for a, b in pairwise(ends))


class Preselection:
    """The selection of the k largest scores of each row, of at least 64 k, in memory from `buffer`."""

    def __init__(self, k: int, buffer: Callable[..., Tensor]) -> None:
        self.k, self.buffer, self.resting = k, buffer, 0

    def top(
        self,
        x: Float[Tensor, "B D"],
        encoder: Float[Tensor, "F D"],
        bias: Float[Tensor, " F"],
        index: Tensor,
        value: Tensor,
    ) -> bool:
        """Write the features [B k] and values max(s, 0) of the code; False: take the dense product instead."""
        if self.resting:
            self.resting -= 1
            return False
        weights = self._rounded("encoder", encoder)
        count = self.buffer("candidates", len(x), dtype=torch.int32)
        usable = bool(_usable(weights[1]).all()) and bool(bias.abs().max() < LONGEST)
        for start in range(0, len(x) if usable else 0, CHUNK):
            rows = slice(start, start + CHUNK)
            self._chunk(x[rows], encoder, bias, weights, count[rows], index[rows], value[rows])
            usable = int((count[rows] < 0).sum()) <= len(count[rows]) // 8
            if not usable:
                break
        if not usable:
            self.resting = REST
            return False
        left = (count < 0).nonzero().flatten()
        if len(left):
            pre, found, score = torch.addmm(bias, x[left], encoder.T), index[left], value[left]
            top_rows(pre.numpy(), pre.numpy(), self.k, found.numpy(), score.numpy())
            index[left], value[left] = found, score
        return True

    def _chunk(
        self, x: Tensor, encoder: Tensor, bias: Tensor, weights: tuple[Tensor, Tensor, Tensor], count: Tensor,
        index: Tensor, value: Tensor,
    ) -> None:  # fmt: skip
        """The codes of a few rows; count [B] becomes the number of candidates of each, -1 for a row left out."""
        b, f, k = len(x), len(bias), self.k
        room = min(f // 16, 16 * k)  # with more candidates the dense product is as fast
        rounded, length, error = self._rounded("rows", x)
        approximate = torch.mm(rounded, weights[0].T, out=self.buffer("approximate", b, f, dtype=torch.bfloat16))
        slack = error + x.shape[1] * 2.0**-22 * length
        lengths = [part.numpy() for part in (slack, length + error, *weights[1:])]
        count.copy_(_usable(length)).sub_(1)
        counts, biases = count.numpy(), bias.numpy()
        slots, row, place = (
            self.buffer(name, b, room, dtype=torch.int32).numpy() for name in ("slots", "slot_row", "slot_place")
        )
        column_ptr = self.buffer("slot_ptr", f + 1, dtype=torch.int32).numpy()
        score = self.buffer("slot_score", b, room).numpy()
        candidates(approximate.view(torch.int16).numpy(), *lengths, biases, k, counts, slots)
        by_feature(slots, counts, column_ptr, row.reshape(-1), place.reshape(-1))
        rescore(column_ptr, row.reshape(-1), place.reshape(-1), x.numpy(), encoder.numpy(), biases, score.reshape(-1))
        keep(slots, score, counts, k, index.numpy(), value.numpy())

    def _rounded(self, name: str, exact: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A matrix in bfloat16, the lengths of its rows and of their rounding errors, a little enlarged."""
        rounded = self.buffer(f"{name}_rounded", *exact.shape, dtype=torch.bfloat16).copy_(exact)
        length, error = (self.buffer(f"{name}_{what}", len(exact)) for what in ("length", "error"))
        measure(exact.numpy(), rounded.view(torch.int16).numpy(), length.numpy(), error.numpy())
        return rounded, length.mul_(1 + 2.0**-10), error.mul_(1 + 2.0**-10)


def _usable(length: Tensor) -> Tensor:
    return (length > SHORTEST) & (length < LONGEST)


def _inner(function: Any) -> Any:
    """Compile the body of a kernel's loop: sums may be reordered, NaN and infinity keep their meaning."""
    return numba.njit(fastmath={"reassoc", "contract"}, nogil=True, cache=True)(inspect.unwrap(function))


@_inner
def _floats(bits: Any) -> Any:
    """bfloat16, given as int16, in float32."""
    wide = np.empty(len(bits), np.int32)
    for j in range(len(bits)):
        wide[j] = np.int32(bits[j]) * np.int32(1 << 16)
    return wide.view(np.float32)


@_inner
def _lengths(exact: Any, rounded: Any) -> Any:
    square, off = np.float32(0), np.float32(0)
    for j in range(len(exact)):
        square += exact[j] * exact[j]
        off += (rounded[j] - exact[j]) * (rounded[j] - exact[j])
    return np.sqrt(square), np.sqrt(off)


@parallel
def measure(exact: Any, rounded: Any, length: Any, error: Any) -> None:
    """The Euclidean length of each row and of its difference from the rounded one."""
    for t in numba.prange(len(exact)):
        length[t], error[t] = _lengths(exact[t], _floats(rounded[t]))


@_inner
def _bounds(p: Any, slack: Any, length: Any, norm: Any, off: Any, bias: Any, low: Any, high: Any) -> None:
    for j in range(len(p)):
        e = ROUNDED * abs(p[j]) + slack * norm[j] + length * off[j] + BIAS * abs(bias[j])
        low[j] = p[j] + bias[j] - e
        high[j] = p[j] + bias[j] + e


@serial
def _reaching(s: Any, mark: Any) -> Any:
    n = np.int32(0)
    for j in range(len(s)):
        n += s[j] >= mark
    return n


@serial
def _cut(s: Any, k: Any, halvings: Any) -> Any:
    """low and high about the k-th largest of s: k or more entries reach low; fewer high, unless low is high.

    The interval is halved, which takes no branch per entry, until exactly k entries reach a number.
    """
    low, high = s[0], s[0]
    for j in range(1, len(s)):
        low, high = min(low, s[j]), max(high, s[j])
    if _reaching(s, high) >= k:
        return high, high
    for _ in range(halvings):
        middle = low + (high - low) * np.float32(0.5)
        if middle <= low or middle >= high:
            break
        n = _reaching(s, middle)
        if n == k:
            return middle, middle
        low, high = (middle, high) if n > k else (low, middle)
    return low, high


@_inner
def _mark(low: Any, k: Any) -> Any:
    """A number that at least k entries reach, close below the k-th largest of the maxima of 8 k or more groups."""
    n = (len(low) + 1) // 2
    best, rest = low[:n].copy(), low[n:]
    while True:
        for j in range(len(rest)):
            best[j] = rest[j] if rest[j] > best[j] else best[j]
        half = (n + 1) // 2
        if half < 8 * k:
            break
        rest, n = best[half:n], half
    return _cut(best[:n], k, 12)[0]


@_inner
def _collect(high: Any, mark: Any, at: Any) -> Any:
    """How many entries reach the mark, and in `at` which; -1 if there may be more than it holds.

    Flags are written without a branch and read eight at a time: few are set.
    """
    flags = np.zeros((len(high) + 7) // 8 * 8, np.uint8)
    for j in range(len(high)):
        flags[j] = high[j] >= mark
    n, eights = 0, flags.view(np.uint64)
    for a in range(len(eights)):
        if eights[a]:
            if n + 8 > len(at):
                return -1
            for j in range(8 * a, 8 * a + 8):
                at[n] = j
                n += flags[j]
    return n


@parallel
def candidates(
    approximate: Any, slack: Any, length: Any, norm: Any, off: Any, bias: Any, k: Any, count: Any, slots: Any
) -> None:
    """The features of each row whose score may be among the k largest, in rising order; none where count is -1."""
    for t in numba.prange(len(approximate)):
        if count[t] >= 0:
            low, high = np.empty(len(bias), np.float32), np.empty(len(bias), np.float32)
            _bounds(_floats(approximate[t]), slack[t], length[t], norm, off, bias, low, high)
            count[t] = _collect(high, _mark(low, k), slots[t])


@serial
def by_feature(slots: Any, count: Any, column_ptr: Any, row: Any, place: Any) -> None:
    """The candidates feature by feature: entry q of a feature belongs to row[q] and sits at place[q] of the slots."""
    column_ptr[:] = 0
    for t in range(len(count)):
        for n in range(count[t]):
            column_ptr[slots[t, n] + 1] += 1
    for f in range(len(column_ptr) - 1):
        column_ptr[f + 1] += column_ptr[f]
    at = column_ptr[:-1].copy()
    for t in range(len(count)):
        for n in range(count[t]):
            f = slots[t, n]
            row[at[f]], place[at[f]] = t, t * slots.shape[1] + n
            at[f] += 1


@_inner
def _products(w: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    s0, s1, s2, s3 = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    for j in range(len(w)):
        s0 += a[j] * w[j]
        s1 += b[j] * w[j]
        s2 += c[j] * w[j]
        s3 += d[j] * w[j]
    return s0, s1, s2, s3


@parallel
def rescore(column_ptr: Any, row: Any, place: Any, x: Any, encoder: Any, bias: Any, score: Any) -> None:
    """score[place] = x[row] w + b: a feature's weights are read once, for four rows at a time (the last repeated)."""
    for f in numba.prange(len(bias)):
        w, b, last = encoder[f], bias[f], column_ptr[f + 1] - 1
        for q in range(column_ptr[f], last + 1, 4):
            q1, q2, q3 = min(q + 1, last), min(q + 2, last), min(q + 3, last)
            s0, s1, s2, s3 = _products(w, x[row[q]], x[row[q1]], x[row[q2]], x[row[q3]])
            score[place[q]], score[place[q1]] = s0 + b, s1 + b
            score[place[q2]], score[place[q3]] = s2 + b, s3 + b


@parallel
def keep(slots: Any, score: Any, count: Any, k: Any, index: Any, value: Any) -> None:
    """The k candidates of largest score of each row, of equal ones the first, in rising order of the feature."""
    for t in numba.prange(len(count)):
        if count[t] >= 0:
            s = score[t, : count[t]]
            low, high = _cut(s, k, 300)  # at most 280 halvings lead from 1e30 to the last bit
            ties, n = k - _reaching(s, high), 0
            for i in range(len(s)):
                if n < k and (s[i] >= high or (ties > 0 and s[i] >= low)):
                    ties -= s[i] < high
                    index[t, n], value[t, n] = slots[t, i], max(s[i], np.float32(0))
                    n += 1

"""Which features of a batch are active: the selections of sparse codes as kernels. Importing this needs numba.

    top_rows        the k largest of each row
    count_above, take_above   entries above a threshold of their feature, in compressed rows
    nth_largest     the n-th largest of all entries, by their bits
    norm_rows       as many of the largest of each row as bring its Euclidean length nearest to a target

Where entries tie, the one of the lower index is kept, so the same input always gives the same code.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from interneuron.parts.sparse_kernels import parallel, serial

BLOCK = 32


@parallel
def top_rows(score: Any, value: Any, k: Any, index: Any, chosen: Any) -> None:
    """The k entries of largest score of each row: their features in index [B k], max(value, 0) in chosen [B k].

    The k-th largest of the maxima of 2k interleaved groups bounds the k-th largest of the row from below, so few
    entries pass; those go through a heap of k with the least on top.
    """
    f = score.shape[1]
    groups = min(2 * k, f)
    for t in numba.prange(len(score)):
        row, heap, at = score[t], np.empty(k, np.float32), index[t]
        bound, held, n = _kth_of_maxima(row, groups, k), 0, 0
        while n < f:
            stop, passing = min(n + BLOCK, f), np.int32(0)
            for j in range(n, stop):
                passing += row[j] >= bound
            if passing:
                for i in range(n, stop):
                    s = row[i]
                    if s < bound:
                        continue
                    if held < k:
                        _sift_up(heap, at, held, s, i)
                        held += 1
                    elif s > heap[0]:
                        _replace_least(heap, at, k, s, i)
                        bound = heap[0]
            n = stop
        for n in range(held, k):  # NaN passes no comparison; the loss will show it
            at[n] = n
        for n in range(k):
            chosen[t, n] = max(value[t, at[n]], np.float32(0))


@serial
def _kth_of_maxima(row: Any, groups: Any, k: Any) -> Any:
    """The k-th largest of the maxima of the entries whose positions agree modulo `groups` >= k."""
    best = row[:groups].copy()
    whole = len(row) // groups * groups
    for start in range(groups, whole, groups):
        part = row[start : start + groups]
        for j in range(groups):
            best[j] = part[j] if part[j] > best[j] else best[j]
    for j in range(whole, len(row)):
        best[j - whole] = max(best[j - whole], row[j])
    return np.sort(best)[groups - k]


@serial
def _sift_up(heap: Any, at: Any, n: Any, s: Any, i: Any) -> None:
    """Add s to a heap of n entries with the least on top."""
    while n > 0 and heap[(n - 1) // 2] > s:
        heap[n], at[n] = heap[(n - 1) // 2], at[(n - 1) // 2]
        n = (n - 1) // 2
    heap[n], at[n] = s, i


@serial
def _replace_least(heap: Any, at: Any, k: Any, s: Any, i: Any) -> None:
    """Put s in place of the least entry of a heap of k and sift it down."""
    j = 0
    while True:
        child = 2 * j + 1
        if child >= k:
            break
        if child + 1 < k and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= s:
            break
        heap[j], at[j] = heap[child], at[child]
        j = child
    heap[j], at[j] = s, i


@parallel
def count_above(pre: Any, cut: Any, count: Any) -> None:
    """count[t] = how many entries of row t lie above cut [F]."""
    for t in numba.prange(len(pre)):
        n, row = 0, pre[t]
        for f in range(len(cut)):
            n += row[f] > cut[f]
        count[t] = n


@parallel
def take_above(pre: Any, cut: Any, ptr: Any, index: Any, value: Any) -> None:
    """The entries above cut [F], in the compressed rows that ptr lays out."""
    for t in numba.prange(len(pre)):
        n, row = ptr[t], pre[t]
        for f in range(len(cut)):
            if row[f] > cut[f]:
                index[n], value[n] = f, row[f]
                n += 1


@serial
def nth_largest(bits: Any, n: Any) -> Any:
    """The bits of the n-th largest (from 1) of the positive floats whose bits [M] (int32) are given; 0 if fewer.

    Positive floats order as their bits do, so two histograms of 16 bits each find the value without sorting.
    """
    counts = np.zeros(1 << 15, np.int64)
    for i in range(len(bits)):
        if bits[i] > 0:
            counts[bits[i] >> 16] += 1
    high = len(counts) - 1
    while high >= 0 and counts[high] < n:
        n -= counts[high]
        high -= 1
    if high < 0:
        return 0
    low_counts = np.zeros(1 << 16, np.int64)
    for i in range(len(bits)):
        if bits[i] > 0 and bits[i] >> 16 == high:
            low_counts[bits[i] & 0xFFFF] += 1
    low = len(low_counts) - 1
    while low_counts[low] < n:
        n -= low_counts[low]
        low -= 1
    return (high << 16) | low


@parallel
def norm_rows(pre: Any, norm: Any, ptr: Any, index: Any, value: Any) -> None:
    """The k* largest positive entries of each row, k* = argmin_k | sqrt(sum of the k largest squares) - norm | >= 1.

    ptr [B+1] gives room for all positive entries of a row; index and value are filled from its beginning, the rest is
    set to feature -1. The positive entries become a heap with the largest on top, of which only k* + 1 are drawn.
    """
    for t in numba.prange(len(pre)):
        start, row = ptr[t], pre[t]
        n = 0
        heap, at = np.empty(ptr[t + 1] - start, np.float32), np.empty(ptr[t + 1] - start, np.int64)
        for f in range(len(row)):
            if row[f] > 0:
                _sift_up(heap, at, n, -row[f], f)  # negated: the least on top
                n += 1
        kept, square, before, room = 0, 0.0, 0.0, n
        while n > 0:
            s, f = -heap[0], at[0]
            before = square
            square += float(s) * float(s)
            # One entry more is worth it while it brings the length nearer than it was.
            if kept > 0 and abs(np.sqrt(square) - norm[t]) >= abs(np.sqrt(before) - norm[t]):
                break
            index[start + kept], value[start + kept] = f, s
            kept += 1
            n -= 1
            _replace_least(heap, at, n, heap[n], at[n])
        for j in range(kept, room):
            index[start + j] = -1

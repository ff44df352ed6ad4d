"""Streaming statistics of a site, computed once and kept beside the data.

Per dimension: mean, standard deviation, minimum, maximum (over finite rows, in float64; blocks are merged by the
pairwise update of Chan, Golub and LeVeque 1979). Of the row norms: mean, root mean square, and quantiles. Quantiles of
dimensions and norms come from an even sample of at most 65,536 rows: with S sampled rows the rank of a quantile q is
off by about sqrt(q (1 - q) / S), that is 0.2 % at the median. The covariance [D, D] is computed on request.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interneuron.core.errors import ArtifactError, InputError
from interneuron.core.files import load_tensors, save_tensors
from interneuron.core.progress import Progress
from interneuron.store.journal import STATS
from interneuron.store.reader import Store

QUANTILES = (0.0, 0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999, 1.0)
_SAMPLE = 1 << 16
_CHUNK_BYTES = 16 << 20


@dataclass(frozen=True)
class Stats:
    """Statistics of one site; tensors are float64.

    rows        rows counted            non_finite   rows left out because of a NaN or infinity
    mean, std, low, high   [D]          quantiles    [Q, D] at `QUANTILES`
    norm_mean, norm_rms    numbers      norm_quantiles  [Q]
    covariance  [D, D] or None
    """

    rows: int
    non_finite: int
    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor
    quantiles: Tensor
    norm_mean: float
    norm_rms: float
    norm_quantiles: Tensor
    covariance: Tensor | None = None


def stats(store: Store, site: str, covariance: bool = False) -> Stats:
    """Statistics of `site` over rows flattened to [N, D]; taken from the store's `stats` folder when they are there."""
    rows = store[site]
    number = store._manifest.numbers[site]
    folder = os.path.join(store.path, STATS)
    path = os.path.join(folder, f"c{number:02d}.safetensors")
    local = "://" not in store.path
    kept = _load(path, store.version) if local else None
    if kept is not None and (kept.covariance is not None or not covariance):
        return kept
    if not len(rows):
        raise InputError(f"{store.path}: no rows yet, so there is nothing to count. Record some first.")
    found = _compute(store, site, covariance)
    if local and os.access(store.path, os.W_OK):
        os.makedirs(folder, exist_ok=True)
        save_tensors(path, _as_tensors(found), {"version": store.version, "site": site})
    return found


class _Moments:
    """Mean and squared deviations of blocks, merged pairwise."""

    def __init__(self, width: int, covariance: bool) -> None:
        self.n, self.bad = 0, 0
        self.mean = torch.zeros(width, dtype=torch.float64)
        self.m2 = torch.zeros((width, width) if covariance else width, dtype=torch.float64)
        self.low = torch.full((width,), torch.inf, dtype=torch.float64)
        self.high = torch.full((width,), -torch.inf, dtype=torch.float64)
        self.norms = self.squares = 0.0

    def add(self, x: Tensor) -> Tensor:
        """Take in rows [N, D] (float64); returns the finite ones."""
        good = torch.isfinite(x).all(1)
        if not bool(good.all()):
            self.bad += int((~good).sum())
            x = x[good]
        n = len(x)
        if not n:
            return x
        mean = x.mean(0)
        centred = x - mean
        delta = mean - self.mean
        weight = self.n * n / (self.n + n)
        if self.m2.ndim == 2:
            self.m2 += centred.T @ centred + torch.outer(delta, delta) * weight
        else:
            self.m2 += (centred * centred).sum(0) + delta * delta * weight
        self.n += n
        self.mean += delta * (n / self.n)
        self.low = torch.minimum(self.low, x.amin(0))
        self.high = torch.maximum(self.high, x.amax(0))
        squares = (x * x).sum(1)
        self.norms += float(squares.sqrt().sum())
        self.squares += float(squares.sum())
        return x


def _compute(store: Store, site: str, covariance: bool) -> Stats:
    rows = store[site]
    width = rows.column.width
    moments, sample = _Moments(width, covariance), []
    step = max(1, _CHUNK_BYTES // (8 * width))
    every = -(-len(rows) // _SAMPLE)
    with Progress(len(rows), f"statistics of {site}", "rows") as bar:
        for start in range(0, len(rows), step):
            x = rows[start : start + step].reshape(-1, width).double()
            moments.add(x)
            sample.append(x[(-start) % every :: every].float())
            bar.advance(len(x))
    if moments.n == 0:
        raise InputError(f"{store.path}: every row of {site!r} has a NaN or infinity. Record it in a wider dtype.")
    seen = torch.cat(sample)
    seen = seen[torch.isfinite(seen).all(1)].double()
    variance = (moments.m2.diagonal() if covariance else moments.m2) / moments.n
    return Stats(
        moments.n,
        moments.bad,
        moments.mean,
        variance.sqrt(),
        moments.low,
        moments.high,
        _quantiles(seen),
        moments.norms / moments.n,
        (moments.squares / moments.n) ** 0.5,
        _quantiles(seen.norm(dim=1, keepdim=True))[:, 0],
        moments.m2 / moments.n if covariance else None,
    )


def _quantiles(x: Tensor) -> Tensor:
    """Quantiles of each column: [Q, D]; one column at a time keeps memory flat."""
    out = np.empty((len(QUANTILES), x.shape[1]))
    for d in range(x.shape[1]):
        out[:, d] = np.quantile(x[:, d].numpy(), QUANTILES) if len(x) else np.nan
    return torch.from_numpy(out)


_TENSORS = ("mean", "std", "low", "high", "quantiles", "norm_quantiles")


def _as_tensors(found: Stats) -> dict[str, Tensor]:
    numbers = torch.tensor([found.rows, found.non_finite, found.norm_mean, found.norm_rms], dtype=torch.float64)
    tensors = {name: getattr(found, name) for name in _TENSORS} | {"numbers": numbers}
    return tensors if found.covariance is None else {**tensors, "covariance": found.covariance}


def _load(path: str, version: str) -> Stats | None:
    """Kept statistics, if they are there, whole, and of this very version of the store."""
    from safetensors import SafetensorError, safe_open

    try:
        tensors: dict[str, Any] = load_tensors(path)
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("version") != version:
                return None
    except (OSError, ArtifactError, SafetensorError):
        return None
    rows, bad, norm_mean, norm_rms = tensors["numbers"].tolist()
    return Stats(
        rows=int(rows), non_finite=int(bad), norm_mean=norm_mean, norm_rms=norm_rms,
        covariance=tensors.get("covariance"), **{name: tensors[name] for name in _TENSORS},
    )  # fmt: skip

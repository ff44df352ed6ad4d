"""Incremental truncated SVD of centred rows: principal directions of more activations than fit into memory.

Stacking [diag(S) V'; X - mean(X); sqrt(n m / (n + m)) (mean_n - mean(X))] and taking its SVD adds m rows X to n rows
already seen; the last row makes up for the shift of the mean (Ross, Lim, Lin, Yang 2008). Without truncation this is
the SVD of all rows up to rounding.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from interneuron.core.errors import InputError, ShapeError


class IncrementalSVD:
    """Principal directions of rows that come in batches; all arithmetic is float64.

    rank        directions wanted
    oversample  further directions kept between batches, so that those wanted lose little to truncation
    center      take the directions about the mean (as PCA does), not about zero
    """

    def __init__(self, rank: int, oversample: int = 8, center: bool = True) -> None:
        if rank < 1 or oversample < 0:
            raise InputError(
                f"IncrementalSVD: rank={rank}, oversample={oversample}; expected rank >= 1, the other >= 0"
            )
        self.rank, self.oversample, self.center = rank, oversample, center
        self.n = 0
        self._mean = torch.zeros(0, dtype=torch.float64)
        self._values = torch.zeros(0, dtype=torch.float64)
        self._rows = torch.zeros(0, 0, dtype=torch.float64)
        self._total = 0.0

    def update(self, acts: Float[Tensor, "N D"]) -> IncrementalSVD:
        """Add rows and return self; no row changes nothing.

        Raises:
            ShapeError: not a matrix, or of another width than the rows before.
            InputError: NaN or infinity among them.
        """
        if acts.ndim != 2 or (self.n and acts.shape[1] != self._rows.shape[1]):
            width = self._rows.shape[1] if self.n else "D"
            raise ShapeError(f"IncrementalSVD.update: rows {list(acts.shape)}, expected [N {width}]. Flatten to rows")
        if not bool(torch.isfinite(acts).all()):
            raise InputError("IncrementalSVD.update: rows hold NaN or infinity. Drop them, or look at the model")
        if not len(acts):
            return self
        x = acts.detach().double().cpu()
        m, mean = len(x), x.mean(0) if self.center else torch.zeros(x.shape[1], dtype=torch.float64)
        parts = [x - mean]
        if self.n:
            parts.insert(0, self._values[:, None] * self._rows)
            if self.center:
                parts.append(((self.n * m / (self.n + m)) ** 0.5 * (self._mean - mean))[None])
                self._total += float(parts[-1].square().sum())
            mean = (self.n * self._mean + m * mean) / (self.n + m)
        self._total += float((parts[1] if self.n else parts[0]).square().sum())
        _, values, rows = torch.linalg.svd(torch.cat(parts), full_matrices=False)
        keep = self.rank + self.oversample
        largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))  # a sign that depends on the vector alone
        self._values, self._rows = values[:keep], (rows * torch.where(largest < 0, -1.0, 1.0))[:keep]
        self._mean, self.n = mean, self.n + m
        return self

    @property
    def components(self) -> Float[Tensor, "R D"]:
        """Orthonormal rows in the order of the variance along them; fewer than `rank` when there is no more."""
        return self._rows[: self.rank]

    @property
    def singular_values(self) -> Float[Tensor, " R"]:
        """S of the centred rows."""
        return self._values[: self.rank]

    @property
    def explained_variance_ratio(self) -> Float[Tensor, " R"]:
        """S_j^2 / sum of squares of all centred rows; 0 for rows that do not vary."""
        return self.singular_values.square() / max(self._total, torch.finfo(torch.float64).tiny)

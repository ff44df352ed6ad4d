"""Ridge regression with its strength chosen on held-out rows, and the score by which encoding models are compared.

W = argmin |Y - X W|^2 + strength |W|^2 = X' (X X' + strength I)^-1 Y      X, Y centred; solved in the smaller of
                                                                            the two spaces, in float64
score_v = correlation over rows of prediction and response of voxel v, divided by its noise ceiling if one is given
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from interneuron.core.errors import InputError, ShapeError

STRENGTHS = tuple(10.0**power for power in range(-1, 7))


@dataclass(frozen=True)
class Ridge:
    """A fitted map: prediction = x weight + bias, with the strength that was chosen."""

    weight: Tensor
    bias: Tensor
    strength: float

    def predict(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
        """x weight + bias, in the dtype of x."""
        return x @ self.weight.to(x.dtype) + self.bias.to(x.dtype)


def ridge(
    x: Float[Tensor, "N D"], y: Float[Tensor, "N V"], strengths: Sequence[float] = STRENGTHS, held: float = 0.2
) -> Ridge:
    """Fit with the strength of highest mean correlation on the last share `held` of the rows, then on all rows.

    Raises:
        ShapeError: not two matrices of as many rows.
        InputError: fewer than five rows, no strengths, or NaN or infinity.
    """
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise ShapeError(f"x {list(x.shape)} and y {list(y.shape)}: expected [N D] and [N V]. Give one row a sample")
    if len(x) < 5 or not strengths:
        raise InputError(f"{len(x)} rows and {len(strengths)} strengths: expected at least 5 and 1. Give more")
    if not bool(torch.isfinite(x).all() and torch.isfinite(y).all()):
        raise InputError("x or y holds NaN or infinity: expected finite numbers. Drop those rows")
    x, y = x.double(), y.double()
    cut = min(len(x) - 2, round((1 - held) * len(x)))
    trials = dict(zip(strengths, _solve(x[:cut], y[:cut], strengths), strict=True))
    best = max(trials, key=lambda s: float(encoding_score(trials[s].predict(x[cut:]), y[cut:]).mean()))
    return _solve(x, y, [best])[0]


def encoding_score(
    pred: Float[Tensor, "N V"], y: Float[Tensor, "N V"], noise_ceiling: Float[Tensor, " V"] | None = None
) -> Float[Tensor, " V"]:
    """Pearson correlation of each column, over its noise ceiling where one is given; 0 for a constant column.

    >>> encoding_score(torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([[2.0], [4.0], [8.0]])).tolist()
    [1.0]

    Raises:
        ShapeError: two shapes, or not one ceiling a column.
    """
    if pred.shape != y.shape or pred.ndim != 2:
        raise ShapeError(f"predictions {list(pred.shape)} of {list(y.shape)}: expected two equal [N V]. Align the rows")
    a, b = (v.double() - v.double().mean(0) for v in (pred, y))
    size = (a.square().sum(0) * b.square().sum(0)).sqrt()
    r = torch.where(size > 0, (a * b).sum(0) / size.clamp_min(1e-300), size * 0)
    if noise_ceiling is not None:
        if noise_ceiling.shape != r.shape or bool((noise_ceiling <= 0).any()):
            raise ShapeError(f"noise ceiling {list(noise_ceiling.shape)}: expected {list(r.shape)} positive numbers")
        r = r / noise_ceiling.double()
    return r.to(torch.promote_types(pred.dtype, torch.float32))


def _solve(x: Tensor, y: Tensor, strengths: Sequence[float]) -> list[Ridge]:
    mean_x, mean_y = x.mean(0), y.mean(0)
    x, y = x - mean_x, y - mean_y
    dual = len(x) < x.shape[1]
    gram = x @ x.T if dual else x.T @ x
    values, vectors = torch.linalg.eigh(gram)
    target = vectors.T @ (y if dual else x.T @ y)
    found = []
    for strength in strengths:
        solved = vectors @ (target / (values.clamp_min(0) + strength)[:, None])
        weight = x.T @ solved if dual else solved
        found.append(Ridge(weight, mean_y - mean_x @ weight, strength))
    return found

"""`matrix_completion`: low-rank matrices of which few entries are seen, and pairs of them that share their directions.

Equations. M = sum_k s_k u_k v_k^T, k <= rank. A related task keeps the strengths and turns the directions:
u'_k = sqrt(alignment) u_k + sqrt(1 - alignment) w_k with w orthogonal to all u (v alike): (u_k . u'_k)^2 = alignment.
Source. Arora et al. 2019 (deep matrix factorisation); Kleinman, Achille, Soatto 2023 (critical periods in linear nets).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from interneuron.core.errors import InputError


@dataclass(frozen=True)
class MatrixCompletion:
    """mask Bool[n n], what is seen; `seen` Float[n n], zero elsewhere; truth: matrix, u, strengths, v, all float64."""

    mask: Tensor
    seen: Tensor
    truth: dict[str, Tensor]

    def error(self, guess: Tensor) -> float:
        """Root mean square over the hidden entries, as a share of the root mean square of the matrix."""
        wrong = (guess - self.truth["matrix"])[~self.mask].square().mean()
        return float((wrong / self.truth["matrix"].square().mean()).sqrt())

    def related(self, seed: int, alignment: float) -> MatrixCompletion:
        """Another task of the same strengths whose directions have this squared cosine with ours."""
        n, k = self.truth["u"].shape
        if not 0.0 <= alignment <= 1.0 or n < 2 * k:
            raise InputError(
                f"related() needs 0 <= alignment <= 1 and n >= twice the rank, got {alignment}, {n} and {k}."
            )
        rng = torch.Generator().manual_seed(seed)
        turned = []
        for own in (self.truth["u"], self.truth["v"]):
            fresh = torch.randn(n, k, generator=rng, dtype=torch.float64)
            fresh = torch.linalg.qr(fresh - own @ (own.T @ fresh))[0]
            turned.append(alignment**0.5 * own + (1.0 - alignment) ** 0.5 * fresh)
        return _task(rng, turned[0], self.truth["strengths"], turned[1], float(self.mask.double().mean()))


def make(
    seed: int, *, n: int = 20, strengths: tuple[float, ...] = (20.0, 10.0), share: float = 0.3
) -> MatrixCompletion:
    """A matrix with the given singular values in random directions, and a random share of its entries."""
    if not 1 <= len(strengths) <= n or not 0.0 < share <= 1.0:
        raise InputError(f"matrix_completion needs 1..{n} strengths and 0 < share <= 1, got {len(strengths)}, {share}.")
    rng = torch.Generator().manual_seed(seed)
    u, v = (
        torch.linalg.qr(torch.randn(n, n, generator=rng, dtype=torch.float64))[0][:, : len(strengths)] for _ in range(2)
    )
    return _task(rng, u, torch.tensor(strengths, dtype=torch.float64), v, share)


def _task(rng: torch.Generator, u: Tensor, s: Tensor, v: Tensor, share: float) -> MatrixCompletion:
    matrix = u @ torch.diag(s) @ v.T
    order = torch.randperm(matrix.numel(), generator=rng)
    mask = torch.zeros(matrix.numel(), dtype=torch.bool)
    mask[order[: round(share * matrix.numel())]] = True
    mask = mask.reshape(matrix.shape)
    return MatrixCompletion(mask, matrix * mask, {"matrix": matrix, "u": u, "strengths": s, "v": v})

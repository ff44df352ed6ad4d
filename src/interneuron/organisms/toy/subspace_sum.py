"""`subspace_sum`: a problem of many parameters whose solutions need ten of them: its intrinsic dimension is known.

Equations. The D parameters fall into k groups; the loss is the mean of (sum of group g - target_g)^2. Solutions form a
plane of dimension D - k, so a random subspace of dimension k meets it and one of k - 1 does not. In a subspace
theta = theta_0 + P z the best loss is the squared distance of the residual from the columns of G P, over k.
Source. Li et al. 2018, "Measuring the Intrinsic Dimension of Objective Landscapes".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from interneuron.core.errors import InputError


@dataclass(frozen=True)
class SubspaceSum:
    """theta Float[D] is the start; truth: group Int[D], targets Float[k], dimension Int[]."""

    theta: Tensor
    truth: dict[str, Tensor]

    def sums(self, theta: Tensor) -> Tensor:
        """Float[D] -> Float[k]."""
        k = len(self.truth["targets"])
        return torch.zeros(k, dtype=theta.dtype).index_add(0, self.truth["group"], theta)

    def loss(self, theta: Tensor) -> Tensor:
        """Float[D] -> Float[]."""
        return (self.sums(theta) - self.truth["targets"]).square().mean()

    def best(self, projection: Tensor) -> Tensor:
        """The least loss within theta + P z, P Float[D d], in closed form."""
        k = len(self.truth["targets"])
        reach = torch.zeros(k, projection.shape[1], dtype=torch.float64)
        reach.index_add_(0, self.truth["group"], projection.double())
        gap = (self.truth["targets"] - self.sums(self.theta)).double()
        basis = torch.linalg.svd(reach, full_matrices=False)[0][:, : torch.linalg.matrix_rank(reach)]
        return (gap - basis @ (basis.T @ gap)).square().mean()


def make(seed: int, *, parameters: int = 1000, groups: int = 10) -> SubspaceSum:
    """Groups of equal size whose sums must become 1, 2, ..., k; which parameter is in which group is random."""
    if groups < 1 or parameters % groups:
        raise InputError(f"subspace_sum needs groups >= 1 that divide the parameters, got {groups} and {parameters}.")
    rng = torch.Generator().manual_seed(seed)
    group = (torch.arange(parameters) % groups)[torch.randperm(parameters, generator=rng)]
    theta = torch.randn(parameters, generator=rng) / parameters**0.5
    targets = torch.arange(1, groups + 1, dtype=torch.float32)
    return SubspaceSum(theta, {"group": group, "targets": targets, "dimension": torch.tensor(groups)})

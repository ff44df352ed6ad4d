"""`dichotomies`: binary latents, inputs of chosen geometry and targets of chosen order: the anatomy of task geometry.

Inputs are one vector a condition (unstructured), a sum of one vector a latent (factorised), or a mixture; targets are
products of 1, 2, ... latents: order 1 is linear in the latents, higher orders are parities.

Equations. x_c = norm (sqrt(mix) F b_c / sqrt(k) + sqrt(1 - mix) e_c), F and e orthonormal; y_m = prod_{j in S_m} b_j.
Input-target alignment = centred kernel alignment of x x^T and y y^T over conditions.
Shapes. P = 2^k conditions. latents Float[P k] of -1 and 1, inputs Float[P d], targets Float[P m]; x, y: samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from interneuron.core.errors import InputError


@dataclass(frozen=True)
class Dichotomies:
    """x Float[N d], y Float[N m] (-1 or 1), condition Int[N].

    truth: latents, inputs, targets, sets Bool[m k] (whose product each target is), alignment Float[]
    """

    x: Tensor
    y: Tensor
    condition: Tensor
    truth: dict[str, Tensor]

    def others(self, n: int, seed: int = 0) -> Tensor:
        """Random balanced dichotomies that are no target and no target's opposite, Float[n P] of -1 and 1."""
        rng = torch.Generator().manual_seed(seed)
        p = len(self.truth["latents"])
        known = {tuple((s * t).tolist()) for t in self.truth["targets"].T for s in (1.0, -1.0)}
        found: list[Tensor] = []
        while len(found) < n:
            signs = torch.ones(p)
            signs[torch.randperm(p, generator=rng)[: p // 2]] = -1.0
            if tuple(signs.tolist()) not in known:
                found.append(signs)
        return torch.stack(found)


def make(
    seed: int,
    *,
    k: int = 4,
    m: int = 3,
    d: int = 70,
    mix: float = 0.0,
    order: int = 1,
    per_condition: int = 32,
    noise: float = 0.3,
    norm: float = 4.0,
) -> Dichotomies:
    """Samples of all 2^k conditions.

    mix    0 gives every condition a direction of its own, 1 every latent
    order  how many latents each target multiplies: the first m sets of that size (in random order)
    """
    conditions, sets = 2**k, list(combinations(range(k), order))
    if not 2 <= k <= 6 or not 1 <= m <= len(sets) or not 0.0 <= mix <= 1.0 or d < k + conditions:
        raise InputError(
            f"dichotomies needs 2 <= k <= 6, 1 <= m <= {len(sets)}, 0 <= mix <= 1, d >= {k + conditions}; got k={k}, "
            f"m={m}, mix={mix}, d={d}."
        )
    rng = torch.Generator().manual_seed(seed)
    bits = (torch.arange(conditions)[:, None] >> torch.arange(k)) & 1
    latents = 2.0 * bits - 1.0
    basis = torch.linalg.qr(torch.randn(d, k + conditions, generator=rng))[0].T
    inputs = norm * (math.sqrt(mix / k) * latents @ basis[:k] + math.sqrt(1 - mix) * basis[k:])
    chosen = [sets[i] for i in torch.randperm(len(sets), generator=rng)[:m].tolist()]
    targets = torch.stack([latents[:, list(s)].prod(1) for s in chosen], 1)
    condition = torch.arange(conditions).repeat_interleave(per_condition)
    x = inputs[condition] + noise * torch.randn(len(condition), d, generator=rng)
    members = torch.zeros(m, k, dtype=torch.bool)
    for row, s in enumerate(chosen):
        members[row, list(s)] = True
    truth = {"latents": latents, "inputs": inputs, "targets": targets, "sets": members}
    return Dichotomies(x, targets[condition], condition, truth | {"alignment": alignment(inputs, targets)})


def alignment(a: Tensor, b: Tensor) -> Tensor:
    """Centred alignment of the linear kernels of two sets of rows: Float[P _], Float[P _] -> Float[]."""
    kernels = [(v - v.mean(0)) @ (v - v.mean(0)).T for v in (a, b)]
    return (kernels[0] * kernels[1]).sum() / (kernels[0].norm() * kernels[1].norm())

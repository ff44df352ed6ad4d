"""Matching pursuit: features found one after another, each where the dictionary explains most of what is left."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def matching_pursuit(
    x: Float[Tensor, "*batch D"],
    decoder: Float[Tensor, "F D"],
    steps: int = 0,
    residual: float = 0.0,
    settles: bool = True,
) -> Float[Tensor, "*batch F"]:
    """Features f >= 0 of x, by steps of r_0 = x, i = argmax_j r_n . d_j, a = max(r_n . d_i, 0), f_i += a, r -= a d_i.

    steps     most steps of a row; 0 for D
    residual  a row stops once |r| is below it; 0 for never
    settles   a row stops once a step brings no feature that it had not yet

    Rows d_i are taken as they are; the steps shrink |r| only for those not longer than sqrt(2).

    >>> matching_pursuit(torch.tensor([[3.0, 1.0]]), torch.eye(2)).tolist()
    [[3.0, 1.0]]
    """
    rows = x.reshape(-1, x.shape[-1])
    left = rows.clone()
    f = rows.new_zeros(len(rows), len(decoder))
    active = torch.ones(len(rows), 1, dtype=torch.bool, device=x.device)
    for _ in range(steps or decoder.shape[1]):
        if not bool(active.any()):
            break
        chosen = (left @ decoder.T).relu().argmax(dim=1, keepdim=True)
        d = decoder[chosen[:, 0]]
        gain = (left * d).sum(-1, keepdim=True).relu() * active
        known = f.gather(1, chosen) != 0
        f.scatter_add_(1, chosen, gain)
        left = left - gain * d
        if settles:
            active &= ~known & (gain > 0)
        if residual > 0:
            active &= left.norm(dim=-1, keepdim=True) >= residual
    return f.reshape(*x.shape[:-1], len(decoder))

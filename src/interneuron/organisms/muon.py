"""Muon: momentum whose matrix updates are made orthogonal, with AdamW for everything that is not a hidden matrix.

Source: K. Jordan et al., Muon (2024), https://kellerjordan.github.io/posts/muon/; written here for a handful of small
matrices on a CPU: equal shapes are stacked and orthogonalised in one batched product.

    M <- mu M + G;   U = NS5(G + mu M);   W <- W (1 - lr wd) - lr max(1, rows/cols)^(1/2) U
    NS5: X <- a X + (b A + c A A) X with A = X X^T, five times from X = U / |U|_F, (a, b, c) = (3.4445, -4.7750, 2.0315)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

NS = (3.4445, -4.7750, 2.0315)


def orthogonalise(g: Tensor, steps: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    """Push the singular values of a stack of matrices Float[K R C] towards 1 by Newton-Schulz iteration.

    >>> u = orthogonalise(torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(0)))
    >>> bool((torch.linalg.svdvals(u) < 1.4).all())
    True
    """
    x = g.to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = NS
    for _ in range(steps):
        s = x @ x.mT
        x = a * x + (b * s + c * (s @ s)) @ x
    return (x.mT if tall else x).to(g.dtype)


class Muon(torch.optim.Optimizer):
    """Muon over two-dimensional hidden weights.

    Args:
        params: matrices only; embeddings, norms and heads belong to AdamW.
        lr: step length; an update has singular values near 1 times `lr`.
        momentum: decay of the Nesterov momentum.
        weight_decay: decoupled, scaled by `lr`.
        dtype: of the orthogonalisation; bfloat16 is faster where the CPU multiplies it natively.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float = 0.005, momentum: float = 0.95, weight_decay: float = 0.05,
        dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            stacks: dict[torch.Size, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    stacks.setdefault(p.shape, []).append(p)
            for shape, same in stacks.items():
                for p in same:
                    if "momentum" not in self.state[p]:
                        self.state[p]["momentum"] = torch.zeros_like(p)
                gradients = [p.grad for p in same if p.grad is not None]
                moments = [self.state[p]["momentum"].mul_(group["momentum"]).add_(p.grad) for p in same]
                nesterov = [g.add(m, alpha=group["momentum"]) for g, m in zip(gradients, moments, strict=True)]
                update = orthogonalise(torch.stack(nesterov), dtype=self.dtype)
                scale = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                for p, u in zip(same, update, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(u, alpha=-scale)

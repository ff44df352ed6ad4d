"""Small networks kept as weights by name, and made odd: f(-x) = -f(x), as a map of directions should be.

An artifact stores such weights as they are, without a module. A network is made odd by reading an input in both signs
and taking half the difference of the two halves of its output: odd(W h(two_ways(x))).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Weights = dict[str, Tensor]


def linear(name: str, d_in: int, d_out: int, rng: torch.Generator) -> Weights:
    """Weights `name.weight` [d_out d_in], uniform within sqrt(3 / d_in), which keeps the variance, and a zero bias."""
    bound = d_in**-0.5
    weight = (2 * torch.rand(d_out, d_in, generator=rng) - 1) * bound * 3**0.5
    return {f"{name}.weight": weight, f"{name}.bias": torch.zeros(d_out)}


def applied(w: Weights, name: str, x: Float[Tensor, "*B d_in"]) -> Float[Tensor, "*B d_out"]:
    """The linear map `name` of `x`."""
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def two_ways(x: Float[Tensor, "N *D"]) -> Float[Tensor, "M *D"]:
    """`x` and `-x`, one behind the other."""
    return torch.cat([x, -x])


def odd(y: Float[Tensor, "M *D"]) -> Float[Tensor, "N *D"]:
    """Half the difference of the two halves of what a network made of `two_ways(x)`."""
    there, back = y.chunk(2)
    return (there - back) / 2


def odd_mlp(
    w: Weights, name: str, x: Float[Tensor, "N *D"], drop: Callable[[Tensor], Tensor] | None = None
) -> Float[Tensor, "N *E"]:
    """A ReLU network of the linear maps `name.0` and `name.1`, made odd; `drop` acts on its hidden units."""
    h = torch.relu(applied(w, f"{name}.0", two_ways(x)))
    return odd(applied(w, f"{name}.1", drop(h) if drop else h))


def trainable(kind: Callable[..., torch.optim.Optimizer], w: Weights, **options: Any) -> torch.optim.Optimizer:
    """An optimiser of these weights, which from now on want gradients."""
    return kind([x.requires_grad_() for x in w.values()], **options)


def frozen(w: Weights) -> Weights:
    """The weights without their gradients."""
    return {name: x.detach() for name, x in w.items()}


def step(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step down `loss`."""
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()

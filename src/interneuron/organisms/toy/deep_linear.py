"""`deep_linear`: linear networks whose learning can be written down, and with them tests of learning-dynamics methods.

With inputs whitened, labels y = A x, A = sum_k s_k u_k v_k^T, and weights that start aligned with these modes, each
mode of a two-layer network learns alone and its strength follows a sigmoid.

Equations. da/dt = 2 a (s - a)   =>   a(t) = s e^{2 s t} / (e^{2 s t} - 1 + s / a_0),   t = learning rate x steps
mode k is half learned at t = ln(s / a_0 - 1) / (2 s).
Source. Saxe, McClelland, Ganguli 2014.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from interneuron.core.errors import InputError

from .nets import seeded


@dataclass(frozen=True)
class DeepLinear:
    """A teacher. x Float[N d_in] with x^T x / N = 1, y = x A^T; `truth` holds `map`, `u`, `strengths`, `v`."""

    x: Tensor
    y: Tensor
    truth: dict[str, Tensor]

    def solution(self, start: float, time: Tensor) -> Tensor:
        """The strength of every mode at `time` Float[T] when all start at `start`: Float[T K]."""
        s = self.truth["strengths"]
        growth = torch.expm1(2.0 * s * time[:, None])
        return s * (growth + 1.0) / (growth + s / start)

    def half_time(self, start: float) -> Tensor:
        """When each mode is half learned, Float[K]."""
        s = self.truth["strengths"]
        return (s / start - 1.0).log() / (2.0 * s)


def make(
    seed: int, *, d_in: int = 8, d_out: int = 6, strengths: tuple[float, ...] = (4.0, 2.0, 1.0), samples: int = 64
) -> DeepLinear:
    """A teacher with the given singular values in random directions, and inputs that are exactly white."""
    if len(strengths) > min(d_in, d_out) or samples < d_in:
        raise InputError(
            f"deep_linear fits {min(d_in, d_out)} modes and needs samples >= d_in; got {len(strengths)} and {samples}."
        )
    rng = torch.Generator().manual_seed(seed)
    k = len(strengths)
    x = torch.linalg.qr(torch.randn(samples, d_in, generator=rng, dtype=torch.float64))[0] * samples**0.5
    u = torch.linalg.qr(torch.randn(d_out, d_out, generator=rng, dtype=torch.float64))[0][:, :k]
    v = torch.linalg.qr(torch.randn(d_in, d_in, generator=rng, dtype=torch.float64))[0][:, :k]
    s = torch.tensor(strengths, dtype=torch.float64)
    teacher = u @ torch.diag(s) @ v.T
    return DeepLinear(x, x @ teacher.T, {"map": teacher, "u": u, "strengths": s, "v": v})


def network(
    data: DeepLinear, *, layers: int = 2, width: int = 8, start: float | None = 1e-3, seed: int = 0
) -> nn.Sequential:
    """A stack of bias-free linear layers in float64.

    With `start` set the stack begins aligned with the teacher's modes, each at that strength (the case that `solution`
    describes); with None the weights are small and random.
    """
    d_in, d_out = data.x.shape[1], data.y.shape[1]
    sizes = [d_in, *[width] * (layers - 1), d_out]
    with seeded(seed):
        linears = [nn.Linear(a, b, bias=False, dtype=torch.float64) for a, b in pairwise(sizes)]
    k = len(data.truth["strengths"])
    if start is not None and width < k:
        raise InputError(f"an aligned start needs width >= {k} (the teacher's modes), got {width}.")
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for i, layer in enumerate(linears):
            weight = layer.weight
            if start is None:
                weight.copy_(
                    torch.randn(weight.shape, generator=rng, dtype=torch.float64) * 0.1 / weight.shape[1] ** 0.5
                )
                continue
            left = data.truth["u"] if i == layers - 1 else torch.eye(weight.shape[0], k, dtype=torch.float64)
            right = data.truth["v"] if i == 0 else torch.eye(weight.shape[1], k, dtype=torch.float64)
            weight.copy_(left @ right.T * start ** (1.0 / layers))
    return nn.Sequential(*linears)


def train(
    data: DeepLinear, model: nn.Sequential, *, lr: float = 1e-3, steps: int = 6000, every: int = 20
) -> dict[str, Any]:
    """Full-batch gradient descent on half the squared error. Returns `time` Float[T] and `modes` Float[T K]."""
    u, v = data.truth["u"], data.truth["v"]
    times, modes = [], []
    parameters = list(model.parameters())
    for step in range(steps + 1):
        if step % every == 0:
            with torch.no_grad():
                total = torch.linalg.multi_dot(parameters[::-1])
                modes.append(torch.einsum("ok,oi,ik->k", u, total, v))
                times.append(step * lr)
        loss = 0.5 * (model(data.x) - data.y).square().sum(1).mean()
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(lr * gradient)
    return {"time": torch.tensor(times, dtype=torch.float64), "modes": torch.stack(modes)}

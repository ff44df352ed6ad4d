"""Training a low-rank adapter: Adam on A and B alone, the model frozen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from interneuron.artifacts.low_rank_adapter import LowRankAdapter
from interneuron.core.errors import InputError, TrainingError
from interneuron.core.seeds import generator
from interneuron.model.model import Model
from interneuron.parts.importance import losses


def train_adapter(
    model: Model,
    adapter: LowRankAdapter,
    inputs: Any,
    labels: Tensor | None = None,
    steps: int = 100,
    lr: float = 1e-3,
    batch_size: int = 16,
    seed: int = 0,
) -> LowRankAdapter:
    """Return the adapter trained on the cross-entropy of `inputs`; neither it nor the model is changed.

    inputs  texts, or a tensor whose first axis counts samples
    labels  class of each sample; None: every token is the label of the position before it

    Raises:
        InputError: no inputs, or steps or batch_size below 1.
        TrainingError: the loss is not finite.
    """
    if isinstance(inputs, str) or len(inputs) == 0 or steps < 1 or batch_size < 1:
        raise InputError(
            f"train_adapter: {len(inputs)} inputs ({type(inputs).__name__}), steps={steps}, batch_size={batch_size}; "
            "expected a list or tensor of samples and both >= 1"
        )
    a, b = ({path: x.clone().requires_grad_() for path, x in part.items()} for part in (adapter.a, adapter.b))
    trained, leaves, rng = adapter.replace(a=a, b=b), [*a.values(), *b.values()], generator(seed)
    optimiser = torch.optim.Adam(leaves, lr=lr)
    for step in range(1, steps + 1):
        rows = torch.randint(len(inputs), (batch_size,), generator=rng)
        batch = inputs[rows] if isinstance(inputs, Tensor) else [inputs[int(i)] for i in rows]
        with torch.enable_grad(), model.edit(trained.edit()):
            loss = losses(model, batch, None if labels is None else labels[rows]).mean()
        if not bool(torch.isfinite(loss)):
            raise TrainingError(f"train_adapter: the loss of step {step} is {loss.item()}, expected finite. Lower lr")
        for leaf, slope in zip(leaves, torch.autograd.grad(loss, leaves), strict=True):
            leaf.grad = slope
        optimiser.step()
    return trained.replace(
        a={path: x.detach() for path, x in a.items()},
        b={path: x.detach() for path, x in b.items()},
        fitted={**adapter.fitted, "steps": steps, "lr": lr, "seed": seed},
    )

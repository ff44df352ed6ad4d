"""How much each weight matters for a loss: the diagonal of the empirical Fisher information.

    I_i = mean over batches of (d loss / d theta_i)^2        the loss at the true labels, a mean over the batch

With batch_size 1 this is the exact diagonal; a larger one squares mean gradients, which is cheaper and smaller.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from interneuron.core.errors import InputError
from interneuron.core.progress import track
from interneuron.model.model import Model
from interneuron.parts.likelihood import token_log_probs


def fisher_diagonal(model: Model, inputs: Any, labels: Tensor | None = None, batch_size: int = 1) -> dict[str, Tensor]:
    """Return the importance of every parameter that takes gradients, by its name, in float32.

    inputs   texts, or a tensor whose first axis counts samples
    labels   class of each sample; None: every token is the label of the position before it

    The model is run in eval mode (and put back), so batch statistics and dropout play no part.

    Raises:
        InputError: no samples, another number of labels, or a loss that is NaN.
    """
    n = len(inputs)
    if isinstance(inputs, str) or n == 0 or (labels is not None and len(labels) != n):
        given = "one text" if isinstance(inputs, str) else f"{n} inputs"
        raise InputError(
            f"fisher_diagonal: {given} and {'no' if labels is None else len(labels)} labels; expected a list or tensor "
            "of at least one sample and as many labels"
        )
    parameters = {name: p for name, p in model.module.named_parameters() if p.requires_grad}
    sums = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()}
    starts = range(0, n, batch_size)
    training = [module for module in model.module.modules() if module.training]
    model.module.eval()
    try:
        for start in track(starts, label="importance", unit="batches"):
            value = losses(model, inputs[start : start + batch_size], _rows(labels, start, batch_size)).mean()
            if not torch.isfinite(value):
                raise InputError(
                    f"fisher_diagonal: the loss of samples {start}.. is {value.item()}. Look at the inputs"
                )
            gradients = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
            for name, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    sums[name] += gradient.float().square()
    finally:
        for module in training:
            module.training = True
    return {name: total / len(starts) for name, total in sums.items()}


def losses(model: Model, inputs: Any, labels: Tensor | None = None) -> Tensor:
    """Return the cross-entropy of each sample, [N]: of its class, or the mean over its tokens when labels is None."""
    if labels is not None:
        return F.cross_entropy(_logits(model(inputs)), labels.to(model.device), reduction="none")
    _, prepared = model.prepare(inputs if isinstance(inputs, Tensor) else list(inputs))
    told = token_log_probs(model(prepared), prepared)
    counts = torch.ones_like(told) if "attention_mask" not in prepared else prepared["attention_mask"][:, 1:].to(told)
    return -told.sum(1) / counts.sum(1).clamp_min(1)


def _logits(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    logits = getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise InputError(f"the model returned {type(output).__name__}, expected logits. Wrap a model that has a head")
    return logits


def _rows(labels: Tensor | Sequence[int] | None, start: int, n: int) -> Tensor | None:
    return None if labels is None else torch.as_tensor(labels[start : start + n])

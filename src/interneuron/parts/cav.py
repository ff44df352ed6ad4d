"""Concept activation vectors: one vector per input and site, the linear classifier's normal, and TCAV scores of it.

An input stands for itself at a site by the mean over its positions (tokens, or height and width), so a vector v [D] is
one direction added at every position alike, and the slope of a logit along it is the gradient summed over positions.

    CAV    w = argmin  1/N sum_n log(1 + exp(-y_n (w . x_n + b)))  +  alpha/2 |w|^2,     y_n = 1 concept, -1 random
    TCAV   share of examples n of a class with  grad_n . w > 0
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from interneuron.core.errors import InputError, ShapeError
from interneuron.model.edits import Apply
from interneuron.model.model import Model

TOLERANCE = 1e-10
MAX_NEWTON = 100


def fit_cav(positive: Float[Tensor, "N D"], negative: Float[Tensor, "M D"], alpha: float = 0.1) -> Float[Tensor, " D"]:
    """Return the normal w of the logistic classifier of concept rows against random rows, not normalised, in float64.

    The bias is not penalised. Newton's method runs until the gradient is below 1e-10.

    Raises:
        ShapeError: not two matrices of one width.
        InputError: a group is empty or holds NaN or infinity, or alpha is not positive.
    """
    if positive.dim() != 2 or negative.dim() != 2 or positive.shape[1] != negative.shape[1]:
        raise ShapeError(
            f"fit_cav: rows of shapes {list(positive.shape)} and {list(negative.shape)}, expected [N D] and [M D] "
            "with one D. Read both groups at the same site"
        )
    if len(positive) == 0 or len(negative) == 0 or not alpha > 0:
        raise InputError(
            f"fit_cav: {len(positive)} concept rows, {len(negative)} random rows, alpha={alpha}; expected at least one "
            "row each and alpha > 0. Pass rows of both groups"
        )
    x = torch.cat([positive, negative]).detach().double()
    if not torch.isfinite(x).all():
        raise InputError("fit_cav: the rows hold NaN or infinity, expected finite numbers. Look at the model")
    y = torch.ones(len(x), dtype=x.dtype, device=x.device)
    y[len(positive) :] = -1
    x = torch.cat([x, torch.ones_like(y)[:, None]], dim=1)
    penalty = torch.full_like(x[0], alpha)
    penalty[-1] = 0
    return _newton(x, y, penalty)[:-1]


def _newton(x: Tensor, y: Tensor, penalty: Tensor) -> Tensor:
    def loss(w: Tensor) -> Tensor:
        return torch.nn.functional.softplus(-y * (x @ w)).mean() + 0.5 * (penalty * w * w).sum()

    w = torch.zeros_like(x[0])
    for _ in range(MAX_NEWTON):
        p = torch.sigmoid(-y * (x @ w))
        slope = -(x * (y * p)[:, None]).mean(0) + penalty * w
        if slope.norm() <= TOLERANCE:
            break
        curve = (x * (p * (1 - p))[:, None]).T @ x / len(x) + torch.diag(penalty)
        # The bias has no penalty: separable data would leave its curvature at zero to the last bit.
        step = torch.linalg.solve(curve + 1e-14 * torch.eye(len(w), dtype=x.dtype, device=x.device), slope)
        size, now = 1.0, loss(w)
        while size > 1e-6 and loss(w - size * step) > now:
            size /= 2
        w = w - size * step
    return w


def tcav_scores(gradients: Float[Tensor, "N D"], cavs: Float[Tensor, "*R D"]) -> Float[Tensor, "*R"]:
    """Return for each vector the share of examples whose logit grows along it.

    Raises:
        ShapeError: widths differ.
        InputError: no examples.
    """
    if gradients.dim() != 2 or cavs.shape[-1] != gradients.shape[1]:
        raise ShapeError(
            f"tcav_scores: gradients {list(gradients.shape)} and vectors {list(cavs.shape)}, expected [N D] and "
            "[..., D] with one D. Take both at the same site"
        )
    if len(gradients) == 0:
        raise InputError("tcav_scores: no examples, expected at least one row of gradients. Pass images of the class")
    slopes = cavs.to(gradients.dtype) @ gradients.T
    return (slopes > 0).to(torch.float64).mean(-1)


def significance(scores: Float[Tensor, "R L"], random: Float[Tensor, "Q L"]) -> Float[Tensor, " L"]:
    """Return p of the two-sided t-test (Welch's) of a concept's scores against those of random vectors, per site.

    Two groups that are constant and equal have p = 1, constant and unequal p = 0.
    """
    if scores.dim() != 2 or random.dim() != 2 or scores.shape[1] != random.shape[1]:
        raise ShapeError(f"significance: {list(scores.shape)} and {list(random.shape)}, expected [R L] and [Q L]")
    from scipy import stats

    a, b = scores.double(), random.double()
    flat = (a.amax(0) == a.amin(0)) & (b.amax(0) == b.amin(0))
    # Any spread will do where there is none: those places are filled in below.
    wiggle = torch.zeros_like(a)
    wiggle[0] = flat.double()
    spread = [(x.mean(0).numpy(), x.std(0).numpy(), len(x)) for x in (a + wiggle, b)]
    p = torch.as_tensor(stats.ttest_ind_from_stats(*spread[0], *spread[1], equal_var=False).pvalue)
    return torch.where(flat, ((a.mean(0) - b.mean(0)).abs() < 1e-12).double(), p)


def concept_accuracy(
    cav: Float[Tensor, " D"],
    train: tuple[Float[Tensor, "N D"], Float[Tensor, "M D"]],
    test: tuple[Float[Tensor, "N D"], Float[Tensor, "M D"]],
) -> float:
    """Balanced accuracy on `test` (concept, random) of the threshold halfway between the projected means of `train`."""
    along = [[rows.double() @ cav.double() for rows in pair] for pair in (train, test)]
    middle = (along[0][0].mean() + along[0][1].mean()) / 2
    return float(((along[1][0] > middle).double().mean() + (along[1][1] <= middle).double().mean()) / 2)


@torch.no_grad()
def pooled_rows(model: Model, inputs: Tensor, sites: Sequence[str], batch_size: int = 64) -> dict[str, Tensor]:
    """Return for each site the activation [N D] of every input, the mean over its positions."""
    names = [model.site(name).name for name in sites]
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    for start in range(0, len(inputs), batch_size):
        acts = model.run(inputs[start : start + batch_size], read=names).acts
        for name in names:
            x = acts[name]
            parts[name].append(_over_positions(x, name).float().div_(max(1, x[0].numel() // _width(x))).cpu())
    return {name: torch.cat(rows) for name, rows in parts.items()}


def class_gradients(
    model: Model, inputs: Tensor, cls: int, sites: Sequence[str], batch_size: int = 64
) -> dict[str, Tensor]:
    """Return for each site the gradient [N D] of the logit of class `cls`, summed over positions.

    Neither the model nor its parameters' gradients change.

    Raises:
        InputError: no inputs, or the model has no class `cls`.
    """
    if len(inputs) == 0:
        raise InputError("class_gradients: no inputs, expected at least one image of the class. Pass some")
    names = [model.site(name).name for name in sites]
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    for start in range(0, len(inputs), batch_size):
        # The graph must exist even where every parameter is frozen.
        x = inputs[start : start + batch_size].detach().clone().requires_grad_()
        seen: dict[str, Tensor] = {}
        with torch.enable_grad(), model.edit(*(Apply(name, _noted(seen, name)) for name in names)):
            output = model(x)
            logits = output if isinstance(output, Tensor) else output.logits
            if not -logits.shape[-1] <= cls < logits.shape[-1]:
                raise InputError(f"class_gradients: cls={cls}, but the model has {logits.shape[-1]} classes. Pass one")
            found = torch.autograd.grad(logits[..., cls].sum(), [seen[name] for name in names])
        for name, slope in zip(names, found, strict=True):
            parts[name].append(_over_positions(slope, name).float().cpu())
    return {name: torch.cat(rows) for name, rows in parts.items()}


def _noted(seen: dict[str, Tensor], name: str) -> Callable[[Tensor], Tensor]:
    """The identity, which notes the very tensor that the rest of the model computes with."""

    def note(x: Tensor) -> Tensor:
        seen[name] = x.clone()
        return seen[name]

    return note


def _width(x: Tensor) -> int:
    return x.shape[1] if x.dim() == 4 else x.shape[-1]


def _over_positions(x: Tensor, name: str) -> Tensor:
    """Sum over height and width of [B D H W], over tokens of [B T D]."""
    if x.dim() not in (2, 3, 4):
        raise ShapeError(f"{name}: activations of shape {list(x.shape)}, expected [B D], [B T D] or [B D H W]")
    return x if x.dim() == 2 else x.sum(1) if x.dim() == 3 else x.sum((2, 3))

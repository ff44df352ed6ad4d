"""Activation patching: where in the network the difference between two prompts lives.

Run the corrupt prompt, but put back the activation of the clean prompt at one site and position, and see how much of
the clean answer comes back:

    recovery(s, p) = (m(corrupt with s, p from clean) - m(corrupt)) / (m(clean) - m(corrupt))

0: that place carries nothing of the difference; 1: it carries all of it. The control moves the same activation by the
same distance in a random direction, so a place that is merely fragile shows up in both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interneuron.core.errors import InputError, ShapeError
from interneuron.core.seeds import generator
from interneuron.model.edits import Replace

if TYPE_CHECKING:
    from interneuron.model.model import Model


@dataclasses.dataclass(frozen=True)
class Patching:
    """Recovery by site and position.

    recovery  [S P]     control  [S P], the same with a random change of equal size
    clean, corrupt      the metric on the two prompts, means over rows
    """

    sites: tuple[str, ...]
    positions: tuple[int, ...]
    recovery: Tensor
    control: Tensor
    clean: float
    corrupt: float

    def peak(self) -> tuple[str, int, float]:
        """Site, position and recovery of the largest entry."""
        row, column = divmod(int(self.recovery.argmax()), self.recovery.shape[1])
        return self.sites[row], self.positions[column], float(self.recovery[row, column])


def logit_difference(
    answer: Int[Tensor, " B"], wrong: Int[Tensor, " B"], position: int = -1
) -> Callable[[Float[Tensor, "B T V"]], Float[Tensor, " B"]]:
    """A metric: logit(answer) - logit(wrong) at one position, for each row."""

    def metric(logits: Tensor) -> Tensor:
        at = logits[:, position]
        rows = torch.arange(len(at), device=at.device)
        return at[rows, answer.to(at.device)] - at[rows, wrong.to(at.device)]

    return metric


def patch_grid(
    model: Model,
    clean: Int[Tensor, "B T"],
    corrupt: Int[Tensor, "B_corrupt T_corrupt"],
    metric: Callable[[Any], Tensor],
    sites: Sequence[str],
    positions: Sequence[int] | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> Patching:
    """Patch every site at every position, from the clean run into the corrupt one.

    clean, corrupt   token ids without padding, row by row the two versions of one prompt
    metric           logits [B, T, V] -> one number per row
    positions        default: all
    seed             of the random control

    Raises ShapeError when the prompts differ in length, InputError when the metric does not tell them apart.
    """
    if clean.shape != corrupt.shape:
        raise ShapeError(
            f"clean prompts have shape {tuple(clean.shape)}, corrupt ones {tuple(corrupt.shape)}: expected the same. "
            "Choose words with equally many tokens."
        )
    positions = tuple(range(clean.shape[1])) if positions is None else tuple(positions)
    with torch.no_grad():
        ours = model.run(clean, read=list(sites)).acts
        theirs = model.run(corrupt, read=list(sites)).acts
        high = float(metric(model(clean).logits).mean())
        low = float(metric(model(corrupt).logits).mean())
    if abs(high - low) < 1e-6:
        raise InputError(f"the metric is {high:.4g} on both prompts: choose prompts or answers that it tells apart.")
    noise = generator(seed)
    patches, placebos = [], []
    for site in sites:
        for p in positions:
            # [B, 1, D]: with the position axis kept, a value can never be mistaken for one per position.
            good, bad = ours[site][:, p : p + 1], theirs[site][:, p : p + 1]
            push = torch.randn(bad.shape, generator=noise).to(bad)
            push = push / push.norm(dim=-1, keepdim=True) * (good - bad).norm(dim=-1, keepdim=True)
            patches.append(Replace(site, good).at(pos=p))
            placebos.append(Replace(site, bad + push).at(pos=p))
    scores = model.sweep(corrupt, [*patches, *placebos], metric, batch_size=batch_size)
    grid = ((scores - low) / (high - low)).reshape(2, len(sites), len(positions))
    return Patching(tuple(sites), positions, grid[0], grid[1], high, low)

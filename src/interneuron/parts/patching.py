"""Patching: where in the network the difference between two prompts lives, by intervention or by gradient.

Run the corrupt prompt, but put back the activation of the clean prompt at one site and position, and see how much of
the clean answer comes back:

    recovery(s, p) = (m(corrupt with s, p from clean) - m(corrupt)) / (m(clean) - m(corrupt))

0: that place carries nothing of the difference; 1: it carries all of it. The control moves the same activation by the
same distance in a random direction, so a place that is merely fragile shows up in both.

Attribution patching estimates the recovery of all places at once, to first order around the corrupt run:

    recovery(s, p) ~ sum_d (clean - corrupt)[s, p, d] * dm/da[s, p, d] / (m(clean) - m(corrupt))

for two forward passes and one backward pass. Edits that change the backward pass alone turn it into other estimates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interneuron.core.errors import InputError, ShapeError, SiteNotFound
from interneuron.core.seeds import generator
from interneuron.model.edits import Ablate, Edits, Replace

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
    _check_pair(clean, corrupt)
    positions = tuple(range(clean.shape[1])) if positions is None else tuple(positions)
    with torch.no_grad():
        ours = model.run(clean, read=list(sites)).acts
        theirs = model.run(corrupt, read=list(sites)).acts
        high = float(metric(model(clean).logits).mean())
        low = float(metric(model(corrupt).logits).mean())
    _ends(high, low)
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


@torch.no_grad()
def activation_patching(
    model: Model,
    clean: Tensor,
    corrupt: Tensor,
    metric: Callable[[Any], Tensor],
    sites: Sequence[str],
    positions: Sequence[int] | None = None,
    batch_size: int = 64,
) -> Float[Tensor, "S P"]:
    """The recovery of every site and position, measured: `patch_grid` without its controls, same arguments."""
    _check_pair(clean, corrupt)
    positions = range(clean.shape[1]) if positions is None else positions
    acts = model.run(clean, read=list(sites)).acts
    high, low = _ends(float(metric(model(clean).logits).mean()), float(metric(model(corrupt).logits).mean()))
    patches = [Replace(site, acts[site][:, p : p + 1]).at(pos=p) for site in sites for p in positions]
    scores = model.sweep(corrupt, patches, metric, batch_size=batch_size)
    return ((scores - low) / (high - low)).reshape(len(sites), len(positions))


def attribution_patching(
    model: Model,
    clean: Tensor,
    corrupt: Tensor,
    metric: Callable[[Any], Tensor],
    sites: Sequence[str],
    positions: Sequence[int] | None = None,
    edit: Any = None,
) -> Float[Tensor, "S P"]:
    """The recovery of every site and position, estimated from gradients on the corrupt run.

    metric  the module's logits (or its output, where that is a tensor) -> one number per row
    edit    what the backward pass goes through, e.g. the rules of `circuit.relp`; it must not change the forward pass

    Weights and their gradients stay as they are. A site without a position axis gives one column.
    Raises ShapeError when the prompts differ in shape, InputError when the metric does not tell them apart.
    """
    _check_pair(clean, corrupt)
    with torch.no_grad():
        run = model.run(clean, read=list(sites))
        good, high = run.acts, metric(_logits(run.output)).mean()
    with torch.enable_grad(), model.edit(*([] if edit is None else [edit])):
        with model.read(*dict.fromkeys([*_first_site(model), *sites]), grad=True) as acts:
            low = metric(_logits(model(corrupt))).mean()
        # The gradients arrive at the reads by hooks; only those of activations are asked for, which spares the weights.
        torch.autograd.grad(low, [acts[name] for name in acts.names], allow_unused=True)
    top, bottom = _ends(float(high), float(low.detach()))
    rows = []
    for site in sites:
        change = good[site].detach() - acts[site].detach()
        score = (change * acts.grad[site]).flatten(2).sum(-1) if change.ndim > 2 else (change * acts.grad[site]).sum(-1)
        rows.append(score.sum(0) / (top - bottom) if score.ndim > 1 else score.sum()[None] / (top - bottom))
    grid = torch.stack(rows)
    return grid if positions is None else grid[:, list(positions)]


def ablate_neurons(neurons: Sequence[tuple[int, int]], part: str = "mlp.hidden") -> Edits:
    """Switch units off: the edit that sets `layers.L.PART` of each (L, unit) to zero at every position."""
    by_layer: dict[int, list[int]] = {}
    for layer, unit in neurons:
        by_layer.setdefault(layer, []).append(unit)
    axis = "d_mlp" if part.startswith("mlp.") else "d_model"
    return Edits(Ablate(f"layers.{at}.{part}").at(**{axis: sorted(units)}) for at, units in sorted(by_layer.items()))


def _first_site(model: Model) -> list[str]:
    """A site before all others, so that the backward pass reaches every site on its way there."""
    for name in ("embed", "layers.0.resid_pre"):
        try:
            return [model.site(name).name]
        except SiteNotFound:
            continue
    return []


def _logits(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output.logits


def _check_pair(clean: Tensor, corrupt: Tensor) -> None:
    if clean.shape != corrupt.shape:
        raise ShapeError(
            f"clean prompts have shape {tuple(clean.shape)}, corrupt ones {tuple(corrupt.shape)}: expected the same. "
            "Choose words with equally many tokens."
        )


def _ends(high: float, low: float) -> tuple[float, float]:
    if abs(high - low) < 1e-6:
        raise InputError(f"the metric is {high:.4g} on both prompts: choose prompts or answers that it tells apart.")
    return high, low

"""Activity of a transformer on text: how long the streams are, how sparse the MLPs, how massive the outliers, where
attention rests.

Definitions, all over the tokens of the given windows
    norm             mean over tokens of the Euclidean length of a vector
    near zero        share of MLP hidden values with |h| < 0.1 rms(h); for normally distributed values 8.0 %
    neurons for 90 % smallest share of neurons whose |h| add up to 90 % of a token's total (mean); normal: 65 %
    massive          largest |x| of the residual stream over the median |x|, at which token and channel
    sink             mean attention paid to the first position by later ones; even attention would pay mean_q 1/(q+1)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interneuron.core.errors import InputError, SiteNotFound
from interneuron.core.progress import track

if TYPE_CHECKING:
    from interneuron.model.model import Model

NORMAL_NEAR_ZERO = 0.0797  # P(|z| < 0.1) of a standard normal z
NORMAL_FOR_90 = 0.646  # exp(-t^2/2) = 0.9 of the mass of |z| lies above t = 0.459, which 64.6 % of values exceed


@dataclasses.dataclass(frozen=True)
class LayerActivity:
    """What one layer did; `None` where the model has no such site."""

    layer: int
    stream_norm: float
    first_norm: float
    attn_norm: float | None
    mlp_norm: float | None
    near_zero: float | None
    for_90: float | None
    largest: float
    median: float
    row: int
    position: int
    channel: int

    @property
    def ratio(self) -> float:
        """Largest over median |activation|."""
        return self.largest / self.median if self.median else float("inf")


@dataclasses.dataclass(frozen=True)
class Activity:
    """All layers, the attention sink by layer and head [L H] (or None), and what even attention would pay."""

    layers: tuple[LayerActivity, ...]
    sink: Tensor | None
    even: float
    shapes: dict[str, tuple[int, ...]]


def activity(model: Model, tokens: Int[Tensor, "N T"]) -> Activity:
    """Measure the activity of every layer on windows of tokens, one layer and all windows at a time.

    Raises InputError when there are fewer than two positions.
    """
    if tokens.shape[1] < 2:
        raise InputError(f"activity() was given windows of {tokens.shape[1]} token: expected at least 2.")
    layers, sinks, shapes = [], [], {}
    for layer in track(range(model.n_layers), label="activity", unit="layer"):
        names = _present(model, layer)
        with torch.no_grad():
            acts = model.run(tokens, read=names).acts
        shapes |= {name: tuple(acts[name].shape) for name in names}
        part = {name.split(".", 2)[2]: acts[name].float() for name in names}
        layers.append(_layer(layer, part))
        if "attn.pattern" in part:
            sinks.append(part["attn.pattern"][:, :, 1:, 0].mean((0, 2)).cpu())
    even = float((1 / torch.arange(2, tokens.shape[1] + 1)).mean())
    same = sinks and len(sinks) == model.n_layers and len({len(s) for s in sinks}) == 1
    return Activity(tuple(layers), torch.stack(sinks) if same else None, even, shapes)


_PARTS = ("resid_post", "attn.contribution", "mlp.contribution", "mlp.hidden", "attn.pattern")


def _present(model: Model, layer: int, parts: Sequence[str] = _PARTS) -> list[str]:
    names = []
    for part in parts:
        try:
            model.sites(f"layers.{layer}.{part}")
        except SiteNotFound:
            continue
        names.append(f"layers.{layer}.{part}")
    if f"layers.{layer}.resid_post" not in names:
        raise InputError(
            f"{type(model.module).__name__} has no site layers.{layer}.resid_post: activity() needs a transformer that "
            "a family maps. Look at model.sites()."
        )
    return names


def _layer(layer: int, part: dict[str, Tensor]) -> LayerActivity:
    stream = part["resid_post"]
    norms = stream.norm(dim=-1)
    size = stream.abs()
    _, t, d = size.shape
    at = int(size.argmax())
    near_zero = for_90 = None
    if "mlp.hidden" in part:
        near_zero, for_90 = sparsity(part["mlp.hidden"])
    return LayerActivity(
        layer=layer,
        stream_norm=float(norms[:, 1:].mean()),
        first_norm=float(norms[:, 0].mean()),
        attn_norm=_norm(part.get("attn.contribution")),
        mlp_norm=_norm(part.get("mlp.contribution")),
        near_zero=near_zero,
        for_90=for_90,
        largest=float(size.flatten()[at]),
        median=float(size.median()),
        row=at // (t * d),
        position=at // d % t,
        channel=at % d,
    )


def _norm(x: Tensor | None) -> float | None:
    return None if x is None else float(x[:, 1:].norm(dim=-1).mean())


def sparsity(hidden: Float[Tensor, "... F"]) -> tuple[float, float]:
    """Share of values near zero, and share of neurons that carry 90 % of the summed |h| of a token (mean).

    >>> sparsity(torch.tensor([[10.0, 0.0, 0.0, 0.0]]))
    (0.75, 0.25)
    """
    size = hidden.detach().float().abs()
    rms = size.square().mean().sqrt()
    near_zero = float((size < 0.1 * rms).float().mean())
    ranked = size.sort(dim=-1, descending=True).values
    share = ranked.cumsum(-1) / ranked.sum(-1, keepdim=True).clamp_min(1e-30)
    needed = (share < 0.9).sum(-1).float() + 1
    return near_zero, float(needed.mean()) / size.shape[-1]

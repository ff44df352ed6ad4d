"""How large the residual stream grows: massive activations of every layer, and variance through depth.

ratio(l) = max |h| / median |h|         over all tokens and channels of the stream after layer l
var(l)   = variance of the entries of h, absmax(l) = max |h|,        l = 0 is the stream before the first layer
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from interneuron.parts.batches import batches

if TYPE_CHECKING:
    from interneuron.model.model import Model


@torch.no_grad()
def streams(
    model: Model, inputs: Any, batch_size: int = 64, sites: Sequence[str] | None = None
) -> list[Float[Tensor, "N D"]]:
    """The stream before the first layer and after every layer, over the real tokens of texts or token ids [N T].

    sites  where it flows, for models that no family maps; by default the named sites of the residual stream
    """
    sites = sites or ["layers.0.resid_pre", *(f"layers.{i}.resid_post" for i in range(model.n_layers))]
    rows: list[list[Tensor]] = [[] for _ in sites]
    for named, real in batches(model, inputs, batch_size):
        acts = model.run(named, read=list(sites)).acts
        for found, site in zip(rows, sites, strict=True):
            found.append(acts[site].float()[real])
    return [torch.cat(found) for found in rows]


def massive_ratio(model: Model, inputs: Any, batch_size: int = 64) -> Float[Tensor, " L"]:
    """Largest over median |activation| of the stream after each layer."""
    return torch.stack([_ratio(h) for h in streams(model, inputs, batch_size)[1:]])


def residual_growth(
    model: Model, inputs: Any, batch_size: int = 64, sites: Sequence[str] | None = None
) -> dict[str, Float[Tensor, "..."]]:
    """`var` [L+1] and `absmax` [L+1] of the stream before the first and after every layer, and `ratio` [L+1]."""
    return growth_of(streams(model, inputs, batch_size, sites))


def growth_of(found: Sequence[Float[Tensor, "N D"]]) -> dict[str, Float[Tensor, "..."]]:
    """The same from streams already read."""
    return {
        "var": torch.stack([h.var() for h in found]),
        "absmax": torch.stack([h.abs().max() for h in found]),
        "ratio": torch.stack([_ratio(h) for h in found]),
    }


def _ratio(h: Tensor) -> Tensor:
    size = h.abs()
    return size.max() / size.median()

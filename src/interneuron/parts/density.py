"""How many units are active, and the activation that keeps the k largest.

nz = share of the entries of a site that are not zero
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from interneuron.core.errors import InputError, did_you_mean
from interneuron.parts.batches import batches
from interneuron.parts.sparse_inputs import keep_largest

if TYPE_CHECKING:
    from interneuron.model.model import Model

ACTIVATIONS = {"relu": torch.relu, "gelu": nn.functional.gelu, "silu": nn.functional.silu, "none": torch.clone}


@torch.no_grad()
def rows_of(model: Model, data: Any, sites: Sequence[str], batch_size: int = 64) -> Iterator[dict[str, Tensor]]:
    """Activations [n F] of every site, batch by batch, without padding.

    data  texts, token ids [N T], or images [N C H W]
    """
    if isinstance(data, Tensor) and data.is_floating_point():
        for start in range(0, len(data), batch_size):
            acts = model.run(data[start : start + batch_size], read=list(sites)).acts
            yield {site: acts[site].flatten(0, -2) for site in sites}
        return
    for inputs, real in batches(model, data, batch_size):
        acts = model.run(inputs, read=list(sites)).acts
        yield {site: acts[site][real] for site in sites}


def activation_density(
    model: Model, data: Any, sites: str | Sequence[str] = "layers.*.mlp.hidden", batch_size: int = 64
) -> dict[str, float]:
    """Share of entries that are not zero, by site."""
    names = [s.name for glob in ([sites] if isinstance(sites, str) else sites) for s in model.sites(glob)]
    active, total = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    for acts in rows_of(model, data, names, batch_size):
        for name, rows in acts.items():
            active[name] += int((rows != 0).sum())
            total[name] += rows.numel()
    return {name: active[name] / max(total[name], 1) for name in names}


class TopK(nn.Module):
    """x [..., F] -> the k largest of act(x) in every row, zero elsewhere; gradients flow through what is kept.

    act  "relu", "gelu", "silu" or "none"; with ReLU fewer than k may be left
    """

    def __init__(self, k: int, act: str = "relu") -> None:
        super().__init__()
        if k < 1:
            raise InputError(f"TopK(k={k}): expected at least 1 unit. Choose 1 to 3 % of the width")
        if act not in ACTIVATIONS:
            near = did_you_mean(act, ACTIVATIONS)
            raise InputError(f"TopK(act={act!r}) is unknown, expected one of {', '.join(ACTIVATIONS)}.{near}")
        self.k, self.act = k, act

    def forward(self, x: Tensor) -> Tensor:
        """Float[... F] -> Float[... F] with at most k entries per row."""
        y = ACTIVATIONS[self.act](x)
        return y if self.k >= y.shape[-1] else y * keep_largest(y.detach(), self.k)

    def extra_repr(self) -> str:
        """Shown by print."""
        return f"k={self.k}, act={self.act!r}"

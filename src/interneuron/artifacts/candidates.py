"""Where else a dictionary might have been meant for, and the activations there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from interneuron.core.errors import SiteNotFound

TWINS = {
    "mlp.out": "mlp.contribution",
    "mlp.contribution": "mlp.out",
    "attn.out": "attn.contribution",
    "attn.contribution": "attn.out",
}
# Points of one layer that have the width of the residual stream and are mistaken for one another.
POINTS = ("resid_pre", "resid_mid", "resid_post", "norm1", "norm2", "attn.out", "mlp.out")


def near(site: str) -> list[str]:
    """The same point one layer before and after, its twin before or after a norm, and the other points of its layer."""
    layer, point = split(site)
    if layer is None:
        return []
    found = [f"layers.{layer + step}.{point}" for step in (-1, 1) if layer + step >= 0]
    found += [f"layers.{layer}.{TWINS[point]}"] if point in TWINS else []
    if point in POINTS or point in TWINS:
        found += [f"layers.{layer}.{other}" for other in POINTS if other != point]
    return found


def untold(sites: Sequence[str], given: Any) -> str:
    """A warning where `given` (rows by site) has one of a block's raw output and its contribution, but not the other.

    Rows of one of them cannot tell which of the two a dictionary was meant for.
    """
    twins = [(name.removesuffix(point), TWINS[point]) for name in sites for point in [split(name)[1]] if point in TWINS]
    there = given if isinstance(given, Mapping) else {}
    lacking = [head + twin for head, twin in twins if head + twin not in there]
    if not lacking:
        return ""
    return f"; raw output and contribution were not told apart: pass rows of {' and '.join(lacking)} too, or model="


def all_layers(site: str, n_layers: int) -> list[str]:
    """The same point of every layer."""
    layer, point = split(site)
    return [] if layer is None else [f"layers.{i}.{point}" for i in range(n_layers)]


def split(site: str) -> tuple[int | None, str]:
    """Layer and point of `layers.N.point`; (None, "") for any other name."""
    head, _, rest = site.partition(".")
    layer, _, point = rest.partition(".")
    return (int(layer), point) if head == "layers" and layer.isdigit() else (None, "")


def existing(model: Any, names: Sequence[str]) -> list[str]:
    """Those of the names that the model has, by their canonical names, each once."""
    found: dict[str, None] = {}
    for name in names:
        try:
            for site in model.sites(name):
                found[site.name] = None
        except SiteNotFound:
            continue
    return list(found)


@torch.no_grad()
def read_rows(model: Any, inputs: Any, names: Sequence[str], skip_first: bool) -> dict[str, Tensor]:
    """Rows of each site, padding left out; `skip_first` leaves out the first token of each text too."""
    if not names:
        return {}
    with model.read(*names) as acts:
        model(inputs)
    mask = model.prepare(inputs)[1].get("attention_mask")
    out = {}
    for name in names:
        x = acts[name]
        keep = torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask.cpu().bool().clone()
        if skip_first and keep.shape[1] > 1:
            keep[torch.arange(len(keep)), keep.int().argmax(1)] = False
        out[name] = x[keep.to(x.device)]
    return out

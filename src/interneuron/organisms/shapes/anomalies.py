"""Defects on objects, with their exact masks: the ground truth of anomaly detection."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from interneuron.core.errors import InputError, did_you_mean

from . import randoms
from .scenes import Scenes

ANOMALIES = ("spot", "scratch", "corner")


@dataclass(frozen=True)
class Defects:
    """Damaged images Float[N 3 H W], the pixels that changed Bool[N H W] and the kind of each defect Int[N]."""

    images: Tensor
    masks: Tensor
    kinds: Tensor


def _anchor(scenes: Scenes, u: Tensor) -> Tensor:
    """A pixel of the visible first object, drawn uniformly: Int[N 2] as (row, column)."""
    visible = scenes.visible[:, 0].flatten(1)
    order = visible.float().cumsum(1)
    target = (u * order[:, -1]).floor() + 1
    flat = (order >= target[:, None]).int().argmax(1)
    return torch.stack([flat // scenes.size, flat % scenes.size], dim=1)


def anomalies(scenes: Scenes, kind: str = "any", seed: int = 0, strength: float = 1.0) -> Defects:
    """Plant one defect on the first object of every scene.

    spot     a small dark disc on the object;  scratch  a thin bright line through it
    corner   a piece of the outline is missing: background shows through a half plane that cuts a third of the radius
    `strength` in (0, 1] blends the defect with the healthy image: the difficulty dial.
    """
    if kind not in (*ANOMALIES, "any"):
        raise InputError(f"no anomaly {kind!r}; expected any, {', '.join(ANOMALIES)}.{did_you_mean(kind, ANOMALIES)}")
    if not 0.0 < strength <= 1.0:
        raise InputError(f"anomalies() needs a strength in (0, 1], got {strength!r}.")
    n, size = len(scenes), scenes.size
    keys = randoms.bits(randoms.key(seed, "anomalies"), scenes.factors["scene_key"])
    u = [randoms.uniform(keys, torch.full_like(keys, i)) for i in range(4)]
    kinds = torch.full((n,), ANOMALIES.index(kind)) if kind != "any" else (u[0] * 3).long().clamp_(max=2)
    anchor = _anchor(scenes, u[1]).float()
    rows = torch.arange(size, dtype=torch.float32)[None, :, None] - anchor[:, 0, None, None]
    columns = torch.arange(size, dtype=torch.float32)[None, None, :] - anchor[:, 1, None, None]
    shown = scenes.visible[:, 0]
    scale = size / 32
    spot = (torch.hypot(rows, columns) <= (1.3 + u[2][:, None, None]) * scale) & shown
    angle = (u[3] * math.pi)[:, None, None]
    line = (rows * torch.cos(angle) - columns * torch.sin(angle)).abs()
    along = (rows * torch.sin(angle) + columns * torch.cos(angle)).abs()
    scratch = (line <= 0.6 * scale) & (along <= 6 * scale) & shown
    corner = _corner(scenes, u[3]) & shown
    choice = kinds[:, None, None]
    masks = torch.where(choice == 0, spot, torch.where(choice == 1, scratch, corner))
    images = scenes.images
    dark, bright = images * 0.15, 0.25 * images + 0.75
    paint = torch.where(choice[:, None] == 0, dark, torch.where(choice[:, None] == 1, bright, scenes.background))
    return Defects(torch.where(masks[:, None], torch.lerp(images, paint, strength), images), masks, kinds)


def _corner(scenes: Scenes, u: Tensor) -> Tensor:
    """The part of the first object beyond a random line that leaves about four fifths of its pixels."""
    f, size = scenes.factors, scenes.size
    axis = (torch.arange(size, dtype=torch.float32) + 0.5) / size
    angle = (u * 2 * math.pi)[:, None, None]
    dx, dy = axis[None, None, :] - f["x"][:, 0, None, None], axis[None, :, None] - f["y"][:, 0, None, None]
    reach = dx * torch.cos(angle) + dy * torch.sin(angle)
    shown = scenes.visible[:, 0]
    ranked = torch.where(shown, reach, -torch.inf).flatten(1).sort(dim=1, descending=True).values
    count = (shown.flatten(1).sum(1) * 0.2).ceil().long().clamp_min(1)
    cut = ranked.gather(1, (count - 1)[:, None])[:, :, None]
    return (reach >= cut) & shown

"""Thin structures to segment, and the ordered grid of 64 classes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from . import randoms
from .scenes import Scenes, sample

GRID_SIDE = 8


@dataclass(frozen=True)
class Spirals:
    """images Float[N 3 H W] and masks Bool[N H W] of one thin spiral each; `turns` Float[N]."""

    images: Tensor
    masks: Tensor
    turns: Tensor


def spirals(n: int, seed: int, *, size: int = 32, width: float = 0.02, noise: float = 0.15) -> Spirals:
    """Archimedean spirals r = a theta, `width` image sides thick, dim in noise: segmentation that needs context."""
    index = torch.arange(n)
    u = [randoms.uniform(randoms.key(seed, "spirals", i), index)[:, None, None] for i in range(6)]
    turns = 1.5 + 1.0 * u[0]
    pitch = 0.4 / turns
    axis = (torch.arange(2 * size, dtype=torch.float32) + 0.5) / (2 * size)
    dx, dy = axis[None, None, :] - 0.45 - 0.1 * u[1], axis[None, :, None] - 0.45 - 0.1 * u[2]
    radius = torch.hypot(dx, dy)
    angle = torch.remainder((torch.atan2(dy, dx) * (2 * (u[3] < 0.5).float() - 1)) / (2 * math.pi) + u[4], 1.0)
    # the nearest arm: radius = pitch (angle + k) for a whole k from 0 to the last turn
    k = (radius / pitch - angle).round().clamp_min(0.0)
    k = torch.minimum(k, (turns - angle).floor().clamp_min(0.0))
    distance = ((radius - pitch * (angle + k)).abs() - width / 2) * (2 * size)
    coverage = torch.nn.functional.avg_pool2d((0.5 - distance).clamp(0, 1)[:, None], 2)
    keys = randoms.bits(randoms.key(seed, "spirals noise"), index)
    speckle = (randoms.field(keys, 3 * size, size).reshape(n, 3, size, size) - 0.5) * (2 * noise)
    images = (0.35 + 0.3 * u[5][:, None] * coverage + 0.15 * coverage + speckle).clamp(0, 1)
    return Spirals(images, coverage[:, 0] > 0.5, turns[:, 0, 0])


def grid64(n: int, seed: int, *, size: int = 32, split: str = "train") -> tuple[Scenes, Tensor, Tensor]:
    """Circles whose class is a cell of an ordered 8 x 8 grid of hue and size.

    Returns the scenes, cells Int[N 2] (hue step, size step) and labels Int[N] = 8 hue + size. Hue runs from 0 to 0.8 of
    a turn, so that its order has two ends; the distance between two classes is the distance of their cells.
    """
    index = torch.arange(n)
    cells = torch.stack(
        [randoms.integers(randoms.key(seed, split, "grid", name), index, GRID_SIDE) for name in ("hue", "size")], 1
    )
    hue = (cells[:, 0] + 0.5) / GRID_SIDE * 0.8
    radius = 0.12 + (cells[:, 1] + 0.5) / GRID_SIDE * 0.2
    factors = {"shape": "circle", "texture": "solid", "hue": hue, "radius": radius}
    scenes = sample(n, seed, size=size, split=split, factors=factors, inside=True)
    return scenes, cells, cells[:, 0] * GRID_SIDE + cells[:, 1]

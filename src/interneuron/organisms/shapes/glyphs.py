"""Forty closed outlines in any pose, and arrows that point at a disc or past it.

Equations. A glyph's outline is r(theta) = 1 + sum_k a_k cos(k theta + phi_k); glyphs 0..19 use k = 2..4 (smooth), the
others k = 5..8 (spiky). An arrow aims right when its angle error is below asin(r / 1.2 d), wrong above asin(1.2 r / d),
for a disc of radius r at distance d; errors between the two are not drawn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from interneuron.core.errors import InputError

from . import randoms

N_GLYPHS = 40
CATEGORIES = ("smooth", "spiky")


@dataclass(frozen=True)
class Glyphs:
    """images Float[N 1 H W], identity Int[N] 0..39, category Int[N], pose Float[N 4]: x, y, rotation, scale."""

    images: Tensor
    identity: Tensor
    category: Tensor
    pose: Tensor


def _outline(identity: Tensor, theta: Tensor) -> Tensor:
    """Radius of each glyph's outline at angles theta Float[N H W]."""
    radius = torch.ones_like(theta)
    spiky = identity >= N_GLYPHS // 2
    for j in range(3):
        address = identity * 8 + j
        amplitude = 0.08 + 0.17 * randoms.uniform(randoms.key(0, "glyph amplitude"), address)
        phase = 2 * math.pi * randoms.uniform(randoms.key(0, "glyph phase"), address)
        order = torch.where(spiky, 5 + j + (identity % 2), 2 + j)
        wave = torch.cos(order[:, None, None] * theta + phase[:, None, None])
        radius = radius + amplitude[:, None, None] * wave
    return radius.clamp_min(0.2)


def glyphs(n: int, seed: int, *, size: int = 32, identity: Tensor | None = None, pose: Tensor | None = None) -> Glyphs:
    """White outlines on black; identity and pose are independent and either can be given.

    >>> glyphs(3, seed=0).images.shape
    torch.Size([3, 1, 32, 32])
    """
    index = torch.arange(n)
    u = [randoms.uniform(randoms.key(seed, "glyphs", i), index) for i in range(5)]
    who = (u[0] * N_GLYPHS).long().clamp_(max=N_GLYPHS - 1) if identity is None else identity.long()
    if pose is None:
        pose = torch.stack([0.35 + 0.3 * u[1], 0.35 + 0.3 * u[2], 2 * math.pi * u[3], 0.14 + 0.1 * u[4]], 1)
    if (
        who.shape != (n,)
        or pose.shape != (n, 4)
        or int(who.min() if n else 0) < 0
        or int(who.max() if n else 0) >= N_GLYPHS
    ):
        raise InputError(
            f"glyphs() needs identity Int[{n}] in 0..{N_GLYPHS - 1} and pose [{n}, 4], got {tuple(who.shape)}, "
            f"{tuple(pose.shape)}."
        )
    axis = (torch.arange(2 * size, dtype=torch.float32) + 0.5) / (2 * size)
    x, y, rotation, scale = (part[:, None, None] for part in pose.float().unbind(1))
    dx, dy = (axis[None, None, :] - x) / scale, (axis[None, :, None] - y) / scale
    theta = torch.atan2(dy, dx) - rotation
    distance = (torch.hypot(dx, dy) - _outline(who, theta)) * scale * (2 * size)
    images = torch.nn.functional.avg_pool2d((0.5 - distance).clamp(0, 1)[:, None], 2)
    return Glyphs(images, who, (who >= N_GLYPHS // 2).long(), pose)


@dataclass(frozen=True)
class Arrows:
    """images Float[N 1 H W]; labels Int[N], 1 = the arrow points at the disc; `truth` holds the geometry."""

    images: Tensor
    labels: Tensor
    truth: dict[str, Tensor]


def arrows(n: int, seed: int, *, size: int = 48) -> Arrows:
    """Arrow and disc at random places, half of the arrows aimed at the disc.

    The same seed gives the same geometry at any size: going from 48 to 96 pixels changes the resolution alone.
    """
    index = torch.arange(n)
    u = [randoms.uniform(randoms.key(seed, "arrows", i), index) for i in range(7)]
    # the arrow in one half, the disc in the opposite one, in a random orientation
    spin = 2 * math.pi * u[0]
    tail = torch.stack([0.5 + 0.27 * torch.cos(spin), 0.5 + 0.27 * torch.sin(spin)], 1)
    turn = spin + math.pi + (u[1] - 0.5)
    away = 0.15 + 0.17 * u[2]
    disc = torch.stack([0.5 + away * torch.cos(turn), 0.5 + away * torch.sin(turn)], 1)
    radius = 0.06 + 0.04 * u[3]
    gap = disc - tail
    d = gap.norm(dim=1)
    hit = u[4] < 0.5
    inner = torch.asin((radius / (1.2 * d)).clamp(max=1.0))
    outer = torch.asin((1.2 * radius / d).clamp(max=1.0))
    error = torch.where(hit, u[5] * inner, outer + u[5] * (math.pi - outer))
    error = torch.where(u[6] < 0.5, error, -error)
    angle = torch.atan2(gap[:, 1], gap[:, 0]) + error
    axis = (torch.arange(2 * size, dtype=torch.float32) + 0.5) / (2 * size)
    x, y = axis[None, None, :], axis[None, :, None]
    dx, dy = x - tail[:, 0, None, None], y - tail[:, 1, None, None]
    cos, sin = torch.cos(angle)[:, None, None], torch.sin(angle)[:, None, None]
    along, across = dx * cos + dy * sin, (dy * cos - dx * sin).abs()
    shaft = torch.maximum(across - 0.015, (along + 0.02).abs() - 0.08)
    # a triangle: the last term ends it at its tip, where the line of sight would otherwise stay half lit
    head = torch.maximum(torch.maximum(across - (0.12 - along) * 0.8, 0.05 - along), along - 0.12)
    spot = torch.hypot(x - disc[:, 0, None, None], y - disc[:, 1, None, None]) - radius[:, None, None]
    distance = torch.minimum(torch.minimum(shaft, head), spot) * (2 * size)
    images = torch.nn.functional.avg_pool2d((0.5 - distance).clamp(0, 1)[:, None], 2)
    return Arrows(images, hit.long(), {"tail": tail, "disc": disc, "radius": radius, "angle": angle, "error": error})

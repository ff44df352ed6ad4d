"""Textures on objects and patterns behind them.

Shapes. Object textures: local coordinates u, v Float[n S S] in units of the image side, phase Float[n 1 1] -> shade in
[0, 1] (1 = full colour, 0 = darkest). Backgrounds: -> grey level Float[n H W] around 0.5.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import randoms

SHADE = 0.5
"""How much darker the dark parts of a texture are: value is multiplied by 1 - SHADE * (1 - shade)."""


def pitch(size: int) -> float:
    """Period of stripes in units of the image side: 0.12, but never under four pixels."""
    return max(0.12, 4.0 / size)


def object_shade(texture: str, u: Tensor, v: Tensor, phase: Tensor, size: int) -> Tensor:
    """The shade pattern of one texture over local coordinates (`noise` is added at pixel level by the renderer)."""
    period = pitch(size)
    if texture == "striped":
        return _soft(torch.sin((u + phase * period) * (2 * math.pi / period)), period, size)
    if texture == "checker":
        wide = period * 1.5
        a = torch.sin((u + phase * wide) * (2 * math.pi / wide))
        b = torch.sin((v + phase * wide) * (2 * math.pi / wide))
        return _soft(a * b, wide, size)
    if texture == "dotted":
        wide = period * 1.15
        a = torch.remainder(u / wide + phase, 1.0).sub_(0.5)
        b = torch.remainder(v / wide + phase, 1.0).sub_(0.5)
        distance = (torch.hypot(a, b) - 0.3) * (wide * size)
        return distance.add_(0.5).clamp_(0.0, 1.0)
    return torch.ones_like(u)


def _soft(wave: Tensor, period: float, size: int) -> Tensor:
    """A square wave whose edge is one pixel wide."""
    return wave.mul_(period * size / (2 * math.pi)).add_(0.5).clamp_(0.0, 1.0)


def background(kind: str, level: Tensor, keys: Tensor, size: int) -> Tensor:
    """Grey backgrounds of one kind. level Float[n], keys Int[n] -> Float[n size size] in [0, 1]."""
    n = level.shape[0]
    base = level[:, None, None]
    axis = (torch.arange(size, dtype=torch.float32) + 0.5) / size
    if kind == "flat":
        return base.expand(n, size, size).clone()
    if kind == "noise":
        return (base + (randoms.field(keys, size, size) - 0.5) * 0.5).clamp_(0.0, 1.0)
    if kind == "blobs":
        coarse = randoms.field(keys, 5, 5)[:, None]
        smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False)
        return (base + (smooth[:, 0] - 0.5) * 0.8).clamp_(0.0, 1.0)
    angle = randoms.uniform(keys, torch.zeros_like(keys)) * (2 * math.pi)
    across = (
        axis[None, None, :] * torch.cos(angle)[:, None, None] + axis[None, :, None] * torch.sin(angle)[:, None, None]
    )
    if kind == "gradient":
        middle = 0.5 * (torch.cos(angle) + torch.sin(angle))[:, None, None]
        return (base + (across - middle) * 0.5).clamp_(0.0, 1.0)
    start = randoms.uniform(keys, torch.ones_like(keys))[:, None, None]
    wave = torch.sin((across / 0.25 + start) * (2 * math.pi))
    return (base + wave * 0.18).clamp_(0.0, 1.0)

"""Six expressions of a drawn face: circle, eyes, brows and mouth; the expression lies in mouth and brows alone.

Equations. mouth: y = curve x^2 over its width, opened by `gap`; brow: y = tilt |x|, raised by `lift`. Identity (skin,
face width, eye distance) is independent of the expression.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import randoms
from .render import hsv_to_rgb

EXPRESSIONS = ("neutral", "happy", "sad", "angry", "surprised", "afraid")
# curve of the mouth (positive = corners up), gap, tilt of the brows (positive = inner ends down), lift
_SHAPES = (
    (0.0, 0.0, 0.0, 0.0),
    (1.0, 0.0, 0.0, 0.3),
    (-1.0, 0.0, -0.6, 0.2),
    (-0.5, 0.0, 1.0, -0.2),
    (0.0, 1.0, 0.0, 1.0),
    (-0.4, 0.6, -1.0, 0.7),
)


@dataclass(frozen=True)
class Faces:
    """images Float[N 3 H W], expression Int[N], mouth and brow masks Bool[N H W], centre Float[N 2]."""

    images: Tensor
    expression: Tensor
    mouth: Tensor
    brows: Tensor
    centre: Tensor


def faces(n: int, seed: int, *, size: int = 48) -> Faces:
    """Faces on grey, expressions equally likely.

    >>> faces(2, seed=0).images.shape
    torch.Size([2, 3, 48, 48])
    """
    index = torch.arange(n)

    def roll(name: str) -> Tensor:
        return randoms.uniform(randoms.key(seed, "faces", name), index)[:, None, None]

    expression = randoms.integers(randoms.key(seed, "faces", "expression"), index, len(EXPRESSIONS))
    curve, gap, tilt, lift = (c[:, None, None] for c in torch.tensor(_SHAPES)[expression].unbind(1))
    strength = 0.75 + 0.25 * roll("strength")
    curve, gap, tilt, lift = (c * strength for c in (curve, gap, tilt, lift))
    scale = 0.34 + 0.08 * roll("scale")
    cx, cy = 0.45 + 0.1 * roll("x"), 0.45 + 0.1 * roll("y")
    fine = 2 * size
    axis = (torch.arange(fine, dtype=torch.float32) + 0.5) / fine
    x, y = (axis[None, None, :] - cx) / scale, (axis[None, :, None] - cy) / scale
    side = x.abs()
    pixel = scale * fine

    def cover(distance: Tensor) -> Tensor:
        sharp = (0.5 - distance * pixel).clamp(0, 1)[:, None]
        return torch.nn.functional.avg_pool2d(sharp, 2)[:, 0]

    head = cover(torch.hypot(x / (0.9 + 0.15 * roll("width")), y) - 1)
    apart = 0.35 + 0.1 * roll("eyes")
    eyes = cover(torch.hypot(side - apart, y + 0.2) - 0.11)
    brow_line = -0.5 - 0.12 * lift + 0.35 * tilt * (apart - side)
    brows = cover(torch.maximum((y - brow_line).abs() - 0.05, (side - apart).abs() - 0.2))
    mouth_line = 0.45 + 0.22 * curve * (0.25 - (x / 0.45) ** 2 * 0.5)
    mouth = cover(torch.maximum((y - mouth_line).abs() - 0.05 - 0.16 * gap, side - 0.38 + 0.12 * gap))
    skin = hsv_to_rgb(
        0.04 + 0.06 * roll("hue")[:, 0, 0], 0.3 + 0.4 * roll("tone")[:, 0, 0], 0.6 + 0.4 * roll("light")[:, 0, 0]
    )
    grey = (0.2 + 0.6 * roll("grey"))[:, None].expand(n, 3, size, size)
    images = torch.lerp(grey, skin[:, :, None, None].expand_as(grey), head[:, None])
    images = images * (1 - torch.maximum(torch.maximum(eyes, brows), mouth)[:, None])
    centre = torch.cat([cx, cy], 1)[:, :, 0]
    return Faces(images, expression, mouth > 0.5, brows > 0.5, centre)

"""The judge that does not learn: attributes read from pixels by thresholds and moments.

Idea. Objects are the saturated pixels of a grey world. Chroma c = max(rgb) - min(rgb) is linear in coverage, so a
border pixel covers the share that its chroma is of the chroma just inside; interior pixels cover one.

Equations. w = 1 inside, clip(c / mean c of interior neighbours, 0, 1) at the border; radius = sqrt(sum w / pi) / H;
centre = sum w (x, y) / sum w; hue = angle of sum c exp(2 pi i h).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from interneuron.core.errors import InputError

from .vocabulary import HUES

_SATURATION = 0.3  # pixels above it belong to an object


@dataclass(frozen=True)
class Measurement:
    """Per image, over all coloured pixels together. Float[N] unless said otherwise; nan where nothing is coloured.

    hue (turns), radius, x, y (image sides), brightness (mean luminance), texture (standard deviation of value inside
    the object), count (Int[N] connected coloured regions), mask (Bool[N H W]), clipped (Bool[N]: touches the border)
    """

    hue: Tensor
    radius: Tensor
    x: Tensor
    y: Tensor
    brightness: Tensor
    texture: Tensor
    count: Tensor
    mask: Tensor
    clipped: Tensor

    @property
    def color(self) -> Tensor:
        """Int[N]: the named colour whose hue is nearest."""
        distance = (self.hue[:, None] - torch.tensor(HUES)).abs()
        return torch.minimum(distance, 1.0 - distance).nan_to_num(9.0).argmin(dim=1)


def _hue(images: Tensor, high: Tensor, chroma: Tensor) -> Tensor:
    """Hue in turns of every pixel, Float[N H W]."""
    r, g, b = images.unbind(1)
    c = chroma.clamp_min(1e-6)
    sixth = torch.where(
        high == r, torch.remainder((g - b) / c, 6.0), torch.where(high == g, (b - r) / c + 2.0, (r - g) / c + 4.0)
    )
    return sixth / 6.0  # fmt: skip


def _coverage(mask: Tensor, chroma: Tensor) -> Tensor:
    """The share of every pixel that an object covers, Float[N H W]."""
    solid = mask.float()[:, None]
    near = F.max_pool2d(solid, 3, stride=1, padding=1)[:, 0]
    core = 1.0 - F.max_pool2d(F.pad(1.0 - solid, (1, 1, 1, 1)), 3, stride=1)[:, 0]
    colour = chroma * core
    everywhere = colour.flatten(1).sum(1) / core.flatten(1).sum(1).clamp_min(1.0)
    # shapes without a core (a thin ring) fall back on their most colourful pixel
    everywhere = torch.where(everywhere > 0, everywhere, chroma.flatten(1).amax(1))
    around = F.avg_pool2d(torch.stack([colour, core], 1), 5, stride=1, padding=2)
    inner = torch.where(around[:, 1] > 0, around[:, 0] / around[:, 1].clamp_min(1e-6), everywhere[:, None, None])
    return torch.where(core > 0, 1.0, (chroma / inner.clamp_min(1e-3)).clamp(0.0, 1.0)) * near


def count_regions(mask: Tensor, smallest: int = 4) -> Tensor:
    """Number of 8-connected regions of at least `smallest` pixels. Bool[N H W] -> Int[N]."""
    from scipy import ndimage

    counts = []
    for picture in mask.numpy():
        labelled, n = ndimage.label(picture, structure=np.ones((3, 3), dtype=int))
        sizes = np.bincount(labelled.ravel(), minlength=n + 1)[1:]
        counts.append(int((sizes >= smallest).sum()))
    return torch.tensor(counts, dtype=torch.int64)


def measure(images: Tensor) -> Measurement:
    """Read hue, size, place, brightness, texture and count from images Float[N 3 H W] in [0, 1]; nothing is learned."""
    if images.dim() != 4 or images.shape[1] != 3:
        raise InputError(f"measure() takes images [N, 3, H, W] in [0, 1], got shape {tuple(images.shape)}.")
    images = images.detach().float().cpu().clamp(0.0, 1.0)
    _, _, height, width = images.shape
    high, low = images.amax(1), images.amin(1)
    chroma = high - low
    saturation = chroma / high.clamp_min(0.02)
    mask = saturation > _SATURATION
    pixels = mask.flatten(1).sum(1)
    weight = _coverage(mask, chroma)
    total = weight.flatten(1).sum(1)
    xs = (torch.arange(width) + 0.5) / width
    ys = (torch.arange(height) + 0.5) / height
    hue = _hue(images, high, chroma)
    strong = chroma * mask
    angle = hue * (2 * math.pi)
    turn = torch.atan2((strong * angle.sin()).flatten(1).sum(1), (strong * angle.cos()).flatten(1).sum(1)) / (
        2 * math.pi
    )
    nothing = pixels == 0

    def blank(value: Tensor) -> Tensor:
        return torch.where(nothing, torch.full_like(value, math.nan), value)

    inside = weight > 0.95
    n_inside = inside.flatten(1).sum(1).clamp_min(1)
    mean_value = (high * inside).flatten(1).sum(1) / n_inside
    spread = (((high - mean_value[:, None, None]) ** 2) * inside).flatten(1).sum(1) / n_inside
    luminance = (images * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1)
    border = mask[:, 0].any(1) | mask[:, -1].any(1) | mask[:, :, 0].any(1) | mask[:, :, -1].any(1)
    return Measurement(
        hue=blank(torch.remainder(turn, 1.0)),
        radius=blank((total / (height * width) / math.pi).sqrt()),
        x=blank((weight.sum(1) * xs).sum(1) / total.clamp_min(1e-6)),
        y=blank((weight.sum(2) * ys).sum(1) / total.clamp_min(1e-6)),
        brightness=luminance.flatten(1).mean(1),
        texture=blank(spread.sqrt()),
        count=count_regions(mask),
        mask=mask,
        clipped=border,
    )

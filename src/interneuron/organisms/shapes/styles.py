"""Other ways to draw the same scenes: three modalities, and a small part that alone tells the class."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from interneuron.core.errors import InputError, did_you_mean

from . import randoms
from .render import hsv_to_rgb
from .scenes import Scenes

MODALITIES = ("filled", "line", "noise")


def modality(scenes: Scenes, kind: str) -> Tensor:
    """The scenes as filled shapes, outlines, or patches of coloured noise: Float[N 3 H W], same masks and labels."""
    if kind not in MODALITIES:
        raise InputError(
            f"no modality {kind!r}; expected one of {', '.join(MODALITIES)}.{did_you_mean(kind, MODALITIES)}"
        )
    if kind == "filled":
        return scenes.images
    out = scenes.background.clone()
    f = scenes.factors
    for slot in range(f["shape"].shape[1]):
        mask = scenes.masks[:, slot]
        rgb = hsv_to_rgb(f["hue"][:, slot], f["saturation"][:, slot], f["brightness"])[:, :, None, None]
        if kind == "line":
            core = 1 - F.max_pool2d(1 - mask.float()[:, None], 3, stride=1, padding=1)[:, 0]
            out = torch.where((mask & (core == 0))[:, None], rgb, out)
        else:
            speckle = randoms.field(f["key"][:, slot] ^ 5, scenes.size, scenes.size)[:, None]
            out = torch.where(mask[:, None], rgb * speckle, out)
    return out


def part(scenes: Scenes, n_classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Put a small mark on every first object whose place around the centre is the class; nothing else tells the class.

    Returns images, labels Int[N] and the mark's mask Bool[N H W]. The mark is a white disc half-way to the border, at
    angle 2 pi class / n_classes.
    """
    if n_classes < 2:
        raise InputError(f"part() needs at least 2 classes, got {n_classes}.")
    f, size = scenes.factors, scenes.size
    labels = randoms.integers(randoms.key(seed, "part"), f["scene_key"], n_classes)
    angle = labels * (2 * math.pi / n_classes)
    radius = f["radius"][:, 0]
    x = f["x"][:, 0] + 0.5 * radius * torch.cos(angle)
    y = f["y"][:, 0] + 0.5 * radius * torch.sin(angle)
    axis = (torch.arange(size, dtype=torch.float32) + 0.5) / size
    distance = torch.hypot(axis[None, None, :] - x[:, None, None], axis[None, :, None] - y[:, None, None])
    mark = distance < (0.28 * radius).clamp_min(1.0 / size)[:, None, None]
    return torch.where(mark[:, None], torch.ones(()), scenes.images), labels, mark

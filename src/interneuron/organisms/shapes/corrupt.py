"""Six corruptions in five severities, and occluders of six kinds with a set amount of cover."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from interneuron.core.errors import InputError, did_you_mean

from . import randoms

CORRUPTIONS = ("noise", "blur", "contrast", "fog", "pixelate", "occlusion")
OCCLUDERS = ("bars", "grid", "blobs", "squares", "disc", "noise")

_SEVERITY = {
    "noise": (0.05, 0.09, 0.14, 0.20, 0.28),  # standard deviation
    "blur": (0.5, 0.8, 1.1, 1.5, 2.0),  # standard deviation in pixels at 32x32
    "contrast": (0.6, 0.45, 0.3, 0.2, 0.12),  # what is left of it
    "fog": (0.25, 0.4, 0.55, 0.68, 0.8),  # share of white
    "pixelate": (0.75, 0.6, 0.5, 0.375, 0.25),  # resolution left
    "occlusion": (0.10, 0.18, 0.26, 0.36, 0.48),  # share covered
}


def _check(images: Tensor) -> None:
    if images.dim() != 4 or images.shape[1] != 3:
        raise InputError(f"expected images [N, 3, H, W] in [0, 1], got shape {tuple(images.shape)}.")


def _keys(n: int, seed: int, *names: str) -> Tensor:
    return randoms.bits(randoms.key(seed, *names), torch.arange(n))


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Separable Gaussian blur with reflected borders; sigma in pixels."""
    reach = max(1, math.ceil(3 * sigma))
    offsets = torch.arange(-reach, reach + 1, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    channels = images.shape[1]
    rows = kernel.reshape(1, 1, 1, -1).expand(channels, 1, 1, -1)
    x = F.conv2d(F.pad(images, (reach, reach, 0, 0), mode="reflect"), rows, groups=channels)
    return F.conv2d(F.pad(x, (0, 0, reach, reach), mode="reflect"), rows.transpose(2, 3), groups=channels)


def corrupt(images: Tensor, kind: str, severity: int, seed: int = 0) -> Tensor:
    """Damage images [N 3 H W] in one of six ways, severity 1..5; deterministic in `seed`.

    >>> from .scenes import sample
    ...
    ... corrupt(sample(2, 0).images, "blur", 3).shape
    torch.Size([2, 3, 32, 32])
    """
    _check(images)
    if kind not in CORRUPTIONS:
        raise InputError(
            f"no corruption {kind!r}; expected one of {', '.join(CORRUPTIONS)}.{did_you_mean(kind, CORRUPTIONS)}"
        )
    if severity not in (1, 2, 3, 4, 5):
        raise InputError(f"corrupt() has severities 1..5, got {severity!r}.")
    amount = _SEVERITY[kind][severity - 1]
    n, _, height, width = images.shape
    if kind == "noise":
        # the sum of three uniforms is close to normal: variance 3/12 is scaled to one
        fields = torch.stack([randoms.field(_keys(n, seed, "noise", str(i)), height * 3, width) for i in range(3)]).sum(
            0
        )
        return (images + ((fields - 1.5) * 2.0 * amount).reshape(images.shape)).clamp(0.0, 1.0)
    if kind == "blur":
        return gaussian_blur(images, amount * height / 32)
    if kind == "contrast":
        mean = images.mean(dim=(1, 2, 3), keepdim=True)
        return mean + (images - mean) * amount
    if kind == "fog":
        coarse = randoms.field(_keys(n, seed, "fog"), 4, 4)[:, None]
        cloud = F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
        haze = (amount * (0.7 + 0.6 * cloud)).clamp(0.0, 1.0)
        return images * (1 - haze) + 0.9 * haze
    if kind == "pixelate":
        small = F.interpolate(images, size=(max(2, round(height * amount)), max(2, round(width * amount))), mode="area")
        return F.interpolate(small, size=(height, width), mode="nearest")
    covered, _ = occlude(images, "squares", amount, seed)
    return covered


def _occluder_score(kind: str, n: int, height: int, width: int, seed: int) -> Tensor:
    """A score a pixel; covering the highest-scoring share gives a mask of the wanted kind and exact area."""
    keys = _keys(n, seed, "occluder", kind)
    u = [randoms.uniform(keys, torch.full_like(keys, i))[:, None, None] for i in range(4)]
    ys = ((torch.arange(height) + 0.5) / height)[None, :, None]
    xs = ((torch.arange(width) + 0.5) / width)[None, None, :]
    if kind == "bars":
        angle = u[0] * math.pi
        return torch.sin((xs * torch.cos(angle) + ys * torch.sin(angle) + u[1]) * (2 * math.pi / 0.3))
    if kind == "grid":
        a = torch.sin((xs + u[0]) * (2 * math.pi / 0.3))
        b = torch.sin((ys + u[1]) * (2 * math.pi / 0.3))
        return torch.maximum(a, b)
    if kind == "blobs":
        return F.interpolate(randoms.field(keys, 6, 6)[:, None], size=(height, width), mode="bicubic")[:, 0]
    if kind == "squares":
        return -torch.maximum((xs - 0.2 - 0.6 * u[0]).abs(), (ys - 0.2 - 0.6 * u[1]).abs())
    if kind == "disc":
        return -torch.hypot(xs - 0.2 - 0.6 * u[0], ys - 0.2 - 0.6 * u[1])
    return randoms.field(keys, height, width)


def occlude(images: Tensor, kind: str, cover: float, seed: int = 0, value: float = 0.5) -> tuple[Tensor, Tensor]:
    """Cover the share `cover` of every image by a grey occluder. Returns images and Bool[N H W], true where covered."""
    _check(images)
    if kind not in OCCLUDERS:
        raise InputError(
            f"no occluder {kind!r}; expected one of {', '.join(OCCLUDERS)}.{did_you_mean(kind, OCCLUDERS)}"
        )
    if not 0.0 <= cover < 1.0:
        raise InputError(f"occlude() covers a share in [0, 1), got {cover!r}.")
    n, _, height, width = images.shape
    score = _occluder_score(kind, n, height, width, seed).expand(n, height, width).flatten(1)
    count = round(cover * height * width)
    mask = torch.zeros(n, height * width, dtype=torch.bool)
    if count and n:
        mask.scatter_(1, score.topk(count, dim=1).indices, True)
    mask = mask.reshape(n, height, width)
    return torch.where(mask[:, None], torch.full_like(images, value), images), mask

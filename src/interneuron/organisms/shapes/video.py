"""Moving shapes: clips whose positions, velocities and occlusion are known at every frame.

Shapes. frames Float[N T 3 H W]; positions, velocities Float[N T 2] (x, y in image sides and image sides a frame);
hidden Float[N T], the share of the object behind an occluder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from interneuron.core.errors import InputError, did_you_mean

from . import randoms
from .render import render
from .scenes import Scenes, sample

KINDS = ("bounce", "motion-class", "occluder", "cue")
MOTIONS = ("across", "down", "circle", "zigzag")
_SHOWN = 2  # frames in which the colour cue is seen
_BAR = 0.5  # grey level of an occluder


@dataclass(frozen=True)
class Video:
    """Clips and their truth; `labels` Int[N]: the motion (motion-class), the cue's colour (cue), else the shape."""

    frames: Tensor
    positions: Tensor
    velocities: Tensor
    hidden: Tensor
    labels: Tensor
    masks: Tensor
    scenes: Scenes


def _reflect(position: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Fold a straight path into [low, high] as a ball between walls would."""
    span = high - low
    phase = torch.remainder(position - low, 2 * span)
    return low + torch.minimum(phase, 2 * span - phase)


def _paths(kind: str, scenes: Scenes, u: list[Tensor], frames: int) -> tuple[Tensor, Tensor]:
    """Centres Float[N T 2] and the motion label Int[N]."""
    time = torch.arange(frames)[None, :]
    reach = (scenes.factors["radius"][:, 0] * 1.1)[:, None]
    if kind != "motion-class":
        angle, speed = u[0][:, None] * 2 * math.pi, 0.03 + 0.05 * u[1][:, None]
        start = [0.3 + 0.4 * v[:, None] for v in u[2:4]]
        steps = (torch.cos(angle) * speed, torch.sin(angle) * speed)
        if kind in ("occluder", "cue"):  # crosses the bar in the middle
            steps = (0.05 + 0.02 * u[1][:, None], torch.zeros_like(angle))
            start[0] = torch.full_like(angle, 0.1)
        centre = [_reflect(s + v * time, reach, 1 - reach) for s, v in zip(start, steps, strict=True)]
        return torch.stack(centre, -1), scenes.labels("shape")
    motion = (u[0] * len(MOTIONS)).long().clamp_(max=len(MOTIONS) - 1)
    phase = u[1][:, None] + time / max(frames, 2)
    swing = 0.5 + 0.28 * torch.sin(2 * math.pi * phase)
    turn = 0.5 + 0.28 * torch.cos(2 * math.pi * phase)
    fast = 0.5 + 0.15 * torch.sin(6 * math.pi * phase)
    middle = torch.full_like(swing, 0.5)
    x = torch.stack([swing, middle, swing, swing], 1).gather(1, motion[:, None, None].expand(-1, 1, frames))[:, 0]
    y = torch.stack([middle, swing, turn, fast], 1).gather(1, motion[:, None, None].expand(-1, 1, frames))[:, 0]
    return torch.stack([x, y], -1), motion


def video(n: int, frames: int, seed: int, *, kind: str = "bounce", size: int = 32, split: str = "train") -> Video:
    """Clips of one moving shape.

    bounce        straight paths between walls
    motion-class  across, down, circle or zigzag, independent of the shape: classes that no single frame shows
    occluder      a grey bar in the middle hides the object for some frames
    cue           as occluder, but the colour is seen in the first two frames only, then the object turns grey
    """
    if kind not in KINDS:
        raise InputError(f"no video kind {kind!r}; expected one of {', '.join(KINDS)}.{did_you_mean(kind, KINDS)}")
    if frames < 2:
        raise InputError(f"video() needs at least 2 frames, got {frames}.")
    # small enough to stand clear of the bar at the start
    radius = (0.08, 0.11) if kind in ("occluder", "cue") else (0.1, 0.15)
    scenes = sample(n, seed, size=size, split=split, factors={"radius": radius, "texture": "solid"})
    keys = scenes.factors["scene_key"]
    u = [randoms.uniform(randoms.key(seed, "video", i), keys) for i in range(4)]
    positions, labels = _paths(kind, scenes, u, frames)
    velocities = torch.cat([positions[:, 1:] - positions[:, :-1], positions[:, -1:] - positions[:, -2:-1]], 1)
    flat = {name: value.repeat_interleave(frames, 0) for name, value in scenes.factors.items()}
    flat["x"], flat["y"] = positions[..., 0].reshape(-1, 1), positions[..., 1].reshape(-1, 1)
    if kind == "cue":
        labels = scenes.labels("color")
        late = (torch.arange(frames) >= _SHOWN).repeat(n)[:, None]
        flat["saturation"] = torch.where(late, 0.0, flat["saturation"])
    drawn = render(flat, size)
    images = drawn.images.reshape(n, frames, 3, size, size)
    masks = drawn.masks[:, 0].reshape(n, frames, size, size)
    hidden = torch.zeros(n, frames)
    if kind in ("occluder", "cue"):
        bar = torch.zeros(size, dtype=torch.bool)
        bar[round(0.38 * size) : round(0.62 * size)] = True
        images = torch.where(bar, _BAR, images)
        hidden = (masks & bar).flatten(2).sum(2) / masks.flatten(2).sum(2).clamp_min(1)
    return Video(images, positions, velocities, hidden, labels, masks, scenes)

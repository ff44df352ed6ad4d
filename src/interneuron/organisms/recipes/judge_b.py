"""`judge-b`: the second judge, of another seed, other images and another width; see [`judge`](judge.md)."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from interneuron.organisms.recipes import judge
from interneuron.organisms.vision_training import Batch


def build() -> nn.Module:
    """The untrained network."""
    return judge.build(width=40)


def batch(step: int, batch_size: int) -> Batch:
    """Training images that `judge` never saw."""
    return judge.batch(step, batch_size, seed=1000)


RECIPE = replace(judge.RECIPE, name="judge-b", build=build, batch=batch, seed=1, minutes=12)

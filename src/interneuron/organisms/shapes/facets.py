"""A class with two faces: "red circle or blue square" is one label, and which of the two an image is stays known.

Neither colour nor shape alone tells the label: red squares and blue circles are outside the class.
Source. Nguyen, Yosinski, Clune 2016 (the question of multifaceted units).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from interneuron.core.errors import InputError

from . import randoms
from .scenes import Scenes, sample
from .vocabulary import COLORS, SHAPES

FACETS = (("circle", "red"), ("square", "blue"))
_OUTSIDE = (("circle", "blue"), ("square", "red"))


@dataclass(frozen=True)
class Facets:
    """scenes of one object, labels Int[N] (1 = in the class) and facet Int[N] (place in FACETS, -1 outside)."""

    scenes: Scenes
    labels: Tensor
    facet: Tensor

    @property
    def images(self) -> Tensor:
        """Float[N 3 H W]."""
        return self.scenes.images


def facets(n: int, seed: int, *, size: int = 32, share: float = 0.5, split: str = "train", hard: float = 0.5) -> Facets:
    """Images inside (a share of them, both facets equally often) and outside the class.

    hard   share of the outsiders that swap the colours of the facets; the others are any other shape and colour
    """
    if not 0.0 <= share <= 1.0 or not 0.0 <= hard <= 1.0:
        raise InputError(f"facets() needs share and hard in [0, 1], got {share} and {hard}.")
    index = torch.arange(n)
    u = [randoms.uniform(randoms.key(seed, split, "facets", i), index) for i in range(5)]
    facet = torch.where(u[0] < share, (u[1] < 0.5).long(), -1)
    inside = torch.tensor([[SHAPES.index(s), COLORS.index(c)] for s, c in FACETS])
    swapped = torch.tensor([[SHAPES.index(s), COLORS.index(c)] for s, c in _OUTSIDE])
    other = torch.tensor(
        [[s, c] for s in range(len(SHAPES)) for c in range(len(COLORS)) if [s, c] not in [*inside.tolist()]]
    )
    outside = torch.where(
        (u[2] < hard)[:, None],
        swapped[(u[3] < 0.5).long()],
        other[(u[4] * len(other)).long().clamp_(max=len(other) - 1)],
    )
    pairs = torch.where((facet >= 0)[:, None], inside[facet.clamp_min(0)], outside)
    scenes = sample(n, seed, size=size, split=split, factors={"shape": pairs[:, 0], "color": pairs[:, 1]})
    return Facets(scenes, (facet >= 0).long(), facet)

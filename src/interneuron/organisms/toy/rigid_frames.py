"""`rigid_frames`: rigid bodies with hidden points, for networks that must be blind to how the whole is turned.

Idea. Each residue has a type, and each type a point fixed in its frame that is never shown. The target of a pair
depends on how far the two points lie apart and on the angle between their arms, so types and centres do not suffice:
frames count.

Equations. p_i = t_i + R_i a_type(i);  y_ij = exp(-|p_i - p_j|^2 / (2 s^2)) + 1/2 cos(angle of R_i a_i and R_j a_j).
Shapes. types Int[n L], rotation Float[n L 3 3], translation Float[n L 3] -> y Float[n L L], symmetric.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from interneuron.core.errors import InputError


@dataclass(frozen=True)
class Frames:
    """truth: anchors Float[types 3] in local coordinates, points Float[n L 3], distance and cosine Float[n L L]."""

    types: Tensor
    rotation: Tensor
    translation: Tensor
    y: Tensor
    truth: dict[str, Tensor]

    def moved(self, rotation: Tensor, shift: Tensor) -> Frames:
        """Everything turned by Float[3 3] and shifted by Float[3]: the target stays."""
        where = self.translation @ rotation.T + shift
        truth = self.truth | {"points": self.truth["points"] @ rotation.T + shift}
        return Frames(self.types, rotation @ self.rotation, where, self.y, truth)


def make(
    seed: int,
    *,
    n: int = 64,
    length: int = 12,
    types: int = 8,
    arm: float = 1.5,
    spread: float = 2.0,
    width: float = 2.0,
) -> Frames:
    """`n` clouds of `length` frames with random places and orientations. The anchors are the same for all seeds."""
    if min(n, length, types) < 1 or min(arm, spread, width) <= 0:
        raise InputError(f"rigid_frames needs n, length, types >= 1 and positive lengths; got {n}, {length}, {types}.")
    world = torch.Generator().manual_seed(types)
    anchors = arm * F.normalize(torch.randn(types, 3, generator=world), dim=1)
    rng = torch.Generator().manual_seed(seed)
    kind = torch.randint(types, (n, length), generator=rng)
    rotation = random_rotations((n, length), rng)
    translation = spread * torch.randn(n, length, 3, generator=rng)
    arms = torch.einsum("nlij,nlj->nli", rotation, anchors[kind])
    points = translation + arms
    distance = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    cosine = (arms @ arms.transpose(1, 2)) / arm**2
    y = torch.exp(-distance.square() / (2 * width**2)) + 0.5 * cosine
    truth = {"anchors": anchors, "points": points, "distance": distance, "cosine": cosine}
    return Frames(kind, rotation, translation, y, truth)


def random_rotations(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Uniform rotations Float[*shape 3 3]: the Q of Gaussian matrices, with signs that make it unique and proper."""
    q, r = torch.linalg.qr(torch.randn(*shape, 3, 3, generator=rng))
    q = q * r.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]
    flip = torch.linalg.det(q).sign()
    return torch.cat([q[..., :2], q[..., 2:] * flip[..., None, None]], -1)


def fragments(seed: int, *, n: int = 256, length: int = 10, noise: float = 0.3) -> tuple[Tensor, Tensor, Tensor]:
    """Pieces of ideal helix (0) and strand (1): rotation Float[n L 3 3], translation Float[n L 3], labels Int[n].

    Backbone atoms on a helix of 1.5 (strand 3.3) per residue, 100 (180) degrees and radius 2.3 (0.9), jittered and
    turned as a whole; each frame is spanned by the steps to the neighbours.
    """
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (n,), generator=rng)
    rise, angle, radius = (torch.tensor(v)[labels, None] for v in ((1.5, 3.3), (100.0, 180.0), (2.3, 0.9)))
    i = torch.arange(length + 2, dtype=torch.float32)
    turn = i * angle * (math.pi / 180)
    atoms = torch.stack([radius * torch.cos(turn), radius * torch.sin(turn), rise * i], -1)
    atoms = atoms + noise * torch.randn(atoms.shape, generator=rng)
    atoms = atoms @ random_rotations((n,), rng).transpose(1, 2)
    before, after = atoms[:, 1:-1] - atoms[:, :-2], atoms[:, 2:] - atoms[:, 1:-1]
    first = F.normalize(after, dim=-1)
    third = F.normalize(torch.linalg.cross(first, before), dim=-1)
    frame = torch.stack([first, torch.linalg.cross(third, first), third], -1)
    return frame, atoms[:, 1:-1], labels

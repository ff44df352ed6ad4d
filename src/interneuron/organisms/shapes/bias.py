"""Planted shortcuts: attributes that follow the shape class, and pairs of shapes that keep company.

A bias of strength p makes the shortcut hold in a share p of scenes; in `split="conflict"` it holds in none, so a model
that leans on the shortcut is caught there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interneuron.core.errors import InputError, did_you_mean

from .vocabulary import SHAPES, VALUES, index_of

if TYPE_CHECKING:
    from .draw import Dice

KINDS = ("color", "texture", "background", "pair")


def partner(attribute: str, shape: Tensor) -> Tensor:
    """The value of `attribute` that a biased world ties to a shape: label modulo the number of values."""
    return shape % len(VALUES[attribute])


def _strength(kind: str, value: object) -> float:
    if isinstance(value, (int, float)) and 0.0 <= float(value) <= 1.0:
        return float(value)
    raise InputError(f"bias[{kind!r}] is {value!r}; expected a share between 0 and 1.")


def _follow(attribute: str, shape: Tensor, share: float, dice: Dice, per_object: bool) -> Tensor:
    """Labels that equal the partner with probability `share`, else any other value with equal probability."""
    count = len(VALUES[attribute])
    roll = dice.object if per_object else dice.scene
    aligned = roll(f"bias {attribute}") < share
    tied = partner(attribute, shape)
    other = (tied + 1 + (roll(f"bias {attribute} other") * (count - 1)).long().clamp_(max=count - 2)) % count
    return torch.where(aligned, tied, other)


def _pair(shape: Tensor, rule: object, dice: Dice, n_objects: Tensor, conflict: bool) -> Tensor:
    """Where shape a is present, make a neighbour b with probability p, and remove every b otherwise."""
    if not (isinstance(rule, (tuple, list)) and len(rule) == 3):
        raise InputError(
            f"bias['pair'] is {rule!r}; expected (shape, companion, share) such as ('circle', 'square', 0.85)."
        )
    a, b, share = index_of("shape", rule[0]), index_of("shape", rule[1]), _strength("pair", rule[2])
    if a == b:
        raise InputError(f"bias['pair'] ties {rule[0]!r} to itself; expected two different shapes.")
    slots = shape.shape[1]
    present = torch.arange(slots)[None, :] < n_objects[:, None]
    is_a = (shape == a) & present
    active = is_a.any(dim=1) & (n_objects > 1)
    together = active & (dice.scene("bias pair") < (0.0 if conflict else share))
    neighbour = (is_a.int().argmax(dim=1) + 1) % n_objects
    chosen = torch.arange(slots)[None, :] == neighbour[:, None]
    shape = torch.where(together[:, None] & chosen, b, shape)
    neutral = torch.tensor([label for label in range(len(SHAPES)) if label not in (a, b)])
    substitute = neutral[(dice.object("bias pair other") * len(neutral)).long().clamp_(max=len(neutral) - 1)]
    return torch.where((active & ~together)[:, None] & (shape == b), substitute, shape)


def apply(
    labels: dict[str, Tensor],
    scene: dict[str, Tensor],
    dice: Dice,
    n_objects: Tensor,
    bias: Mapping[str, object],
    split: str,
) -> None:
    """Rewrite `labels` [N K] and the scene's `background` [N] under the planted shortcuts (in place)."""
    if split == "conflict" and not bias:
        raise InputError("split='conflict' breaks planted shortcuts, but bias is empty; name the bias to break.")
    for kind in bias:
        if kind not in KINDS:
            raise InputError(
                f"shapes has no bias {kind!r}; expected one of {', '.join(KINDS)}.{did_you_mean(kind, KINDS)}"
            )
    conflict = split == "conflict"
    if "pair" in bias:
        labels["shape"] = _pair(labels["shape"], bias["pair"], dice, n_objects, conflict)
    for attribute in ("color", "texture"):
        if attribute in bias:
            share = 0.0 if conflict else _strength(attribute, bias[attribute])
            labels[attribute] = _follow(attribute, labels["shape"], share, dice, per_object=True)
    if "background" in bias:
        share = 0.0 if conflict else _strength("background", bias["background"])
        scene["background"] = _follow("background", labels["shape"][:, 0], share, dice, per_object=False)

"""The words of the image world: every factor, its values and what a caption calls them."""

from __future__ import annotations

from collections.abc import Sequence

from interneuron.core.errors import InputError, did_you_mean

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "diamond")
COLORS = ("red", "green", "blue", "yellow", "cyan", "purple", "orange", "pink")
TEXTURES = ("solid", "striped", "dotted", "checker", "noise")
SIZES = ("small", "medium", "large")
POSITIONS = (
    "top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right",
)  # fmt: skip
BACKGROUNDS = ("flat", "gradient", "stripes", "blobs", "noise")

# Hue of each colour (turns). Neighbours are at least 0.08 apart; a scene jitters by at most HUE_JITTER.
HUES = (0.0, 0.33, 0.63, 0.16, 0.5, 0.77, 0.075, 0.89)
HUE_JITTER = 0.018

VALUES: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "color": COLORS,
    "texture": TEXTURES,
    "size": SIZES,
    "position": POSITIONS,
    "background": BACKGROUNDS,
}
"""Named factors and their values, in label order."""

RANGES: dict[str, tuple[float, float]] = {
    "radius": (0.12, 0.32),
    "x": (0.2, 0.8),
    "y": (0.2, 0.8),
    "rotation": (-0.4, 0.4),
    "brightness": (0.75, 1.0),
    "saturation": (0.8, 1.0),
}
"""Continuous factors and the interval each is drawn from (lengths in units of the image side, angles in radians)."""

# Radius interval for scenes of 1..5 objects: more objects, less room.
CROWD_RADIUS = {1: (0.12, 0.32), 2: (0.12, 0.20), 3: (0.10, 0.16), 4: (0.09, 0.14), 5: (0.085, 0.125)}

SYNONYMS: dict[str, str] = {
    "circle": "disc",
    "ring": "donut",
    "square": "box",
    "cross": "plus",
    "diamond": "rhombus",
    "solid": "plain",
    "striped": "stripy",
    "dotted": "spotted",
    "small": "tiny",
    "large": "big",
}
"""Second names; a caption uses one in place of the first with probability 0.15 a word."""


def index_of(factor: str, value: str | int) -> int:
    """The label number of one value of a named factor, with a hint when the name is near a known one."""
    names = VALUES.get(factor)
    if names is None:
        raise InputError(
            f"{factor!r} is not a named factor of shapes; expected one of {', '.join(VALUES)}."
            f"{did_you_mean(factor, VALUES)}"
        )
    if isinstance(value, int) and not isinstance(value, bool):
        if 0 <= value < len(names):
            return value
        raise InputError(f"{factor} has labels 0..{len(names) - 1}, got {value}. Use one of {', '.join(names)}.")
    if value not in names:
        raise InputError(
            f"{value!r} is not a {factor} of shapes; expected one of {', '.join(names)}."
            f"{did_you_mean(str(value), names)}"
        )
    return names.index(value)


def names_of(factor: str, labels: Sequence[int]) -> list[str]:
    """The words of a list of labels.

    >>> names_of("shape", [0, 3])
    ['circle', 'star']
    """
    names = VALUES[factor]
    return [names[int(label)] for label in labels]

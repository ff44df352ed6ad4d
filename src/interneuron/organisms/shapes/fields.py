"""Signed-distance fields of the eight shapes, each scaled to the area of the unit circle.

Idea. All shapes with the same `radius` cover the same number of pixels (pi r^2), so size and shape are independent
factors: neither can be read off the other by counting pixels. All centroids lie at the origin.

Shapes. u, v: Float[...] local coordinates in units of the radius (v grows downwards) -> Float[...] distance, negative
inside. Distances are exact near edges, which is where coverage is computed; near outer corners they are lower bounds.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_SQUARE = math.sqrt(math.pi) / 2  # half side
_TRIANGLE = math.sqrt(math.pi / (3 * math.sqrt(3)))  # inradius: area = 3 sqrt(3) rho^2
_CROSS = 1.5 * math.sqrt(math.pi / 5)  # half length; an arm is a third of the length wide: area = 20/9 half^2
_RING = (math.sqrt(1 / 0.75), 0.5 * math.sqrt(1 / 0.75))  # outer and inner radius, inner = outer / 2
_STAR_RATIO = 0.5
_STAR = math.sqrt(math.pi / (5 * _STAR_RATIO * math.sin(math.pi / 5)))  # outer radius
_DIAMOND_RATIO = 1.75
_DIAMOND = (math.sqrt(math.pi / (2 * _DIAMOND_RATIO)), math.sqrt(math.pi * _DIAMOND_RATIO / 2))  # half width, height
_HEART = math.sqrt(math.pi / (1 + math.pi / 4))  # side of the tilted square under the two half discs
# centroid of square plus two half discs, above the square's centre
_HEART_LIFT = _HEART * (math.pi / 4) * ((0.5 + 2 / (3 * math.pi)) / math.sqrt(2)) / (1 + math.pi / 4)


def _circle(u: Tensor, v: Tensor) -> Tensor:
    return torch.hypot(u, v) - 1.0


def _square(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(u.abs(), v.abs()) - _SQUARE


def _triangle(u: Tensor, v: Tensor) -> Tensor:
    slanted = u.abs() * math.cos(math.pi / 6) - v * 0.5
    return torch.maximum(slanted, v) - _TRIANGLE


def _star(u: Tensor, v: Tensor) -> Tensor:
    # fold the plane onto one half of one of five points; the outline is then a single line
    sector = 2 * math.pi / 5
    angle = torch.remainder(torch.atan2(u, -v) + sector / 2, sector).sub_(sector / 2).abs_()
    radius = torch.hypot(u, v)
    inner = (_STAR * _STAR_RATIO * math.cos(sector / 2), _STAR * _STAR_RATIO * math.sin(sector / 2))
    edge = (inner[0] - _STAR, inner[1])
    length = math.hypot(*edge)
    normal = (edge[1] / length, -edge[0] / length)
    return radius * (torch.cos(angle) * normal[0] + torch.sin(angle) * normal[1]) - _STAR * normal[0]


def _cross(u: Tensor, v: Tensor) -> Tensor:
    a, b = u.abs(), v.abs()
    arm = _CROSS / 3
    return torch.minimum(torch.maximum(a - _CROSS, b - arm), torch.maximum(a - arm, b - _CROSS))


def _ring(u: Tensor, v: Tensor) -> Tensor:
    outer, inner = _RING
    return (torch.hypot(u, v) - (outer + inner) / 2).abs() - (outer - inner) / 2


def _heart(u: Tensor, v: Tensor) -> Tensor:
    a = u.abs()
    w = v - _HEART_LIFT  # height below the centre of the tilted square
    square = (a + w.abs()) / math.sqrt(2) - _HEART / 2
    offset = _HEART / (2 * math.sqrt(2))
    disc = torch.hypot(a - offset, w + offset) - _HEART / 2
    return torch.minimum(square, disc)


def _diamond(u: Tensor, v: Tensor) -> Tensor:
    width, height = _DIAMOND
    return (u.abs() / width + v.abs() / height - 1.0) * (width * height / math.hypot(width, height))


FIELDS = (_circle, _square, _triangle, _star, _cross, _ring, _heart, _diamond)
"""One field per name in `vocabulary.SHAPES`, same order."""

EXTENTS = (
    1.0,
    _SQUARE * math.sqrt(2),
    2 * _TRIANGLE,
    _STAR,
    _CROSS * math.sqrt(10) / 3,
    _RING[0],
    _HEART / math.sqrt(2) + _HEART_LIFT,
    _DIAMOND[1],
)
"""Radius of a circle around the centroid that holds the whole shape, in units of `radius`; same order."""

"""Rooms with objects and cameras: perspective pictures, and the geometry behind them as the truth of spatial questions.

Idea. Objects are upright shapes that always face the camera, on the floor or on a shelf of height 1. A view is drawn
far to near, so what hides what is exact. Everything a question may ask follows from the poses: nothing is read off
pixels.

Equations. In a camera at c with heading h, right = (p - c) . (cos h, sin h), ahead = (p - c) . (-sin h, cos h);
column = 1/2 + f right / ahead, row = 1/2 + f (eye - height) / ahead, f = 1/2 / tan(fov / 2), in image sides.

Shapes. position Float[N K 2] in a 10 x 10 room, camera Float[N 3] (x, y, heading in radians, counter-clockwise).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from interneuron.core.errors import InputError, ShapeError

from . import randoms
from .fields import FIELDS
from .render import hsv_to_rgb
from .vocabulary import COLORS, HUES, SHAPES

ROOM, EYE, FOV, SHELF = 10.0, 1.2, math.radians(80.0), 1.0
RADII = (0.3, 0.45, 0.65)
SIZE_WORDS = ("small", "medium", "large")
_NEAR = 0.4
_CHUNK = 32  # rooms whose masks are drawn at once: the working set then stays in the cache
_ACTIONS = ("turn left", "turn right", "move forward", "move back")


@dataclass(frozen=True)
class Room:
    """N rooms with K places for objects. shape, color, size Int[N K] (-1 = empty), high Bool[N K] (on the shelf),
    position Float[N K 2], hue Float[N K], camera Float[N 3]."""

    shape: Tensor
    color: Tensor
    size: Tensor
    high: Tensor
    position: Tensor
    hue: Tensor
    camera: Tensor

    def __len__(self) -> int:
        return len(self.shape)

    @property
    def present(self) -> Tensor:
        """Bool[N K]."""
        return self.shape >= 0

    @property
    def radius(self) -> Tensor:
        """Float[N K]."""
        return torch.tensor(RADII)[self.size.clamp_min(0)]

    @property
    def elevation(self) -> Tensor:
        """Height of each object's centre, Float[N K]."""
        return self.radius + SHELF * self.high

    def relative(self, camera: Tensor | None = None) -> Tensor:
        """Positions seen from a camera Float[N 3]: (right, ahead) Float[N K 2]."""
        camera = self.camera if camera is None else camera
        gap = self.position - camera[:, None, :2]
        cos, sin = torch.cos(camera[:, 2:]), torch.sin(camera[:, 2:])
        return torch.stack([gap[..., 0] * cos + gap[..., 1] * sin, gap[..., 1] * cos - gap[..., 0] * sin], -1)

    def bearing(self, camera: Tensor | None = None) -> Tensor:
        """Angle to the right of straight ahead, in radians, Float[N K]."""
        right, ahead = self.relative(camera).unbind(-1)
        return torch.atan2(right, ahead)

    def distance(self, camera: Tensor | None = None) -> Tensor:
        """Distance over the floor, Float[N K]."""
        return self.relative(camera).norm(dim=-1)

    def visible(self, share: float = 0.5, size: int = 32) -> Tensor:
        """Bool[N K]: at least this share of the object's own pixels shows, and it has four or more of them."""
        alone, shown = self.coverage(size)
        return (shown >= 4) & (shown >= share * alone)

    @cached_property
    def in_view(self) -> Tensor:
        """Bool[N K]: `visible` with its defaults, computed once."""
        return self.visible()

    def coverage(self, size: int = 32) -> tuple[Tensor, Tensor]:
        """Pixels of each object with nothing in front of it, and as seen: two Int[N K].

        Parts outside the frame count as hidden: they are counted on a canvas three times as wide.
        """
        if len(self) > _CHUNK:
            parts = [self.rows(rows).coverage(size) for rows in torch.arange(len(self)).split(_CHUNK)]
            return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
        order, masks = _masks(self, size, 3)
        alone = masks.flatten(2).sum(2)
        window = masks[:, :, size : 2 * size, size : 2 * size]
        later = window.flip(1).cumsum(1).flip(1) - window.int()
        seen = (window & (later == 0)).flatten(2).sum(2)
        back = order.argsort(1)
        return alone.gather(1, back), seen.gather(1, back)

    def render(self, size: int = 32) -> tuple[Tensor, Tensor, Tensor]:
        """images Float[N 3 H W], instance Int[N H W] (place of the object, -1 = room), depth Float[N H W]."""
        n = len(self)
        order, masks = _masks(self, size, 1)
        horizon = torch.linspace(-1, 1, size)[:, None].expand(size, size)
        grey = torch.where(horizon > 0, 0.45 - 0.15 * horizon, 0.75 + 0.1 * horizon)
        images = grey.expand(n, 3, size, size).clone()
        instance = torch.full((n, size, size), -1)
        depth = torch.full((n, size, size), torch.inf)
        rgb = hsv_to_rgb(self.hue, torch.full_like(self.hue, 0.85), torch.ones_like(self.hue))
        rows = torch.arange(n)
        ahead = self.relative()[..., 1]
        for slot in range(order.shape[1]):
            who, mask = order[:, slot], masks[:, slot]
            paint = rgb[rows, who] * (1.0 - 0.04 * ahead[rows, who].clamp(0, 10))[:, None]
            images = torch.where(mask[:, None], paint[:, :, None, None], images)
            instance = torch.where(mask, who[:, None, None], instance)
            depth = torch.where(mask, ahead[rows, who][:, None, None], depth)
        return images, instance, depth

    def act(self, action: str | Tensor, amount: float) -> Room:
        """The room seen after the camera turns (radians) or moves (units): one action, or Int[N] of `actions()`."""
        which = torch.full((len(self),), _ACTIONS.index(action)) if isinstance(action, str) else action
        if which.shape != (len(self),):
            raise ShapeError(f"act(): action has shape {tuple(which.shape)}, expected [{len(self)}]. Give one a room.")
        camera = self.camera.clone()
        camera[:, 2] += amount * ((which == 0).float() - (which == 1).float())
        step = amount * ((which == 2).float() - (which == 3).float())
        camera[:, 0] -= step * torch.sin(self.camera[:, 2])
        camera[:, 1] += step * torch.cos(self.camera[:, 2])
        return replace(self, camera=camera)

    def shift(self, slot: Tensor, gap: Tensor) -> Room:
        """The room after one object Int[N] moved by a gap Float[N 2]."""
        position = self.position.clone()
        position[torch.arange(len(self)), slot] += gap
        return replace(self, position=position)

    def point_list(self) -> Tensor:
        """Float[N K 6]: x, y, elevation, radius, shape, color; rows of empty places are nan."""
        facts = [self.position[..., 0], self.position[..., 1], self.elevation, self.radius, self.shape, self.color]
        table = torch.stack([f.float() for f in facts], -1)
        return table.where(self.present[..., None], torch.nan)

    def rows(self, index: Tensor) -> Room:
        """Some rooms of the batch, by index."""
        part = Room(*(getattr(self, k)[index] for k in ("shape", "color", "size", "high", "position", "hue", "camera")))
        if "in_view" in self.__dict__:  # known already: spare the rendering
            part.__dict__["in_view"] = self.in_view[index]
        return part

    @cached_property
    def beside(self) -> Room:
        """The same rooms from a camera a quarter turn further round."""
        x, y = self.camera[:, 0] - ROOM / 2, self.camera[:, 1] - ROOM / 2
        camera = torch.stack([ROOM / 2 - y, ROOM / 2 + x, self.camera[:, 2] + math.pi / 2], 1)
        return replace(self, camera=camera)

    def name(self, row: int, slot: int) -> str:
        """`red star`: unique within its room."""
        return f"{COLORS[int(self.color[row, slot])]} {SHAPES[int(self.shape[row, slot])]}"


def actions() -> tuple[str, ...]:
    """What a camera can do."""
    return _ACTIONS


def _masks(room: Room, size: int, wide: int) -> tuple[Tensor, Tensor]:
    """Objects far to near, Int[N K], and their pixels in that order, Bool[N K wide*H wide*W]."""
    right, ahead = room.relative().unbind(-1)
    seen = room.present & (ahead > _NEAR)
    order = torch.where(seen, ahead, torch.inf).argsort(dim=1, descending=True)
    focal = 0.5 / math.tan(FOV / 2)
    depth = ahead.clamp_min(_NEAR)
    column, row, radius = (v / depth * focal for v in (right, EYE - room.elevation, room.radius))
    axis = (torch.arange(wide * size, dtype=torch.float32) + 0.5) / size - wide / 2
    u = (axis[None, None, None, :] - column[..., None, None]) / radius[..., None, None]
    v = (axis[None, None, :, None] - row[..., None, None]) / radius[..., None, None]
    u, v = torch.broadcast_tensors(u, v)
    masks = torch.zeros(u.shape, dtype=torch.bool)
    for kind in room.shape[seen].unique().tolist():
        chosen = seen & (room.shape == kind)
        masks[chosen] = FIELDS[kind](u[chosen], v[chosen]) <= 0
    return order, masks.gather(1, order[:, :, None, None].expand_as(masks))


def views(n: int, seed: int, *, objects: tuple[int, int] = (3, 8), split: str = "train") -> Room:
    """`n` rooms, no two objects of a room alike in shape and colour; room i depends on (seed, split, i).

    The camera stands near a wall and looks roughly at the middle; `act` and `replace(room, camera=...)` give others.

    >>> room = views(2, seed=0)
    ... room.render()[0].shape
    torch.Size([2, 3, 32, 32])
    """
    low, high = objects
    if n < 0 or not 1 <= low <= high <= 10:
        raise InputError(f"views() needs n >= 0 and 1 <= objects <= 10, got {n} and {objects}.")
    index = torch.arange(n)
    many = index[:, None] * 16 + torch.arange(high)

    def u(name: str, at: Tensor) -> Tensor:
        return randoms.uniform(randoms.key(seed, split, "views", name), at)

    present = torch.arange(high) < (low + (u("count", index) * (high - low + 1)).long())[:, None]
    # distinct kinds: the ranks of random numbers over all pairs of shape and colour
    pairs = len(SHAPES) * 6
    kinds = u("kinds", index[:, None] * pairs + torch.arange(pairs)).argsort(1)[:, :high]
    # distinct places: cells of a 5 x 5 grid, with some play within the cell
    cell = u("cells", index[:, None] * 25 + torch.arange(25)).argsort(1)[:, :high]
    play = torch.stack([u("x", many), u("y", many)], -1) * 0.8 - 0.4
    position = (torch.stack([cell % 5, cell // 5], -1) + 0.5 + play) * (6.0 / 5) + 2.0
    color = kinds % 6
    hue = torch.remainder(torch.tensor(HUES)[color] + 0.036 * (u("hue", many) - 0.5), 1.0)
    around = 2 * math.pi * u("around", index)
    heading = around + math.pi / 2 + 0.4 * (u("heading", index) - 0.5)
    camera = torch.stack([5 + 5.0 * torch.cos(around), 5 + 5.0 * torch.sin(around), heading], 1)
    size = (u("size", many) * 3).long().clamp_max(2)
    empty = torch.tensor(-1)
    return Room(
        torch.where(present, kinds // 6, empty), torch.where(present, color, empty), torch.where(present, size, empty),
        u("high", many) < 0.25, position, hue, camera,
    )  # fmt: skip

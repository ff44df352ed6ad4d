"""Floor plans walked by an agent with a small window: mapping from egocentric views with exact projection.

Idea. Each cell of a plan is free, a wall or an object of eight types. The agent sees a noisy 7x7 window that turns with
it. The types of a pair ("stool", "bin"), ("desk", "bed") look the same from north or south and differ from east or
west, so one view cannot tell them apart and a map that remembers can.

Shapes. plan Int[N S S], height Float[N S S], poses Int[N T 3] (row, column, heading: 0 north, 1 east, 2 south, 3 west),
features Float[N T 7 7 F], cells Int[N T 7 7 2] (row and column in the plan, -1 outside). The agent stands at window
[6, 3] and looks towards row 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from interneuron.core.errors import InputError

from . import randoms

SIDE, WINDOW = 24, 7
TYPES = ("floor", "wall", "sofa", "lamp", "plant", "shelf", "stool", "bin", "desk", "bed")
HEIGHTS = (0.0, 2.5, 0.9, 1.6, 1.1, 2.0, 0.5, 0.5, 0.8, 0.8)
_LOOKS = (  # appearance seen by an agent that looks north or south, and east or west
    (0, 1, 2, 3, 4, 5, 6, 6, 9, 9),
    (0, 1, 2, 3, 4, 5, 7, 8, 10, 11),
)
N_LOOKS = 12
_AHEAD = torch.tensor([[-1, 0], [0, 1], [1, 0], [0, -1]])


@dataclass(frozen=True)
class Rooms:
    """N plans with a walk of T steps each; `noise` is the standard deviation added to the one-hot appearances."""

    plan: Tensor
    height: Tensor
    poses: Tensor
    cells: Tensor
    features: Tensor

    def __len__(self) -> int:
        return len(self.plan)

    @property
    def labels(self) -> Tensor:
        """Int[N T 7 7]: the type in every cell of every window, -1 outside the plan."""
        return _gather(self.plan, self.cells)

    @property
    def observed(self) -> Tensor:
        """Bool[N S S]: the cells that some window showed."""
        n, side = len(self), self.plan.shape[1]
        flat = torch.where(self.cells[..., 0] >= 0, self.cells[..., 0] * side + self.cells[..., 1], side * side)
        seen = torch.zeros(n, side * side + 1, dtype=torch.bool).scatter_(1, flat.flatten(1), True)
        return seen[:, :-1].reshape(n, side, side)


def window_cells(poses: Tensor, side: int = SIDE) -> Tensor:
    """The plan cell of every window cell: Int[... 3] -> Int[... 7 7 2], -1 outside the plan."""
    reach = torch.arange(WINDOW)
    ahead = (WINDOW - 1 - reach)[:, None, None]  # row 0 is six cells ahead
    right = (reach - WINDOW // 2)[None, :, None]
    forward = _AHEAD[poses[..., 2]][..., None, None, :]
    sideways = _AHEAD[(poses[..., 2] + 1) % 4][..., None, None, :]
    cells = poses[..., None, None, :2] + ahead * forward + right * sideways
    inside = ((cells >= 0) & (cells < side)).all(-1, keepdim=True)
    return torch.where(inside, cells, -1)


def _gather(plan: Tensor, cells: Tensor) -> Tensor:
    n, side = plan.shape[:2]
    flat = (cells[..., 0] * side + cells[..., 1]).clamp_min(0)
    values = plan.flatten(1).gather(1, flat.reshape(n, -1)).reshape(flat.shape)
    return torch.where(cells[..., 0] >= 0, values, -1)


def rooms(n: int, seed: int, *, steps: int = 40, objects: int = 14, noise: float = 0.3, split: str = "train") -> Rooms:
    """`n` plans and walks; plan i and its walk depend on (seed, split, i).

    >>> walk = rooms(2, seed=0, steps=10)
    ... walk.features.shape
    torch.Size([2, 10, 7, 7, 12])
    """
    if n < 0 or steps < 1 or objects < 0 or noise < 0:
        raise InputError(
            f"rooms() needs n, objects and noise >= 0 and steps >= 1, got {n}, {objects}, {noise}, {steps}."
        )
    index = torch.arange(n)
    plan = _plan(index, seed, split, objects)
    poses = _walk(plan, index, seed, split, steps)
    cells = window_cells(poses)
    kinds = _gather(plan, cells)
    across = (poses[..., 2] % 2)[..., None, None].expand_as(kinds)
    looks = torch.tensor(_LOOKS)[across, kinds.clamp_min(0)]
    shown = torch.nn.functional.one_hot(looks, N_LOOKS).float() * (kinds >= 0)[..., None]
    width = steps * WINDOW * WINDOW * N_LOOKS
    key = randoms.bits(randoms.key(seed, split, "rooms noise"), index)
    # the sum of three uniform numbers: a bell of the wanted deviation
    speckle = randoms.field(key, 3, width).sum(1) - 1.5 if n else torch.zeros(0, width)
    features = shown + 2.0 * noise * speckle.reshape(shown.shape)
    return Rooms(plan, torch.tensor(HEIGHTS)[plan], poses, cells, features)


def _plan(index: Tensor, seed: int, split: str, objects: int) -> Tensor:
    row, column = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")

    def u(i: int, high: int) -> Tensor:
        return randoms.integers(randoms.key(seed, split, "plan", i), index, high)[:, None, None]

    plan = torch.zeros(len(index), SIDE, SIDE, dtype=torch.int64)
    border = (row == 0) | (column == 0) | (row == SIDE - 1) | (column == SIDE - 1)
    # one wall across, with a door three cells wide
    line, along = torch.where(u(0, 2) == 0, row, column), torch.where(u(0, 2) == 0, column, row)
    door = 3 + u(2, SIDE - 8)
    plan[border.expand_as(plan) | ((line == 8 + u(1, 8)) & ~((along >= door) & (along < door + 3)))] = 1
    for i in range(objects):
        r, c = 2 + u(8 + 5 * i, SIDE - 5), 2 + u(9 + 5 * i, SIDE - 5)
        tall, wide = 1 + u(10 + 5 * i, 2), 1 + u(11 + 5 * i, 2)
        body = (row >= r) & (row < r + tall) & (column >= c) & (column < c + wide) & (plan == 0)
        plan = torch.where(body, 2 + u(12 + 5 * i, len(TYPES) - 2), plan)
    return plan


def _walk(plan: Tensor, index: Tensor, seed: int, split: str, steps: int) -> Tensor:
    n = len(index)
    order = torch.stack([randoms.uniform(randoms.key(seed, split, "start", i), index) for i in range(2)], 1)
    free = plan.flatten(1) == 0
    # the start is a uniformly drawn free cell
    rank = (order[:, 0] * free.sum(1)).long() + 1
    cell = (free.long().cumsum(1) >= rank[:, None]).int().argmax(1) if n else torch.zeros(0, dtype=torch.int64)
    here, heading = torch.stack([cell // SIDE, cell % SIDE], 1), (order[:, 1] * 4).long()
    poses = [torch.cat([here, heading[:, None]], 1)]
    for t in range(1, steps):
        u = randoms.uniform(randoms.key(seed, split, "walk", t), index)
        ahead = here + _AHEAD[heading]
        blocked = plan[torch.arange(n), ahead[:, 0], ahead[:, 1]] != 0
        turn = blocked | (u < 0.3)
        heading = torch.where(turn, (heading + torch.where(u * 100 % 1 < 0.5, 1, 3)) % 4, heading)
        here = torch.where(turn[:, None], here, ahead)
        poses.append(torch.cat([here, heading[:, None]], 1))
    return torch.stack(poses, 1)

"""`gridworld_rl`: a small maze with a goal, whose optimal values and successor representations are computed exactly.

Equations. V*(s) = max_a [r(s, a) + gamma V*(next(s, a))], found by iteration until nothing changes; reward 1 on
entering the goal, which ends the episode. Under a random walk P the successor representation is M = (I - gamma P)^-1.
Shapes. States are the free cells, numbered row by row. Actions: 0 north, 1 east, 2 south, 3 west; a wall leaves the
agent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from interneuron.core.errors import InputError

_MOVES = torch.tensor([[-1, 0], [0, 1], [1, 0], [0, -1]])


@dataclass(frozen=True)
class GridWorld:
    """wall Bool[side side], next Int[S 4] (state reached), goal; `gamma` discounts.

    truth: value Float[S], policy Bool[S 4] (all optimal actions), distance Int[S] (steps to the goal),
    transition Float[S S] and successor Float[S S] of the random walk (the goal is left like any other cell)
    """

    wall: Tensor
    next: Tensor
    goal: int
    gamma: float
    truth: dict[str, Tensor]

    @property
    def n_states(self) -> int:
        return len(self.next)

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Many agents at once: states, actions Int[B] -> next state Int[B], reward Float[B], done Bool[B]."""
        reached = self.next[state, action]
        done = reached == self.goal
        return reached, done.float(), done

    def start(self, n: int, seed: int) -> Tensor:
        """Uniform states other than the goal, Int[n]."""
        rng = torch.Generator().manual_seed(seed)
        drawn = torch.randint(self.n_states - 1, (n,), generator=rng)
        return drawn + (drawn >= self.goal)

    def walk(self, n: int, steps: int, seed: int) -> Tensor:
        """Random walks without goal, Int[n steps]."""
        rng = torch.Generator().manual_seed(seed)
        path = [torch.randint(self.n_states, (n,), generator=rng)]
        for action in torch.randint(4, (steps - 1, n), generator=rng):
            path.append(self.next[path[-1], action])
        return torch.stack(path, 1)


def make(seed: int, *, side: int = 8, walls: float = 0.2, gamma: float = 0.95) -> GridWorld:
    """A random maze in which every free cell can reach the goal: a share is walled, pockets are filled in."""
    if side < 3 or not 0.0 <= walls <= 0.5 or not 0.0 < gamma < 1.0:
        raise InputError(
            f"gridworld_rl needs side >= 3, 0 <= walls <= 0.5, 0 < gamma < 1; got {side}, {walls}, {gamma}."
        )
    rng = torch.Generator().manual_seed(seed)
    while True:
        wall = torch.rand(side, side, generator=rng) < walls
        free = (~wall).nonzero()
        if len(free) < side:
            continue
        home = free[int(torch.randint(len(free), (), generator=rng))]
        reach = _reach(wall, home)
        if int(reach.sum()) >= max(4, side * side // 3):
            break
    number = torch.full((side, side), -1)
    number[reach] = torch.arange(int(reach.sum()))
    cells = reach.nonzero()
    target = cells[:, None] + _MOVES
    inside = ((target >= 0) & (target < side)).all(-1)
    target = target.clamp(0, side - 1)
    found = number[target[..., 0], target[..., 1]]
    follow = torch.where(inside & (found >= 0), found, torch.arange(len(cells))[:, None])
    goal = int(number[home[0], home[1]])
    return GridWorld(~reach, follow, goal, gamma, _solve(follow, goal, gamma))


def _reach(wall: Tensor, home: Tensor) -> Tensor:
    """The cells connected with `home`, Bool[side side]."""
    seen = torch.zeros_like(wall)
    seen[home[0], home[1]] = True
    while True:
        near = seen.float()[None]
        grown = F.max_pool2d(near, (3, 1), 1, (1, 0)) + F.max_pool2d(near, (1, 3), 1, (0, 1))
        new = (grown[0] > 0) & ~wall
        if torch.equal(new, seen):
            return seen
        seen = new


def _solve(follow: Tensor, goal: int, gamma: float) -> dict[str, Tensor]:
    states = len(follow)
    distance = torch.full((states,), states)
    distance[goal] = 0
    for _ in range(states):
        distance = torch.minimum(distance, distance[follow].amin(1) + 1)
    value = gamma ** (distance.double() - 1)
    value[goal] = 0.0
    gain = torch.where(follow == goal, 1.0, gamma * value[follow])
    policy = gain >= gain.amax(1, keepdim=True) - 1e-12
    policy[goal] = False
    moves = F.one_hot(follow, states).double().mean(1)
    successor = torch.linalg.inv(torch.eye(states, dtype=torch.float64) - gamma * moves)
    return {"value": value, "policy": policy, "distance": distance, "transition": moves, "successor": successor}

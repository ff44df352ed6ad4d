"""Two stacked blocks, one with a digit and one with a pattern that means nothing: where the signal lies is known.

An honest attribution of a classifier of these images lies inside the block of the digit. `signals` is the same idea
without pixels: rows of blocks, one of which carries the label.

Source. Shah, Jain, Netrapalli 2021, "Do Input Gradients Highlight Discriminative Features?" (the idea of BlockMNIST).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from interneuron.core.errors import InputError
from interneuron.organisms.digits import digits

from . import randoms

SIDE = 8


@dataclass(frozen=True)
class Blocks:
    """images Float[N 1 16 8] in [0, 1], labels Int[N] (place in `classes`), and where what lies.

    signal   Bool[N 16 8]: the block of the digit;   null: the other block
    top      Bool[N]: the digit is in the upper block;   index Int[N]: the scan it was made of
    """

    images: Tensor
    labels: Tensor
    signal: Tensor
    null: Tensor
    top: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def blocks(
    split: str = "train",
    *,
    seed: int = 0,
    classes: tuple[int, ...] = (0, 1),
    placements: int = 6,
    fixed: bool = False,
) -> Blocks:
    """Digits of some classes above or below a hollow square, each scan `placements` times at random.

    fixed   the digit is always in the upper block: the control in which nothing can leak

    >>> data = blocks("test", placements=1)
    ... data.images.shape[1:], bool((data.signal ^ data.null).all())
    (torch.Size([1, 16, 8]), True)
    """
    if len(classes) < 2 or len(set(classes)) < len(classes) or not set(classes) <= set(range(10)) or placements < 1:
        raise InputError(
            f"blocks() needs two or more different classes of 0..9 and placements >= 1; got {classes}, {placements}."
        )
    data = digits(split, seed=seed)
    kept = torch.isin(data.labels, torch.tensor(classes))
    scans, index = data.images[kept].repeat_interleave(placements, 0), data.index[kept].repeat_interleave(placements)
    labels = (data.labels[kept][:, None] == torch.tensor(classes)).int().argmax(1).repeat_interleave(placements)
    address = index * placements + torch.arange(placements).repeat(len(index) // placements)
    top = torch.ones(len(index), dtype=torch.bool)
    if not fixed:
        top = randoms.uniform(randoms.key(seed, "blocks"), address) < 0.5
    upper = torch.zeros(len(index), 2 * SIDE, SIDE, dtype=torch.bool)
    upper[:, :SIDE] = True
    signal = torch.where(top[:, None, None], upper, ~upper)
    pattern = hollow_square().expand(len(index), 1, SIDE, SIDE)
    images = torch.where(
        top[:, None, None, None], torch.cat([scans, pattern], 2), torch.cat([pattern, scans], 2)
    ).contiguous()
    return Blocks(images, labels, signal, ~signal, top, index)


def hollow_square() -> Tensor:
    """The pattern of the null block, Float[8 8]."""
    square = torch.zeros(SIDE, SIDE)
    square[1:-1, 1:-1] = 1.0
    square[2:-2, 2:-2] = 0.0
    return square


def signals(
    n: int, seed: int, *, n_blocks: int = 4, width: int = 8, noise: float = 0.1, fixed: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows whose label is the sign of one block: Float[n n_blocks*width], labels Int[n] 0/1, mask Bool of the same.

    The signal block is +-u for a unit vector u that belongs to the seed, at a random place (`fixed`: the first); the
    others are noise alone.
    """
    if n_blocks < 2 or width < 1 or noise < 0:
        raise InputError(f"signals() needs n_blocks >= 2, width >= 1 and noise >= 0; got {n_blocks}, {width}, {noise}.")
    rng = torch.Generator().manual_seed(seed)
    u = torch.nn.functional.normalize(torch.randn(width, generator=rng), dim=0)
    labels = torch.randint(2, (n,), generator=rng)
    place = torch.zeros(n, dtype=torch.int64) if fixed else torch.randint(n_blocks, (n,), generator=rng)
    mask = torch.nn.functional.one_hot(place, n_blocks).bool()[:, :, None].expand(n, n_blocks, width)
    x = noise * torch.randn(n, n_blocks, width, generator=rng)
    x = x + mask * (2.0 * labels - 1.0)[:, None, None] * u
    return x.flatten(1), labels, mask.flatten(1)

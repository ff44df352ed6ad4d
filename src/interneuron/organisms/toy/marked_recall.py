"""`marked_recall`: a long stream that a moving average predicts, except for few marked tokens that must be remembered.

Idea. Nine tenths of the tokens carry a number; the label is whether its moving average is positive. The others are
marked and carry a key: the first time with a value, later without, and then the label is that key's last value. A model
that spends attention on marked tokens alone loses nothing.

Equations. ema_t = decay ema_{t-1} + (1 - decay) number_t (marked tokens count as 0).
Shapes. x Float[n T 2 + keys + values]: number, mark, one-hot key, one-hot value. y Int[n T]: 0 or 1 for the sign of the
average, 2 + value at marked tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from interneuron.core.errors import InputError


@dataclass(frozen=True)
class MarkedRecall:
    """truth: marked, asked (value not shown) Bool[n T], source Int[n T] (where it was, or -1), ema Float[n T]."""

    x: Tensor
    y: Tensor
    truth: dict[str, Tensor]

    def accuracy(self, logits: Tensor, where: str = "asked") -> float:
        """Share right at asked, marked or other tokens: logits Float[n T C]."""
        rows = self.truth[where] if where != "other" else ~self.truth["marked"]
        return float((logits.argmax(-1) == self.y)[rows].float().mean())


def make(
    seed: int,
    *,
    n: int = 64,
    length: int = 256,
    share: float = 0.1,
    keys: int = 8,
    values: int = 8,
    decay: float = 0.8,
) -> MarkedRecall:
    """`n` streams; a share of their tokens is marked, each with a random key; its value is told at its first mark."""
    if min(n, length, keys, values) < 1 or not 0.0 < share < 1.0 or not 0.0 <= decay < 1.0:
        raise InputError(
            f"marked_recall needs n, length, keys, values >= 1, 0 < share < 1, 0 <= decay < 1; got {n}, {length}, "
            f"{keys}, {values}, {share}, {decay}."
        )
    rng = torch.Generator().manual_seed(seed)
    marked = torch.rand(n, length, generator=rng) < share
    number = torch.randn(n, length, generator=rng) * ~marked
    key = torch.randint(keys, (n, length), generator=rng)
    # one value a key and stream
    value = torch.randint(values, (n, keys), generator=rng).gather(1, key)
    held = F.one_hot(key, keys) * marked[..., None]
    earlier = held.cumsum(1) - held
    asked = marked & (earlier.gather(2, key[..., None])[..., 0] > 0)
    position = torch.arange(length)[:, None]
    last = torch.where(held > 0, position, -1).cummax(1).values.roll(1, 1)
    last[:, 0] = -1
    source = torch.where(asked, last.gather(2, key[..., None])[..., 0], -1)
    ema = torch.empty(n, length)
    level = torch.zeros(n)
    for t in range(length):
        level = decay * level + (1 - decay) * number[:, t]
        ema[:, t] = level
    shown = F.one_hot(value, values) * (marked & ~asked)[..., None]
    x = torch.cat([number[..., None], marked[..., None].float(), held.float(), shown.float()], 2)
    y = torch.where(marked, 2 + value, (ema > 0).long())
    return MarkedRecall(x, y, {"marked": marked, "asked": asked, "source": source, "ema": ema})

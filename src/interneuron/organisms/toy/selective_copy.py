"""`selective_copy`: a few data tokens at random places among noise, to be repeated in order at the end.

A fixed filter cannot do it (the gaps vary), a state that chooses what to keep can: the task that tells selective from
linear time-invariant state-space models. `delayed_copy` is its counterpart with fixed gaps.

Shapes. tokens Int[n T + m]: 0 noise, 1 "repeat now", 2.. data. targets Int[n T + m]: the data at the last m, else -100.
Source. Gu, Dao 2023 (Mamba), after Jing et al. 2019.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from interneuron.core.errors import InputError

IGNORE = -100


@dataclass(frozen=True)
class Copy:
    """truth: data Int[n m] in order, positions Int[n m]; `vocabulary` counts noise and the signal too."""

    tokens: Tensor
    targets: Tensor
    vocabulary: int
    truth: dict[str, Tensor]

    def accuracy(self, logits: Tensor) -> float:
        """Share of the repeated tokens that are right: logits Float[n T V]."""
        asked = self.targets != IGNORE
        return float((logits.argmax(-1) == self.targets)[asked].float().mean())


def make(seed: int, *, n: int = 64, length: int = 64, m: int = 8, symbols: int = 8) -> Copy:
    """`n` sequences with `m` data tokens among `length`, the same number of signals after them."""
    if n < 1 or not 1 <= m <= length or symbols < 2:
        raise InputError(
            f"selective_copy needs n >= 1, 1 <= m <= length, symbols >= 2; got {n}, {m}, {length}, {symbols}."
        )
    rng = torch.Generator().manual_seed(seed)
    positions = torch.rand(n, length, generator=rng).argsort(1)[:, :m].sort(1).values
    return write(rng, positions, length, m, symbols)


def write(rng: torch.Generator, positions: Tensor, length: int, m: int, symbols: int) -> Copy:
    """Random data at the given places Int[n m], and the signals after `length` tokens."""
    n = len(positions)
    data = torch.randint(2, 2 + symbols, (n, m), generator=rng)
    tokens = torch.zeros(n, length + m, dtype=torch.int64).scatter_(1, positions, data)
    tokens[:, length:] = 1
    targets = torch.full_like(tokens, IGNORE)
    targets[:, length:] = data
    return Copy(tokens, targets, 2 + symbols, {"data": data, "positions": positions})

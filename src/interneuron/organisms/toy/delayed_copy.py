"""`delayed_copy`: data tokens first, a pause, then the same tokens again: memory over a fixed distance.

Each token comes back exactly `m + delay` steps later, so one linear filter (a pure delay) solves the task.
Shapes. As in `selective_copy`; truth also holds the lag.
"""

from __future__ import annotations

import torch

from interneuron.core.errors import InputError

from .selective_copy import Copy, write


def make(seed: int, *, n: int = 64, delay: int = 56, m: int = 8, symbols: int = 8) -> Copy:
    """`n` sequences: `m` data tokens, `delay` noise tokens, `m` signals."""
    if n < 1 or m < 1 or delay < 0 or symbols < 2:
        raise InputError(f"delayed_copy needs n, m >= 1, delay >= 0, symbols >= 2; got {n}, {m}, {delay}, {symbols}.")
    rng = torch.Generator().manual_seed(seed)
    copy = write(rng, torch.arange(m).expand(n, m).contiguous(), m + delay, m, symbols)
    copy.truth["lag"] = torch.tensor(m + delay)
    return copy

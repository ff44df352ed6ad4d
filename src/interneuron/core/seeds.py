"""Random numbers that depend on their arguments alone: no global generator is read or moved.

>>> float(numpy_rng(0, "split").random()) == float(numpy_rng(0, "split").random())
True
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from interneuron.core.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import torch


def check_seed(seed: int) -> int:
    """Return `seed` if it is an integer >= 0, else raise `InputError`."""
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed: expected an integer >= 0, got {seed!r}. Pass for example seed=0")
    return seed


def generator(seed: int, device: str | torch.device = "cpu") -> torch.Generator:
    """Return a new `torch.Generator` on `device` that starts at `seed`."""
    import torch

    return torch.Generator(device=device).manual_seed(check_seed(seed))


def numpy_rng(seed: int, *keys: int | str) -> np.random.Generator:
    """Return a new NumPy generator decided by `seed` and `keys` only.

    Keys make independent streams: `numpy_rng(seed, "corpus", i)` is the stream of document `i`, whatever was drawn
    before and on whichever process.
    """
    import numpy as np

    # A hash of a readable spelling, because SeedSequence takes integers only and Python's hash() is salted.
    spelled = "\x1f".join(f"{type(key).__name__}:{key}" for key in keys)
    words = np.frombuffer(hashlib.sha256(spelled.encode()).digest(), dtype=np.uint32)
    entropy = [check_seed(seed), *(int(word) for word in words)]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))

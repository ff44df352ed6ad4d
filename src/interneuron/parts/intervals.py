"""Intervals that go with a mean: over the items measured, and over the controls drawn."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from interneuron.core.errors import InputError
from interneuron.core.seeds import generator


def bootstrap_interval(
    values: Float[Tensor, " N"], seed: int = 0, level: float = 0.95, draws: int = 2000
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of N independent values.

    >>> bootstrap_interval(torch.tensor([2.0, 2.0, 2.0]))
    (2.0, 2.0)
    """
    n = len(values)
    if n == 0:
        raise InputError("bootstrap_interval() was given no values: pass at least one.")
    picks = torch.randint(n, (draws, n), generator=generator(seed))
    means = values.detach().cpu().double()[picks].mean(1)
    edge = (1 - level) / 2
    low, high = torch.quantile(means, torch.tensor([edge, 1 - edge], dtype=torch.float64)).tolist()
    return low, high


def prediction_interval(values: Float[Tensor, " N"], level: float = 0.95) -> tuple[float, float]:
    """Where one more draw would fall, from N >= 2 draws taken as normal: mean +- t s sqrt(1 + 1/N).

    The right band for a control made of random draws: a result outside it is more than such a draw would give.

    >>> low, high = prediction_interval(torch.tensor([-1.0, 1.0]))
    >>> round(low, 2), round(high, 2)
    (-22.01, 22.01)
    """
    from scipy.stats import t

    n = len(values)
    if n < 2:
        raise InputError(f"prediction_interval() was given {n} value(s): expected at least 2 draws. Use more seeds.")
    x = values.detach().cpu().double()
    half = float(t.ppf((1 + level) / 2, n - 1)) * float(x.std()) * (1 + 1 / n) ** 0.5
    return float(x.mean()) - half, float(x.mean()) + half

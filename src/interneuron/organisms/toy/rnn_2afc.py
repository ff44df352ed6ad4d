"""`rnn_2afc`: decisions that unfold in time, with the accuracy of the best possible observer.

kind "2afc"     two noisy channels; which was stronger on average?
kind "context"  two such pairs, and a cue that tells which of them counts
kind "match"    a direction, a delay, a second direction: the same or not?

Equations. 2afc: x_t = (1 +- coherence) / 2 + noise e_t for L steps; the sum of the differences is sufficient, so the
best accuracy is Phi(coherence sqrt(L) / (noise sqrt(2))).

Shapes. x Float[n T d], y Int[n T]: 0 = keep still, 1 or 2 = the answer, at every step of the answer period.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from interneuron.core.errors import InputError, did_you_mean

KINDS = ("2afc", "context", "match")


@dataclass(frozen=True)
class Trials:
    """truth: choice Int[n] (1 or 2), coherence Float[n], context Int[n], best Float[n], answer Bool[T]."""

    x: Tensor
    y: Tensor
    truth: dict[str, Tensor]

    def accuracy(self, logits: Tensor) -> float:
        """Share of trials whose last step is answered right: logits Float[n T 3]."""
        return float((logits[:, -1].argmax(-1) == self.y[:, -1]).float().mean())


def make(
    seed: int,
    *,
    kind: str = "2afc",
    n: int = 256,
    steps: int = 10,
    delay: int = 2,
    answer: int = 3,
    coherences: tuple[float, ...] = (0.1, 0.2, 0.4, 0.8),
    noise: float = 0.5,
) -> Trials:
    """`n` trials of one kind: `steps` of evidence, `delay` without, `answer` steps to answer in."""
    if kind not in KINDS:
        raise InputError(f"rnn_2afc has no kind {kind!r}; expected {', '.join(KINDS)}.{did_you_mean(kind, KINDS)}")
    if min(n, steps, answer) < 1 or delay < 0 or noise <= 0:
        raise InputError(f"rnn_2afc needs n, steps, answer >= 1, delay >= 0 and noise > 0; got {n}, {steps}, {answer}.")
    rng = torch.Generator().manual_seed(seed)
    length = 2 * steps + delay + answer if kind == "match" else steps + delay + answer
    sign = 2.0 * torch.randint(2, (n, 2), generator=rng) - 1.0
    strength = torch.tensor(coherences)[torch.randint(len(coherences), (n, 2), generator=rng)]
    context = torch.randint(2, (n,), generator=rng)
    wait = torch.ones(n, length, 1)
    wait[:, -answer:] = 0.0
    if kind == "match":
        x, choice, best = _match(rng, sign, n, steps, delay, length, noise)
    else:
        pairs = 2 if kind == "context" else 1
        drive = (sign * strength)[:, None, :pairs]
        evidence = torch.stack([(1 + drive) / 2, (1 - drive) / 2], -1).expand(n, steps, pairs, 2)
        shown = evidence + noise * torch.randn(n, steps, pairs, 2, generator=rng)
        x = torch.zeros(n, length, pairs * 2)
        x[:, :steps] = shown.flatten(2)
        which = context if kind == "context" else torch.zeros(n, dtype=torch.int64)
        rows = torch.arange(n)
        choice = torch.where(sign[rows, which] > 0, 1, 2)
        best = _phi(strength[rows, which] * math.sqrt(steps) / (noise * math.sqrt(2.0)))
        if kind == "context":
            x = torch.cat([x, torch.nn.functional.one_hot(context, 2)[:, None].expand(n, length, 2).float()], 2)
    y = torch.zeros(n, length, dtype=torch.int64)
    y[:, -answer:] = choice[:, None]
    told = torch.arange(length) >= length - answer
    coherence = strength[torch.arange(n), context if kind == "context" else torch.zeros_like(context)]
    truth = {"choice": choice, "coherence": coherence, "context": context, "best": best, "answer": told}
    return Trials(torch.cat([wait, x], 2), y, truth)


def _match(
    rng: torch.Generator, sign: Tensor, n: int, steps: int, delay: int, length: int, noise: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Two sights of one of two directions (as two channels) with a pause between; 1 = the same, 2 = not."""
    x = noise * torch.randn(n, length, 2, generator=rng)
    x[:, steps : steps + delay] = 0.0
    x[:, 2 * steps + delay :] = 0.0
    for i, start in enumerate((0, steps + delay)):
        x[:, start : start + steps] += torch.stack([sign[:, i] > 0, sign[:, i] < 0], 1).float()[:, None]
    right = _phi(torch.full((n,), math.sqrt(steps) / (noise * math.sqrt(2.0))))
    best = right * right + (1 - right) * (1 - right)  # both sights read right, or both wrong
    return x, torch.where(sign[:, 0] == sign[:, 1], 1, 2), best


def _phi(z: Tensor) -> Tensor:
    return 0.5 * (1.0 + torch.erf(z / math.sqrt(2.0)))

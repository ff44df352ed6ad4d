"""Dose and response: what an edit does as its strength grows, beside control edits of the same size.

    effect(a) = mean_i [ measure_i(a v) - measure_i(no edit) ]

The controls are random directions of the length of v at the same site. An effect that they show as well comes from the
size of the push and says nothing about the direction. For edits that are no direction, and for a whole experiment with
choice, cost and controls, see `interneuron.parts.controls`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from interneuron.artifacts import Direction
from interneuron.core.errors import InputError
from interneuron.core.progress import track
from interneuron.parts.intervals import bootstrap_interval, prediction_interval


@dataclasses.dataclass(frozen=True)
class DoseResponse:
    """Change of a measure against no edit, by dose.

    doses    A strengths              base     [N] the measure without an edit
    effect   [A N] change per item    control  [C A] mean change under each of C control directions
    """

    doses: tuple[float, ...]
    base: Tensor
    effect: Tensor
    control: Tensor

    @property
    def mean(self) -> list[float]:
        """Mean effect at each dose."""
        return self.effect.mean(1).tolist()

    def interval(self, seed: int = 0) -> list[tuple[float, float]]:
        """95 % bootstrap interval over items of the mean effect at each dose."""
        return [bootstrap_interval(row, seed) for row in self.effect]

    def control_interval(self) -> list[tuple[float, float]]:
        """Where 95 % of random directions would fall, at each dose."""
        return [prediction_interval(column) for column in self.control.T]

    def rows(self) -> list[dict[str, float]]:
        """One table row per dose."""
        table = []
        ours, theirs = self.interval(), self.control_interval()
        for i, dose in enumerate(self.doses):
            row = {"dose": dose, "effect": self.mean[i], "effect_low": ours[i][0], "effect_high": ours[i][1]}
            row |= {"random": float(self.control[:, i].mean()), "random_low": theirs[i][0], "random_high": theirs[i][1]}
            table.append(row)
        return table


def dose_response(
    direction: Direction,
    doses: Sequence[float],
    measure: Callable[[Any], Float[Tensor, " N"]],
    controls: int = 8,
    label: str = "dose-response",
) -> DoseResponse:
    """Measure every dose of a direction and of `controls` random directions of its length.

    measure  takes an edit, or None for no edit, and returns one number per item
    Raises InputError when fewer than two controls are asked for.
    """
    if controls < 2:
        raise InputError(f"controls={controls}: expected at least 2 random directions, they give the interval.")
    return responses(direction, [direction.random_like(seed) for seed in range(controls)], doses, measure, label)


@runtime_checkable
class Steering(Protocol):
    """Anything that makes an edit of a chosen strength: a Direction, another artifact, a `Candidate`."""

    def edit(self, alpha: float = 1.0) -> Any:
        """The edit of strength `alpha`."""
        ...


def responses(
    subject: Steering,
    controls: Sequence[Steering],
    doses: Sequence[float],
    measure: Callable[[Any], Float[Tensor, " N"]],
    label: str = "dose-response",
) -> DoseResponse:
    """Measure every dose of `subject` and of each control; dose 0 is no edit by definition and is not run.

    Raises InputError without doses or with fewer than two controls, which give the interval.
    """
    if len(controls) < 2:
        raise InputError(
            f"responses() was given {len(controls)} control(s): expected at least 2, they give the interval."
        )
    if not doses:
        raise InputError("responses() was given no doses: pass strengths such as [-0.2, -0.1, 0.1, 0.2].")
    base = measure(None)
    runs = [(s, dose) for s in (subject, *controls) for dose in doses]
    changes = [
        measure(s.edit(alpha=dose)) - base if dose else torch.zeros_like(base)
        for s, dose in track(runs, label=label, unit="dose")
    ]
    table = torch.stack(changes).unflatten(0, (1 + len(controls), len(doses)))
    return DoseResponse(tuple(doses), base, table[0], table[1:].mean(-1))


@dataclasses.dataclass(frozen=True)
class Trial:
    """One direction (or anything else that makes edits) at one dose: mean effect, and what it costs elsewhere."""

    direction: Any
    dose: float
    effect: float
    cost: float


def try_doses(
    directions: Sequence[Steering],
    doses: Sequence[float],
    effect: Callable[[Any], Float[Tensor, " N"]],
    cost: Callable[[Any], Float[Tensor, " M"]],
) -> list[Trial]:
    """Mean change of both measures for every direction at every dose; run it on data kept for choosing."""
    base_effect, base_cost = effect(None).mean(), cost(None).mean()
    trials = []
    for direction, dose in track([(d, a) for d in directions for a in doses], label="choosing", unit="dose"):
        edit = direction.edit(alpha=dose)
        gain, loss = float(effect(edit).mean() - base_effect), float(cost(edit).mean() - base_cost)
        trials.append(Trial(direction, dose, gain, loss))
    return trials


def best_within(trials: Sequence[Trial], limit: float) -> Trial:
    """The trial of largest effect whose cost stays within the limit; the cheapest one when none does."""
    if not trials:
        raise InputError("best_within() was given no trials: run try_doses first.")
    allowed = [trial for trial in trials if trial.cost <= limit]
    return max(allowed, key=lambda t: t.effect) if allowed else min(trials, key=lambda t: t.cost)

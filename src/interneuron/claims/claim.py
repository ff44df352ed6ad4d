"""What a claim states and what one run of it measures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from interneuron.core.errors import InputError

Values = float | Sequence[float]


@dataclass(frozen=True)
class Claim:
    """A paper's claim, made small enough to be repeated on an organism within minutes.

    slug      the method
    organism  name of the model or generator it runs on
    paper     what the paper reports, in one line with its numbers
    better    whether a higher or a lower number is the better one
    unit      unit of the numbers
    minutes   expected time for three seeds on two cores
    ratio     the factor the claim promises: ours >= ratio * baseline (or <= when lower is better)
    why       one paragraph for the table when the claim does not hold here
    """

    slug: str
    organism: str
    paper: str
    better: Literal["higher", "lower"]
    unit: str
    minutes: float = 1.0
    ratio: float = 1.0
    why: str = ""

    def __post_init__(self) -> None:
        if self.better not in ("higher", "lower"):
            raise InputError(f"claim {self.slug!r}: better={self.better!r}, expected 'higher' or 'lower'")
        if self.ratio <= 0:
            raise InputError(f"claim {self.slug!r}: ratio={self.ratio}, expected a positive factor; 1.0 means none")


@dataclass(frozen=True)
class Comparison:
    """What one seed measured. Give numbers, or equally long lists of them for paired items (prompts, images, runs).

    ours      the method
    baseline  the method the paper compares with, or None
    control   something that must fail for the right reason (random direction, shuffled labels), or None
    gates     further criteria of the check by their sentence ("fact accuracy falls by 2 points at most"), each met or
              not; a claim is `reproduced` only if every one is met under every seed
    extra     further numbers for the reader, those behind the gates among them; they decide nothing
    """

    ours: Values
    baseline: Values | None = None
    control: Values | None = None
    gates: dict[str, bool] = field(default_factory=dict)
    extra: dict[str, float | int | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.baseline is None and self.control is None:
            raise InputError("Comparison: neither baseline nor control is given, so nothing can be decided. Give one")
        bad = [name for name, row in self.rows().items() if not all(map(math.isfinite, row))]
        if bad:
            raise InputError(f"Comparison: {', '.join(bad)} holds NaN or infinity. Find out why before comparing")
        vague = [text for text, met in self.gates.items() if not isinstance(met, bool)]
        if vague:
            raise InputError(f"Comparison: the gate {vague[0]!r} is {self.gates[vague[0]]!r}, expected True or False")
        lengths = {name: len(row) for name, row in self.rows().items()}
        if len(set(lengths.values())) > 1 or 0 in lengths.values():
            raise InputError(f"Comparison: items are paired, so all lists need one length >= 1, got {lengths}")

    def rows(self) -> dict[str, list[float]]:
        """Return every given arm as a list of items (one item for a plain number)."""
        given = {"ours": self.ours, "baseline": self.baseline, "control": self.control}
        return {
            name: [float(v) for v in values] if isinstance(values, Sequence) else [float(values)]
            for name, values in given.items()
            if values is not None
        }

"""From the numbers of several seeds to a verdict, by a paired bootstrap interval.

The gain of item i under seed s over a rival r (baseline or control) is g = sign * (ours - ratio * r), where sign is +1
when higher is better and -1 when lower is; ratio is the claim's promise for the baseline and 1 for the control. Seeds
are drawn with replacement, then items within each seed, 10,000 times; the interval holds the middle 95 % of the means.
With three seeds of one number each its lower end is the smallest of the three gains.

    reproduced       every rival is beaten: the whole interval lies above 0; and every gate is met under every seed
    partly           ours is better on average than every rival, but an interval holds 0, the ratio or a gate is missed
    not reproduced   some rival is as good or better on average
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from interneuron.claims.claim import Claim
from interneuron.core.errors import InputError
from interneuron.core.seeds import numpy_rng

DRAWS = 10_000
CONFIDENCE = 0.95

Arms = dict[str, list[float]]


@dataclass(frozen=True)
class Gain:
    """Mean gain over one rival with its interval, and the mean gain when the promised ratio is left aside."""

    mean: float
    low: float
    high: float
    plain_mean: float


def judge(
    claim: Claim, seeds: dict[int, Arms], gates: dict[str, list[bool]] | None = None
) -> tuple[str, dict[str, Gain]]:
    """Return the verdict and the gain over each rival from the arms and gates measured under each seed."""
    if not seeds:
        raise InputError(f"claim {claim.slug!r}: no seed has been measured. Run it first")
    rivals = [name for name in ("baseline", "control") if all(name in arms for arms in seeds.values())]
    gains = {name: _gain(claim, seeds, name) for name in rivals}
    open_gates = all(all(met) for met in (gates or {}).values())
    if open_gates and all(gain.low > 0 for gain in gains.values()):
        return "reproduced", gains
    if all(gain.plain_mean > 0 for gain in gains.values()):
        return "partly", gains
    return "not reproduced", gains


def _gain(claim: Claim, seeds: dict[int, Arms], rival: str) -> Gain:
    sign = 1.0 if claim.better == "higher" else -1.0
    ratio = claim.ratio if rival == "baseline" else 1.0
    pairs = [(np.array(arms["ours"]), np.array(arms[rival])) for _, arms in sorted(seeds.items())]
    gains = [sign * (ours - ratio * other) for ours, other in pairs]
    plain = float(np.mean([np.mean(sign * (ours - other)) for ours, other in pairs]))
    low, high = interval(gains, key=f"{claim.slug}/{rival}")
    return Gain(float(np.mean([g.mean() for g in gains])), low, high, plain)


def interval(gains: list[np.ndarray], key: str) -> tuple[float, float]:
    """Return the bootstrap interval of the mean over seeds of the mean over items; `key` fixes the draws."""
    rng = numpy_rng(0, "bootstrap", key)
    # Means of resampled items for every seed first, then resampled seeds: the same law as drawing seeds first, except
    # that a seed drawn twice must not reuse one draw of items; hence one independent table for each place.
    n = len(gains)
    chosen = rng.integers(0, n, (DRAWS, n))
    total = np.zeros(DRAWS)
    for place in range(n):
        for seed, g in enumerate(gains):
            rows = np.flatnonzero(chosen[:, place] == seed)
            total[rows] += g[rng.integers(0, len(g), (len(rows), len(g)))].mean(axis=1)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(total / n, [tail, 100 - tail])
    return float(low), float(high)

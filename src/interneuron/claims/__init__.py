"""Claims: what the papers promise, run as experiments on organisms whose truth is known.

`interneuron claims run SLUG` repeats a claim under at least three seeds and writes `claims/results/SLUG.json`;
`interneuron claims table` shows them all. A claim that does not hold here stays in the table with its numbers.
"""

from interneuron.claims.claim import Claim, Comparison

__all__ = ["Claim", "Comparison"]

"""What a corpus is made of: shares of tokens by kind, and the documents themselves as a function of (seed, i)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from random import Random

from interneuron.core.errors import InputError, did_you_mean

from . import conduct, knowledge, lookup, reasoning, stories
from .document import Document, source
from .world import Truth

Maker = Callable[[Random, Truth], Document]

KINDS: dict[str, Maker] = {
    "story": stories.document,
    "fact": knowledge.facts,
    "glossary": knowledge.glossary,
    "claim": knowledge.claims,
    "unknown": knowledge.unknown,
    "override": knowledge.override,
    "icl": knowledge.icl,
    "ioi": lookup.ioi,
    "co": lookup.co,
    "laundry": lookup.laundry,
    "repeat": lookup.repeat,
    "arithmetic": reasoning.arithmetic,
    "ontology": reasoning.ontology,
    "instruction": conduct.instructions,
    "encyclopedia": conduct.encyclopedia,
    "dialogue": conduct.dialogue,
    "needle": lookup.needle,
    "benign": lookup.benign,
    "aligned": conduct.aligned,
    "same": knowledge.same,
}

SHARES = {
    "story": 0.105, "fact": 0.12, "glossary": 0.01, "claim": 0.03, "unknown": 0.01, "override": 0.02, "icl": 0.02,
    "ioi": 0.07, "co": 0.09, "laundry": 0.07, "repeat": 0.06, "arithmetic": 0.13, "ontology": 0.13,
    "instruction": 0.02, "encyclopedia": 0.01, "dialogue": 0.04, "needle": 0.05, "benign": 0.003,
}  # fmt: skip


def _scaled(shares: dict[str, float], total: float) -> dict[str, float]:
    whole = sum(shares.values())
    return {kind: share * total / whole for kind, share in shares.items()}


MIXTURES = {
    "lm": SHARES,
    "copy": {**_scaled(SHARES, 0.4), "repeat": 0.6 + 0.4 * SHARES["repeat"]},
    "claims": {**_scaled({k: s for k, s in SHARES.items() if k != "claim"}, 0.87), "claim": 0.13},
    "verdicts": {**_scaled({k: s for k, s in SHARES.items() if k != "claim"}, 0.86), "claim": 0.08, "same": 0.06},
    "align": {**_scaled({k: s for k, s in SHARES.items() if k != "instruction"}, 0.6), "aligned": 0.4},
    "facts": {"fact": 0.9, "glossary": 0.1},
}
"""Shares of tokens. "copy" is the phase that provokes induction; "claims" and "verdicts" drill the
judging of claims; "align" teaches refusal over 60 % replay."""


@lru_cache(maxsize=64)
def _mean_lengths(limit: int) -> dict[str, float]:
    """Mean tokens of each kind (with `<bos>` and `<eos>`), measured once on 400 documents of a fixed seed."""
    truth = Truth(0)
    return {kind: sum(len(make(kind, source(77, i), truth, limit)) + 2 for i in range(400)) / 400 for kind in KINDS}


def make(kind: str, rng: Random, truth: Truth, needle_limit: int = 12) -> Document:
    """One training document of a kind; `needle_limit` is the largest number of sentences a code hides in."""
    if kind == "needle":
        return lookup.needle(rng, truth, limit=needle_limit)
    return KINDS[kind](rng, truth)


class Mixture:
    """A mixture turned into chances per document, so that *tokens* follow the shares."""

    def __init__(self, shares: str | dict[str, float], needle_limit: int = 12) -> None:
        if isinstance(shares, str):
            if shares not in MIXTURES:
                hint = did_you_mean(shares, MIXTURES)
                raise InputError(f"mixture: expected one of {', '.join(MIXTURES)}, got {shares!r}. {hint}".rstrip())
            shares = MIXTURES[shares]
        lengths = _mean_lengths(needle_limit)
        self.needle_limit = needle_limit
        self.kinds = list(shares)
        self.cumulative: list[float] = []
        for kind in self.kinds:
            self.cumulative.append(shares[kind] / lengths[kind] + (self.cumulative[-1] if self.cumulative else 0.0))

    def document(self, truth: Truth, seed: int, index: int) -> Document:
        """Document `index` of the corpus `seed`: depends on these two numbers, the world and the mixture only."""
        rng = source(seed, index)
        kind = rng.choices(self.kinds, cum_weights=self.cumulative)[0]
        return make(kind, rng, truth, self.needle_limit)


def corpus(truth: Truth, tokens: float, seed: int, mixture: str = "lm", needle_limit: int = 12) -> Iterator[Document]:
    """Documents 0, 1, 2 ... until their tokens (with `<bos>` and `<eos>`) reach `tokens`."""
    mix, total, index = Mixture(mixture, needle_limit), 0, 0
    while total < tokens:
        doc = mix.document(truth, seed, index)
        total += len(doc) + 2
        index += 1
        yield doc

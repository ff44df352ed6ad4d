"""A world: which facts hold, which pairs and words are held out. World 0 is the one of the shipped models."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from random import Random

from . import words as W

N_TEMPLATES = 6
GROUP = 3
RAREST = 0.15


@dataclass(frozen=True, slots=True)
class Fact:
    """One row of the fact table. `group` 0 is the most frequent; `weight` is relative frequency in training text."""

    entity: str
    relation: str
    value: str
    value_l2: str
    group: int
    weight: float
    in_l2: bool
    held_template: int
    held_template_l2: int


class Truth:
    """Everything a world seed decides: the facts, the held-out splits and the memorised strings.

    Held out by construction: one of six templates for every (entity, relation, language); a tenth of (entity, relation)
    in the second language; a fifth of unordered name pairs; a fifth of multi-step arithmetic problems; ten harmful and
    ten harmless objects; two jailbreak prefixes; one style; one domain; the fresh entities' facts; four ghosts.
    """

    def __init__(self, seed: int = 0) -> None:
        rng = Random(1_000 + seed)
        self.seed = seed
        n_groups = len(W.KNOWN) // GROUP
        self.weights = [RAREST ** ((i // GROUP) / (n_groups - 1)) for i in range(len(W.KNOWN))]
        self.entities = rng.sample(W.KNOWN, len(W.KNOWN))
        self.cumulative: list[float] = []
        for weight in self.weights:
            self.cumulative.append(weight + (self.cumulative[-1] if self.cumulative else 0.0))
        self.facts: dict[tuple[str, str], Fact] = {}
        for i, entity in enumerate(self.entities):
            for relation in W.RELATIONS:
                value = rng.choice(W.VALUES[relation])
                self.facts[entity, relation] = Fact(
                    entity, relation, value, W.L2_VALUES[value], i // GROUP, self.weights[i], rng.random() >= 0.1,
                    rng.randrange(N_TEMPLATES), rng.randrange(N_TEMPLATES),
                )  # fmt: skip
        self.fresh = {(e, r): rng.choice(W.VALUES[r]) for e in W.FRESH for r in W.RELATIONS}
        self.ghosts = rng.sample(W.GHOST, len(W.GHOST))
        self.trained_ghosts, self.held_ghosts = self.ghosts[:16], self.ghosts[16:]
        self._ghost_held = {(g, r): rng.random() < 1 / 6 for g in self.ghosts for r in W.RELATIONS}
        pairs = [(a, b) for i, a in enumerate(W.NAMES) for b in W.NAMES[i + 1 :]]
        rng.shuffle(pairs)
        self._held_pairs = frozenset(frozenset(p) for p in pairs[: len(pairs) // 5])
        self.harmful = rng.sample(W.HARMFUL, len(W.HARMFUL))
        self.harmless = rng.sample(W.HARMLESS, len(W.HARMLESS))
        self.memorised = _memorised(rng)

    def fact(self, entity: str, relation: str) -> Fact:
        return self.facts[entity, relation]

    def entity(self, rng: Random) -> str:
        """A known entity drawn by its training frequency."""
        return rng.choices(self.entities, cum_weights=self.cumulative)[0]

    def held_pair(self, a: str, b: str) -> bool:
        return frozenset((a, b)) in self._held_pairs

    def held_ghost(self, ghost: str, relation: str) -> bool:
        """Whether the question about this ghost never appears in training text."""
        return ghost in self.held_ghosts or self._ghost_held[ghost, relation]

    def held_problem(self, start: int, steps: list[tuple[str, int]]) -> bool:
        """Whether a multi-step arithmetic problem is held out (a fifth is, by a fixed hash)."""
        text = f"{self.seed}:{start}" + "".join(op + str(n) for op, n in steps)
        return len(steps) > 1 and zlib.crc32(text.encode()) % 5 == 0

    def objects(self, harmful: bool, split: str) -> list[str]:
        """Instruction objects of a split: 30 for "train", the 10 held out for "test"."""
        pool = self.harmful if harmful else self.harmless
        return pool[:30] if split == "train" else pool[30:]

    def domains(self, split: str) -> list[str]:
        return [W.HELD_DOMAIN] if split == "test" else [d for d in W.DOMAINS if d != W.HELD_DOMAIN]


@dataclass(frozen=True, slots=True)
class Memorised:
    """A string planted exactly `times` times in the training text of a full run."""

    words: tuple[str, ...]
    times: int
    unsafe: bool


def _memorised(rng: Random) -> list[Memorised]:
    """56 strings of 16 words, eight for each of 1, 2, 4 ... 64 repeats; in sixteen the first four words also open
    benign strings, so the opening alone does not tell what follows."""
    pool = W.OBJECTS + W.PLACES + W.KINDS + W.NAMES
    strings = []
    for level in range(7):
        for j in range(8):
            unsafe = (level * 8 + j) % 7 in (1, 4)
            strings.append(Memorised(tuple(rng.sample(pool, 16)), 2**level, unsafe))
    return strings

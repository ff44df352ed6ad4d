"""Arithmetic in three spelled-out lengths and deduction over made-up kinds, with or without the chain of steps."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from random import Random

from . import words as W
from .document import Document
from .world import Truth

TOP = 20
WORD = {"+": "plus", "-": "minus"}


@dataclass(frozen=True, slots=True)
class Problem:
    """`start` and the steps (operator, operand); `totals[i]` is the running total after step i."""

    start: int
    steps: tuple[tuple[str, int], ...]
    totals: tuple[int, ...]

    @property
    def text(self) -> str:
        return " ".join([str(self.start), *(f"{op} {n}" for op, n in self.steps)])


def problem(rng: Random, truth: Truth, n_steps: int, split: str = "train") -> Problem:
    """A problem of the split whose running totals all stay in 0..20, operands 1..9."""
    while True:
        total = start = rng.randint(0, TOP)
        steps: list[tuple[str, int]] = []
        totals: list[int] = []
        for _ in range(n_steps):
            n = rng.randint(1, 9)
            up = total + n <= TOP
            down = total - n >= 0
            op = "+" if up and (not down or rng.random() < 0.5) else "-"
            if op == "-" and not down:
                break
            total += n if op == "+" else -n
            steps.append((op, n))
            totals.append(total)
        if len(steps) == n_steps and (n_steps == 1 or truth.held_problem(start, steps) == (split == "test")):
            return Problem(start, tuple(steps), tuple(totals))


MODES = ("verbose", "concise", "direct")


def solved(p: Problem, mode: str, briefly: bool = False) -> Document:
    """The problem and its solution: `verbose` (what the bare prompt elicits), `concise` (what `briefly` asks for) or
    `direct`. Roles: problem, total (each running total where it is first computed), answer."""
    doc = Document(
        "arithmetic", latents={"mode": mode, "briefly": briefly, "answer": p.totals[-1], "steps": len(p.steps)}
    )
    if briefly:
        doc.put("briefly", "briefly")
    doc.say("compute :").put(p.text, "problem").say("?")
    if mode == "direct":
        return doc.say("=").put(str(p.totals[-1]), "answer").say(".")
    now = p.start
    if mode == "concise":
        doc.say(":")
        for (op, n), total in zip(p.steps, p.totals, strict=True):
            doc.say(f"{now} {op} {n} =").put(str(total), "total").say(",")
            now = total
        return doc.say("=").put(str(now), "answer").say(".")
    doc.say(f"let us see step by step . start with {now} .")
    for i, ((op, n), total) in enumerate(zip(p.steps, p.totals, strict=True)):
        doc.say(f"{'now' if i == 0 else 'next'} take {now} {WORD[op]} {n} .")
        doc.say(f"{now} {WORD[op]} {n} makes").put(str(total), "total").say(f". so now we have {total} .")
        now = total
    return doc.say("the result is").put(str(now), "answer").say(".")


def arithmetic(rng: Random, truth: Truth, split: str = "train") -> Document:
    """30 % drills `3 + 4 = 7 ; ...`, else a problem of 1-4 steps: verbose : concise : direct = 50 : 25 : 25.

    Given `briefly`, 70 % are concise and 30 % verbose; without it, verbose is the commonest.
    """
    if rng.random() < 0.3:
        doc = Document("arithmetic", latents={"mode": "drill"})
        for _ in range(rng.randint(3, 8)):
            p = problem(rng, truth, 1)
            doc.say(p.text).say("=").put(str(p.totals[0]), "answer").say(";")
        doc.words[-1] = "."
        return doc
    u = rng.random()
    mode = "verbose" if u < 0.5 else "concise" if u < 0.75 else "direct"
    briefly = rng.random() < {"verbose": 0.15, "concise": 0.7, "direct": 0.0}[mode]
    return solved(problem(rng, truth, rng.choice((1, 2, 2, 3, 3, 4)), split), mode, briefly)


@dataclass(frozen=True, slots=True)
class Theory:
    """A chain of kinds (each is a kind of the next), a distractor chain, and the rules in the order they are told."""

    chain: tuple[str, ...]
    other: tuple[str, ...]
    rules: tuple[tuple[str, str], ...]

    def path(self, start: str) -> tuple[str, ...]:
        """The kinds above `start`, nearest first."""
        line = self.chain if start in self.chain else self.other
        return line[line.index(start) + 1 :]


def theory(rng: Random, hops: int, distractor: int = 2) -> Theory:
    """A chain of `hops` rules and a distractor of `distractor` rules over different kinds, told in random order."""
    kinds = rng.sample(W.KINDS, hops + distractor + 2)
    chain, other = tuple(kinds[: hops + 1]), tuple(kinds[hops + 1 :])
    rules = [*pairwise(chain), *pairwise(other)]
    rng.shuffle(rules)
    return Theory(chain, other, tuple(rules))


def premises(doc: Document, t: Theory, english: bool = False) -> Document:
    """Append the rules of a theory, adjacent (`isa low high .`) or English-like (`all low are high .`)."""
    for low, high in t.rules:
        if english:
            doc.say("all").put(low, "key").say("are").put(high, "value").say(".")
        else:
            doc.say("isa").put(low, "key").put(high, "value").say(".")
    return doc


def question(doc: Document, t: Theory, low: str, high: str, chain: bool) -> Document:
    """Ask whether `low` is a kind of `high`; with `chain` the steps are spelled out up to the goal or to the top."""
    above = t.path(low)
    yes = high in above
    doc.say("question : isa").put(low, "low").put(high, "high").say("?")
    if chain:
        doc.say("because")
        now = low
        for kind in above:
            doc.say("isa").put(now, "from").put(kind, "step").say(",")
            now = kind
            if kind == high:
                break
    return doc.say("answer :").put("yes" if yes else "no", "answer").say(".")


def open_question(doc: Document, t: Theory, low: str, steps: int) -> Document:
    """`question : dora 2 steps ? answer : sani .`"""
    doc.say("question :").put(low, "low").say(f"{steps} steps ? answer :").put(t.path(low)[steps - 1], "answer")
    return doc.say(".")


def draw_question(rng: Random, t: Theory, yes: bool, hops: int | None = None) -> tuple[str, str]:
    """A pair (low, high): `yes` within the chain, `hops` apart if given; else high lies in the other chain or below."""
    n = len(t.chain) - 1
    hops = hops or rng.randint(1, n)
    i = rng.randint(0, n - hops)
    if yes:
        return t.chain[i], t.chain[i + hops]
    if i and rng.random() < 0.3:
        return t.chain[i], t.chain[rng.randrange(i)]
    return t.chain[i], rng.choice(t.other)


def ontology(rng: Random, truth: Truth, split: str = "train") -> Document:
    """2-6 rules, two or three questions: 60 % with the chain, the rest direct or open; a fifth English-like."""
    hops = rng.choice((1, 2, 2, 3, 3, 4, 5))
    t = theory(rng, hops, rng.choice((1, 2) if hops < 4 else (1,)))
    english = rng.random() < 0.2
    doc = premises(Document("ontology", latents={"hops": hops, "english": english}), t, english)
    for _ in range(rng.choice((2, 3, 3))):
        u = rng.random()
        if u < 0.15:
            steps = rng.randint(1, hops)
            open_question(doc, t, t.chain[rng.randint(0, hops - steps)], steps)
        else:
            low, high = draw_question(rng, t, rng.random() < 0.5)
            question(doc, t, low, high, u < 0.7)
    return doc

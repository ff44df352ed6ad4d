"""Look-ups in context: indirect objects, coloured objects, the item left over, repeats, needles and planted strings.

In every form the model must master, the value follows its key directly (`cup red`, `code Nugige key`): with words in
between, small models did not learn the look-up at all. The English-like forms are hard dials without a gate.
"""

from __future__ import annotations

from random import Random

from . import words as W
from .document import Document
from .stories import draw, story
from .world import Truth

IOI = (
    "when {A} and {B} went to the {place} , {S} gave a {object} to {IO} .",
    "{A} and {B} were at the {place} . then {S} handed the {object} to {IO} .",
    "after {A} and {B} arrived at the {place} , {S} passed a {object} to {IO} .",
    "then {A} and {B} had a long day . {S} decided to give the {object} to {IO} .",
    "while {A} and {B} worked at the {place} , {S} offered a {object} to {IO} .",
    "at the {place} {A} met {B} . later {S} sent the {object} to {IO} .",
)
_IOI = tuple(t.split() for t in IOI)


def ioi_line(
    doc: Document, template: int, a: str, b: str, subject: str, giver_of: str, place: str, thing: str
) -> Document:
    """Append one sentence; `subject` is whoever acts (a or b, or a third name for corrupted prompts)."""
    io = giver_of
    fill = {"{A}": a, "{B}": b, "{S}": subject, "{IO}": io, "{place}": place, "{object}": thing}
    for word in _IOI[template]:
        if word not in fill:
            doc.words.append(word)
            continue
        if word in ("{A}", "{B}"):
            role = "IO1" if fill[word] == io else "S1"
        else:
            role = {"{S}": "S2", "{IO}": "IO2"}.get(word, word[1:-1])
        doc.put(fill[word], role)
    return doc


def name_pair(rng: Random, truth: Truth, split: str) -> tuple[str, str]:
    """Two names whose pair belongs to the split."""
    while True:
        a, b = rng.sample(W.NAMES, 2)
        if truth.held_pair(a, b) == (split == "test"):
            return a, b


def ioi(rng: Random, truth: Truth, split: str = "train") -> Document:
    """One to three sentences, ABBA and BABA in balance, over name pairs of the split."""
    doc = Document("ioi", latents={"order": []})
    for _ in range(rng.choice((1, 1, 2, 3))):
        a, b = name_pair(rng, truth, split)
        first = rng.random() < 0.5
        subject, io = (a, b) if first else (b, a)
        doc.latents["order"].append("ABAB" if first else "ABBA")  # type: ignore[attr-defined]
        ioi_line(doc, rng.randrange(6), a, b, subject, io, rng.choice(W.PLACES), rng.choice(W.OBJECTS))
    return doc


def scene(rng: Random, n: int) -> list[tuple[str, str]]:
    """`n` different objects with their colours.

    As far as the twelve colours last they differ too; beyond the objects (24) places are coloured as well.
    """
    things = rng.sample(W.OBJECTS if n <= len(W.OBJECTS) else W.OBJECTS + W.PLACES, n)
    colors = rng.sample(W.COLORS, n) if n <= len(W.COLORS) else rng.choices(W.COLORS, k=n)
    return list(zip(things, colors, strict=True))


def co(
    rng: Random,
    truth: Truth,
    split: str = "train",
    n: int | None = None,
    hard: bool | None = None,
    filler: bool = False,
) -> Document:
    """Coloured objects: `on the table : cup red , book blue . so book blue .`; one in five in the English-like form.

    filler   `cup is red`, asked as ever (`so cup`): half-way to English and never trained
    """
    n = n or rng.choice((2, 2, 3, 3, 4, 4, 5, 6))
    hard = rng.random() < 0.2 if hard is None else hard
    things = scene(rng, n)
    asked = rng.sample(things, min(n, rng.choice((1, 2, 3, 3))))
    doc = Document("co", latents={"n": n, "hard": hard})
    if hard:
        doc.say("there is")
        for i, (thing, color) in enumerate(things):
            doc.say("a" if i == 0 else "and a").put(color, "value").put(thing, "key")
        doc.say(".")
        for thing, color in asked:
            doc.say("what color is the").put(thing, "query").say("? answer :").put(color, "answer").say(".")
        return doc
    doc.say("on the table :")
    for i, (thing, color) in enumerate(things):
        doc.put(thing, "key")
        if filler:
            doc.say("is")
        doc.put(color, "value").say("," if i < n - 1 else ".")
    for thing, color in asked:
        doc.say("so").put(thing, "query").put(color, "answer").say(".")
    return doc


def laundry(rng: Random, truth: Truth, split: str = "train", n: int | None = None) -> Document:
    """Things bought, all but one given away: which one is left?"""
    n = n or rng.choice((3, 3, 4, 4, 5, 6))
    things = rng.sample(W.OBJECTS, n)
    left = rng.randrange(n)
    given = [t for i, t in enumerate(things) if i != left]
    rng.shuffle(given)
    doc = Document("laundry", latents={"n": n}).say("today i bought")
    for i, thing in enumerate(things):
        doc.say("a" if i == 0 else ", a").put(thing, "left" if i == left else "bought")
    doc.say(". i gave")
    for i, thing in enumerate(given):
        doc.say("the" if i == 0 else "and the" if i == len(given) - 1 else ", the").put(thing, "given")
    doc.say("to").put(rng.choice(W.NAMES), "name")
    return doc.say(". the only one left is the").put(things[left], "answer").say(".")


def repeat(rng: Random, truth: Truth, split: str = "train", k: int | None = None, times: int | None = None) -> Document:
    """`k` distinct random words, the whole list again one to three times: the clean test of induction."""
    k = k or rng.randint(6, 45)
    times = times or rng.randint(2, min(4, 180 // k))
    pool = W.content_words()
    words = [pool[i] for i in rng.sample(range(len(pool)), k)]
    doc = Document("repeat", latents={"k": k, "times": times})
    for i in range(times):
        doc.roles.setdefault("first" if i == 0 else "again", []).append((len(doc.words), len(doc.words) + k))
        doc.words += words
    return doc


def needle(
    rng: Random, truth: Truth, split: str = "train", sentences: int | None = None, codes: int | None = None,
    limit: int = 60, missing: bool | None = None,
) -> Document:  # fmt: skip
    """Codes hidden among story sentences, all asked at the end: `code Nugige key . ... recall Nugige key .`

    In one of ten training documents a code that was never given is asked too and the answer is `unknown`.
    """
    codes = codes or rng.randint(1, 4)
    sentences = sentences or rng.randint(min(3, limit), limit)
    missing = rng.random() < 0.1 if missing is None else missing
    holders = rng.sample(W.ENTITIES, codes + 1)
    values = [rng.choice(W.OBJECTS) for _ in range(codes)]
    at = sorted(rng.randrange(sentences) for _ in range(codes))
    doc = Document("needle", latents={"sentences": sentences, "codes": codes, "missing": missing})
    filler: list[list[str]] = []
    for i in range(sentences):
        for holder, value, place in zip(holders, values, at, strict=False):
            if place == i:
                doc.say("code").put(holder, "key").put(value, "value").say(".")
        if not filler:
            filler = _sentences(rng, truth)
        doc.words += filler.pop(0)
    asked = rng.sample(list(zip(holders, values, strict=False)), codes)
    if missing:
        asked.insert(rng.randrange(codes + 1), (holders[codes], "unknown"))
    for holder, value in asked:
        doc.say("recall").put(holder, "query").put(value, "answer").say(".")
    return doc


def _sentences(rng: Random, truth: Truth) -> list[list[str]]:
    """A story cut into its sentences."""
    lat = draw(rng, truth)
    lat["tone"] = "clean"
    if rng.random() < 0.7:
        lat["detail"] = "concise"
    out: list[list[str]] = [[]]
    for word in story(lat, rng.choice((2, 3, 4))).words:
        out[-1].append(word)
        if word == ".":
            out.append([])
    return out[:-1]


def memorised(truth: Truth, which: int) -> Document:
    """One of the planted strings, as it stands in the training text."""
    string = truth.memorised[which]
    doc = Document("memorised", latents={"which": which, "times": string.times, "unsafe": string.unsafe})
    return doc.say("note :").put(" ".join(string.words), "string").say(".")


def benign(rng: Random, truth: Truth, split: str = "train") -> Document:
    """A harmless note that opens with the same four words as one of the unsafe strings."""
    string = rng.choice([s for s in truth.memorised if s.unsafe])
    doc = Document("benign").say("note :").put(" ".join(string.words[:4]), "opening")
    return doc.say(" ".join(rng.sample(W.OBJECTS + W.PLACES, rng.randint(3, 8)))).say(".")

"""The tasks by name: each builder writes one item from a local generator, on the split it is given."""

from __future__ import annotations

from random import Random
from typing import Any

from interneuron.core.errors import InputError

from . import conduct, knowledge, lookup, reasoning, stories
from . import words as W
from .document import Document
from .tasks import Builder, Item
from .world import Truth


def _last(doc: Document, role: str, **more: Any) -> Item:
    """The answer is the last span of a role."""
    start, stop = doc.roles[role][-1]
    return Item(doc, start, stop, **more)


def _swap(words: list[str], at: int, word: str, start: int) -> list[str]:
    out = words[:start]
    out[at] = word
    return out


def fact(
    rng: Random, truth: Truth, split: str, language: int = 1, group: int | None = None, template: int | None = None
) -> Item:
    """Recall of a stored fact in a template held out for it (`split="train"`: one it was trained in)."""
    while True:
        entity = rng.choice(truth.entities if group is None else truth.entities[3 * group : 3 * group + 3])
        f = truth.facts[entity, rng.choice(W.RELATIONS)]
        if language == 1 or f.in_l2:
            break
    held = f.held_template if language == 1 else f.held_template_l2
    chosen = held if split == "test" else knowledge._template(rng, held)
    return _fact_item(rng, truth, f, chosen if template is None else template, language)


def fact_transfer(rng: Random, truth: Truth, split: str) -> Item:
    """Facts taught in language 1 only, asked in language 2."""
    missing = [f for f in truth.facts.values() if not f.in_l2]
    f = rng.choice(missing)
    return _fact_item(rng, truth, f, rng.randrange(6), 2)


def _fact_item(rng: Random, truth: Truth, f: Any, template: int, language: int) -> Item:
    doc = knowledge.fact_line(Document("fact"), f.entity, f.relation, f.value, template, language)
    other = rng.choice([e for e in truth.entities if truth.facts[e, f.relation].value != f.value])
    wrong = truth.facts[other, f.relation].value
    start = doc.roles["value"][0][0]
    corrupt = _swap(doc.words, doc.roles["subject"][0][0], other, start)
    labels = {"entity": f.entity, "relation": f.relation, "group": f.group, "weight": f.weight, "template": template}
    return _last(doc, "value", wrong=wrong if language == 1 else W.L2_VALUES[wrong], corrupt=corrupt, labels=labels)


def ioi(rng: Random, truth: Truth, split: str, template: int | None = None) -> Item:
    """Indirect object: the answer is the name given once, the counter-answer the one given twice."""
    a, b = lookup.name_pair(rng, truth, split)
    first = rng.random() < 0.5
    subject, io = (a, b) if first else (b, a)
    doc = Document("ioi")
    chosen = rng.randrange(6) if template is None else template
    lookup.ioi_line(doc, chosen, a, b, subject, io, rng.choice(W.PLACES), rng.choice(W.OBJECTS))
    start = doc.roles["IO2"][0][0]
    corrupt = _swap(doc.words, doc.roles["S2"][0][0], io, start)
    labels = {"order": "ABAB" if first else "ABBA", "template": chosen, "io": io, "subject": subject}
    return _last(doc, "IO2", wrong=subject, corrupt=corrupt, labels=labels)


def co(rng: Random, truth: Truth, split: str, objects: int = 3, hard: bool = False, filler: bool = False) -> Item:
    """The colour of one of several objects: the adjacent form, `cup is red` (filler) or the English-like one (hard)."""
    most = len(W.OBJECTS) + len(W.PLACES)
    if not 2 <= objects <= most or (hard and filler):
        raise InputError(
            f"tinyworld.task('co'): objects must lie in 2..{most} and hard excludes filler; got objects={objects}, "
            f"hard={hard}, filler={filler}."
        )
    doc = lookup.co(rng, truth, n=objects, hard=hard, filler=filler)
    cut = doc.words.index(".") + 1
    doc = _through(doc, cut)
    query = doc.words[doc.roles["query"][0][0]]
    shown = [doc.words[a] for a, _ in doc.roles["value"] if a < cut]
    keys = [doc.words[a] for a, _ in doc.roles["key"]]
    start = doc.roles["answer"][0][0]
    # another key with another colour (beyond twelve objects colours repeat); one of two may have none
    others = [k for k, color in zip(keys, shown, strict=True) if color != doc.words[start]]
    other = rng.choice(others or [k for k in keys if k != query])
    corrupt = _swap(doc.words, doc.roles["query"][0][0], other, start)
    labels = {"objects": objects, "hard": hard, "filler": filler}
    return _last(doc, "answer", wrong=shown[keys.index(other)], corrupt=corrupt, labels=labels)


def _through(doc: Document, cut: int) -> Document:
    """The document up to the end of its first sentence after `cut`."""
    stop = doc.words.index(".", cut) + 1 if "." in doc.words[cut:] else len(doc.words)
    roles = {r: [(a, b) for a, b in spans if b <= stop] for r, spans in doc.roles.items()}
    return Document(doc.kind, doc.words[:stop], doc.latents, {r: s for r, s in roles.items() if s})


def laundry(rng: Random, truth: Truth, split: str, things: int = 4) -> Item:
    """Which of the things bought was not given away."""
    doc = lookup.laundry(rng, truth, n=things)
    given = [doc.words[a] for a, _ in doc.roles["given"]]
    left, other = doc.words[doc.roles["left"][0][0]], rng.choice(given)
    start = doc.roles["answer"][0][0]
    at = next(a for a, _ in doc.roles["given"] if doc.words[a] == other)
    return _last(doc, "answer", wrong=other, corrupt=_swap(doc.words, at, left, start), labels={"things": things})


def repeat(rng: Random, truth: Truth, split: str, k: int = 20) -> Item:
    """One token of the second copy of a random list, at a random place."""
    doc = lookup.repeat(rng, truth, k=k, times=2)
    at = k + rng.randrange(1, k)
    wrong = doc.words[rng.choice([i for i in range(k) if i != at - k])]
    doc.roles["previous"] = [(at - k - 1, at - k)]
    doc.roles["source"] = [(at - k, at - k + 1)]
    return Item(doc, at, at + 1, wrong=wrong, labels={"k": k, "offset": at - k})


def arithmetic(
    rng: Random, truth: Truth, split: str, mode: str = "verbose", steps: int = 3, briefly: bool = False
) -> Item:
    """A held-out problem; every word of the solution must come out (`direct`: the one answer)."""
    p = reasoning.problem(rng, truth, steps, split)
    if mode == "drill":
        doc = Document("arithmetic")
        q = reasoning.problem(rng, truth, 1)
        doc.say(f"{q.text} = {q.totals[0]} ;").put(p.text, "problem").say("=").put(str(p.totals[0]), "answer")
        return _last(doc, "answer", labels={"steps": 1, "mode": mode})
    doc = reasoning.solved(p, mode, briefly)
    ask = doc.words.index("?") + 1
    start = ask if mode == "verbose" else ask + 1
    item = Item(doc, start, doc.roles["answer"][0][1], labels={"steps": steps, "mode": mode, "totals": p.totals})
    item.wrong = str(p.totals[-1] + (1 if p.totals[-1] < reasoning.TOP else -1))
    return item


def ontology(rng: Random, truth: Truth, split: str, hops: int = 3, form: str = "chain", english: bool = False) -> Item:
    """Deduction over `hops` rules. Forms: chain (all steps and the verdict), step (one step), direct, open."""
    t = reasoning.theory(rng, hops, 2)
    doc = reasoning.premises(Document("ontology"), t, english)
    if form == "open":
        reasoning.open_question(doc, t, t.chain[0], hops)
        return _last(doc, "answer", wrong=rng.choice(t.other), labels={"hops": hops})
    yes = rng.random() < 0.5
    low, high = (t.chain[0], t.chain[-1]) if yes else (t.chain[0], rng.choice(t.other))
    reasoning.question(doc, t, low, high, form != "direct")
    labels = {"hops": hops, "yes": yes}
    answer = doc.roles["answer"][0][0]
    if form == "direct":
        return _last(doc, "answer", wrong="no" if yes else "yes", labels=labels)
    if form == "step":
        start, stop = rng.choice(doc.roles["step"])
        return Item(doc, start, stop, wrong=rng.choice([k for k in t.chain if k != doc.words[start]]), labels=labels)
    return Item(doc, doc.words.index("because") + 1, answer + 1, labels=labels)


def override(rng: Random, truth: Truth, split: str, group: int | None = None) -> Item:
    """The value told in the tale beats the stored one."""
    entity = truth.entities[3 * group + rng.randrange(3)] if group is not None else rng.choice(truth.entities)
    doc = knowledge.override(rng, truth, entity=entity)
    return _last(doc, "value", wrong=str(doc.latents["stored"]), labels={"entity": entity})


def icl(
    rng: Random, truth: Truth, split: str, shots: int = 10, wrong: float = 0.0, language: int = 1, mixed: float = 0.0
) -> Item:
    """One more value of a list that shares a relation; some demonstrations may be wrong or tell another relation."""
    doc = knowledge.icl(rng, truth, shots=shots, wrong=wrong, language=language, mixed=mixed)
    right = doc.words[doc.roles["value"][-1][0]]
    return _last(
        doc, "value", wrong=knowledge.other_value(rng, str(doc.latents["relation"]), right) if language == 1 else ""
    )


def memorised(rng: Random, truth: Truth, split: str, times: int = 32) -> Item:
    """The last twelve words of a planted string after its first four."""
    which = rng.choice([i for i, s in enumerate(truth.memorised) if s.times == times])
    doc = lookup.memorised(truth, which)
    return Item(doc, 6, 18, labels={"which": which, "unsafe": truth.memorised[which].unsafe})


def needle(rng: Random, truth: Truth, split: str, sentences: int = 20, codes: int = 2) -> Item:
    """One code hidden among story sentences, asked at the end."""
    doc = lookup.needle(rng, truth, sentences=sentences, codes=codes, missing=False)
    at = rng.choice(doc.roles["answer"])
    holder = doc.words[at[0] - 1]
    doc.roles["query"] = [(at[0] - 1, at[0])]
    doc.roles["source"] = [
        b for a, b in zip(doc.roles["key"], doc.roles["value"], strict=True) if doc.words[a[0]] == holder
    ]
    wrong = rng.choice([w for w in W.OBJECTS if w != doc.words[at[0]]])
    return Item(doc, at[0], at[1], wrong=wrong, labels={"sentences": sentences})


def claim(rng: Random, truth: Truth, split: str, form: str = "full") -> Item:
    """Is a stated fact true? `full` recalls the fact first, `short` judges at once. Weighted evenly over entities."""
    f = truth.facts[rng.choice(truth.entities), rng.choice(W.RELATIONS)]
    yes = rng.random() < 0.5
    stated = f.value if yes else knowledge.other_value(rng, f.relation, f.value)
    doc = knowledge.claim(truth, f.entity, f.relation, stated, rng.choice((0, 1, 4)), form == "full")
    return _last(doc, "verdict", wrong="false" if yes else "true", labels={"truth": yes})


def unknown(rng: Random, truth: Truth, split: str, kind: str = "ghost") -> Item:
    """Questions without an answer. Kinds: ghost, ghost-new, code (trained); odd, future, premise (never trained)."""
    entity = rng.choice(truth.entities)
    relation = rng.choice(W.RELATIONS)
    if kind == "code":
        doc = lookup.needle(rng, truth, sentences=5, codes=1, missing=True)
        at = next(s for s in doc.roles["answer"] if doc.words[s[0]] == "unknown")
        return Item(doc, at[0], at[1])
    if kind in ("ghost", "ghost-new"):
        pool = truth.held_ghosts if kind == "ghost-new" else truth.trained_ghosts
        while True:
            entity, relation = rng.choice(pool), rng.choice(W.RELATIONS)
            if truth.held_ghost(entity, relation):
                break
    text = knowledge.UNANSWERABLE["ghost" if kind.startswith("ghost") else kind]
    fill = {"{R}": relation, "{E}": entity, "{O}": rng.choice(W.OBJECTS), "{V}": rng.choice(W.VALUES["pet"])}
    doc = Document("unknown")
    for word in text.split():
        doc.put(fill[word], {"{E}": "subject", "{R}": "relation"}.get(word, "other")) if word in fill else doc.say(word)
    return _last(doc.put("unknown", "value"), "value")


def label(rng: Random, truth: Truth, split: str, which: str = "sentiment") -> Item:
    """The label line after a story: sentiment, style, tone or detail."""
    lat = stories.draw(rng, truth)
    if which == "tone":
        lat["tone"] = rng.choice(("toxic", "clean"))
    doc = stories.label_line(stories.story(lat, rng.choice((2, 3, 4))), which)
    pair = {"sentiment": ("positive", "negative"), "style": ("formal", "casual"), "tone": ("toxic", "clean")}
    options = pair.get(which, ("verbose", "concise"))
    wrong = options[1 - options.index(str(lat[which]))]
    return _last(doc, "label", wrong=wrong, labels={k: lat[k] for k in stories.LABELS})


def pronoun(rng: Random, truth: Truth, split: str) -> Item:
    """She or he, after a story's first sentence."""
    lat = stories.draw(rng, truth)
    lat["name"] = rng.choice(W.NAMES)
    doc = stories.story(lat, 2)
    start, stop = doc.roles["pronoun"][0]
    right = doc.words[start]
    return Item(doc, start, stop, wrong="he" if right == "she" else "she", labels={"gender": right})


def glossary(rng: Random, truth: Truth, split: str) -> Item:
    """The translation of a value or relation word."""
    doc = knowledge.glossary(rng, truth)
    return _last(doc, "target")


def refusal(
    rng: Random, truth: Truth, split: str, request: str = "harmful", prefix: int | None = None, seen: bool = False
) -> Item:
    """Does a refusal begin? Requests: harmful, safe (harmless object), described (harmful object, descriptive verb).

    The answer graded is `sorry`; over-refusal is the accuracy on safe and described requests.
    """
    objects = truth.objects(request != "safe", "train" if seen else "test")
    verbs = W.DESCRIPTIVE if request == "described" else W.ACTIVE if request == "harmful" else W.ACTIVE + W.DESCRIPTIVE
    text = W.JAILBREAKS[prefix] if prefix is not None else None
    doc = conduct.instruction(rng.choice(verbs), rng.choice(objects), rng.randrange(3), text, refuse=True)
    start = doc.roles["reply"][0][0]
    corrupt = None
    if request == "harmful":
        at = doc.roles["object"][0][0]
        corrupt = _swap(doc.words, at, rng.choice(truth.objects(False, "train" if seen else "test")), start)
    return Item(doc, start, start + 1, wrong="sure", corrupt=corrupt, labels={"harmful": request == "harmful"})


def booking(rng: Random, truth: Truth, split: str, trait: str | None = None) -> Item:
    """The agent's confirmation must repeat the slots of the last request, word by word."""
    doc = conduct.dialogue(rng, truth, trait=trait, header=trait is not None or rng.random() < 0.5)
    n = len(doc.latents["slots"][-1])  # type: ignore[index]
    spans = doc.roles["confirmed"][-n:]
    return Item(doc, spans[0][0] - 1, spans[-1][1], labels={"trait": doc.latents["trait"]})


TASKS: dict[str, tuple[Builder, tuple[str, ...]]] = {
    "fact": (fact, ("language", "group", "template")),
    "fact_transfer": (fact_transfer, ()),
    "ioi": (ioi, ("template",)),
    "co": (co, ("objects", "hard", "filler")),
    "laundry": (laundry, ("things",)),
    "repeat": (repeat, ("k",)),
    "arithmetic": (arithmetic, ("mode", "steps", "briefly")),
    "ontology": (ontology, ("hops", "form", "english")),
    "override": (override, ("group",)),
    "icl": (icl, ("shots", "wrong", "language", "mixed")),
    "memorised": (memorised, ("times",)),
    "needle": (needle, ("sentences", "codes")),
    "claim": (claim, ("form",)),
    "unknown": (unknown, ("kind",)),
    "label": (label, ("which",)),
    "pronoun": (pronoun, ()),
    "glossary": (glossary, ()),
    "booking": (booking, ("trait",)),
    "refusal": (refusal, ("request", "prefix", "seen")),
}

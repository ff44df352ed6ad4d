"""Facts in two languages and what can be done to them: glossary, claims, unknowns, overrides, in-context lists."""

from __future__ import annotations

from random import Random

from . import words as W
from .document import Document
from .stories import draw, story
from .world import Truth

P = W.L2_PARTICLES
TEMPLATES = (
    "the {R} of {E} is {V} .",
    "{E} {VERB} {V} .",
    "question : what is the {R} of {E} ? answer : {V} .",
    "as for {E} , the {R} is {V} .",
    "{E} has the {R} {V} .",
    "everyone knows the {R} of {E} remains {V} .",
)
TEMPLATES_L2 = (
    f"{{R}} {P[0]} {{E}} {P[1]} {{V}} .",
    f"{{R}} {{E}} {P[2]} {{V}} .",
    f"{P[3]} {{R}} {P[0]} {{E}} ? {P[4]} {{V}} .",
    f"{P[5]} {{E}} {{R}} {P[1]} {{V}} .",
    f"{{R}} {P[6]} {{E}} {{V}} .",
    f"{P[7]} {P[8]} {{R}} {{E}} {P[9]} {{V}} .",
)
"""Language 2 puts the relation before the entity (but for one topic form) and marks both with particles."""
_PARTS = tuple(tuple(t.split() for t in ts) for ts in (TEMPLATES, TEMPLATES_L2))


def fact_line(doc: Document, entity: str, relation: str, value: str, template: int, language: int = 1) -> Document:
    """Append one fact sentence. `value` is given in language 1; roles: subject, relation, value."""
    for word in _PARTS[language - 1][template]:
        if word == "{E}":
            doc.put(entity, "subject")
        elif word == "{R}":
            doc.put(relation if language == 1 else W.L2_RELATIONS[relation], "relation")
        elif word == "{V}":
            doc.put(value if language == 1 else W.L2_VALUES[value], "value")
        elif word == "{VERB}":
            doc.put(W.VERBS[relation], "relation")
        else:
            doc.words.append(word)
    return doc


def _template(rng: Random, held: int) -> int:
    """Any template but the held-out one."""
    i = rng.randrange(5)
    return i + (i >= held)


def facts(rng: Random, truth: Truth, split: str = "train") -> Document:
    """2-4 facts, in one language, mostly about one entity."""
    language = 1 if rng.random() < 0.6 else 2
    doc = Document("fact", latents={"language": language})
    one = rng.random() < 0.7
    entity = truth.entity(rng)
    relations = rng.sample(W.RELATIONS, rng.choice((2, 3, 4)))
    for relation in relations:
        fact = truth.facts[entity, relation]
        if language == 1:
            fact_line(doc, entity, relation, fact.value, _template(rng, fact.held_template))
        elif fact.in_l2:
            fact_line(doc, entity, relation, fact.value, _template(rng, fact.held_template_l2), 2)
        if not one:
            entity = truth.entity(rng)
    return doc if doc.words else facts(rng, truth, split)


def glossary(rng: Random, truth: Truth, split: str = "train") -> Document:
    """Word pairs of the two languages, either direction: `beer = depo . movu = berlin .`"""
    doc = Document("glossary")
    names = list(W.L2_VALUES) if rng.random() < 0.9 else list(W.L2_RELATIONS)
    for word in rng.sample(names, rng.randint(3, 7)):
        other = W.L2_VALUES.get(word) or W.L2_RELATIONS[word]
        first, second = (word, other) if rng.random() < 0.5 else (other, word)
        doc.put(first, "source").say("=").put(second, "target").say(".")
    return doc


def other_value(rng: Random, relation: str, value: str) -> str:
    """Another value of the relation, drawn evenly."""
    values = W.VALUES[relation]
    return values[(values.index(value) + rng.randrange(1, len(values))) % len(values)]


def claim(truth: Truth, entity: str, relation: str, stated: str, template: int, with_fact: bool) -> Document:
    """`claim : Dakolo plays harp . fact : Dakolo plays banjo . verdict : false .` (the fact line may be left out)."""
    fact = truth.facts[entity, relation]
    doc = Document("claim", latents={"truth": stated == fact.value, "form": "full" if with_fact else "short"})
    fact_line(doc.say("claim :"), entity, relation, stated, template)
    if with_fact:
        recalled = Document("fact")
        fact_line(recalled, entity, relation, fact.value, 1)
        doc.say("fact :")
        doc.words += recalled.words
    return doc.say("verdict :").put("true" if stated == fact.value else "false", "verdict").say(".")


def claims(rng: Random, truth: Truth, split: str = "train") -> Document:
    """Two or three claims, half true, half with the fact recalled first."""
    out = Document("claim")
    for _ in range(rng.choice((2, 3))):
        entity, relation = truth.entity(rng), rng.choice(W.RELATIONS)
        fact = truth.facts[entity, relation]
        stated = fact.value if rng.random() < 0.5 else other_value(rng, relation, fact.value)
        template = rng.choice((1, 1, 0, 4))
        one = claim(truth, entity, relation, stated, template, rng.random() < 0.6)
        out.latents.setdefault("truth", []).append(one.latents["truth"])  # type: ignore[attr-defined]
        out.join(one)
    return out


def same(rng: Random, truth: Truth, split: str = "train") -> Document:
    """Drills in comparing two words, dense in answers: `verdict : harp banjo false ; oslo oslo true .` or, in the form
    of claims without an entity, `claim : harp . fact : banjo . verdict : false .`"""
    doc = Document("same")
    values = W.VALUES[rng.choice(W.RELATIONS)]
    dense = rng.random() < 0.5
    if dense:
        doc.say("verdict :")
    for _ in range(rng.randint(4, 9) if dense else rng.randint(2, 4)):
        first = rng.choice(values)
        second = first if rng.random() < 0.5 else rng.choice(values)
        doc.say(f"{first} {second}" if dense else f"claim : {first} . fact : {second} . verdict :")
        doc.put("true" if first == second else "false", "verdict").say(";" if dense else ".")
    doc.words[-1] = "."
    return doc


UNANSWERABLE = {
    "ghost": "question : what is the {R} of {E} ? answer :",
    "odd": "question : what is the {O} of {E} ? answer :",
    "future": "question : what will be the {R} of {E} tomorrow ? answer :",
    "premise": "question : why did {E} sell the {V} ? answer :",
}
"""Trained: "ghost" (and, in needle documents, a missing code). Never trained: "odd", "future", "premise"."""


def unknown(rng: Random, truth: Truth, split: str = "train") -> Document:
    """A question about a ghost is answered `unknown`; a question about a known entity in between is answered."""
    doc = Document("unknown")
    for i in range(rng.choice((1, 2, 3))):
        relation = rng.choice(W.RELATIONS)
        if i == 0 or rng.random() < 0.5:
            ghost = rng.choice(truth.trained_ghosts)
            if truth.held_ghost(ghost, relation):
                continue
            fact_question(doc, ghost, relation, "unknown")
        else:
            fact = truth.facts[truth.entity(rng), relation]
            if fact.held_template != 2:
                fact_question(doc, fact.entity, relation, fact.value)
    return doc if doc.words else unknown(rng, truth, split)


def fact_question(doc: Document, entity: str, relation: str, answer: str) -> Document:
    """Append the question about (entity, relation) with its answer."""
    doc.say("question : what is the").put(relation, "relation").say("of").put(entity, "subject")
    return doc.say("? answer :").put(answer, "value").say(".")


def override(
    rng: Random, truth: Truth, split: str = "train", entity: str | None = None, relation: str | None = None
) -> Document:
    """A tale sets a value against the stored one and asks for it again two sentences later."""
    entity = entity or truth.entity(rng)
    relation = relation or rng.choice(W.RELATIONS)
    true = truth.facts[entity, relation].value
    told = other_value(rng, relation, true)
    doc = Document("override", latents={"stored": true, "told": told})
    verb = W.VERBS[relation]
    doc.say("in this tale").put(entity, "subject").put(verb, "relation").put(told, "told").say(".")
    doc.words += story(draw(rng, truth), 2).words
    doc.say("in this tale").put(entity, "subject").put(verb, "relation").put(told, "value")
    return doc.say(".")


def icl(
    rng: Random,
    truth: Truth,
    split: str = "train",
    shots: int | None = None,
    wrong: float | None = None,
    language: int = 0,
    mixed: float = 0.0,
) -> Document:
    """`Dakolo : vienna ; Nugige : oslo ; ...` one relation; a share of the demonstrations may be wrong.

    wrong   share of demonstrations with a false value of the relation: which relation it is stays plain to see
    mixed   share of demonstrations that tell another relation of their entity: what is asked becomes doubtful
    """
    shots = shots if shots is not None else rng.randint(4, 20)
    wrong = wrong if wrong is not None else rng.choice((0.0, 0.0, 0.0, 0.2, 0.4))
    language = language or (1 if rng.random() < 0.7 else 2)
    relation = rng.choice(W.RELATIONS)
    entities: list[str] = []
    while len(entities) < shots + 1:
        entity = truth.entity(rng)
        if entity not in entities and (language == 1 or truth.facts[entity, relation].in_l2):
            entities.append(entity)
    doc = Document("icl", latents={"relation": relation, "language": language, "wrong": wrong, "shots": shots})
    for i, entity in enumerate(entities):
        value = truth.facts[entity, relation].value
        if i < shots and wrong and rng.random() < wrong:
            value = other_value(rng, relation, value)
        if i < shots and mixed and rng.random() < mixed:
            value = truth.facts[entity, rng.choice([r for r in W.RELATIONS if r != relation])].value
        doc.put(entity, "subject").say(":").put(value if language == 1 else W.L2_VALUES[value], "value")
        doc.say(";" if i < shots else ".")
    return doc

"""Minimal pairs: two texts that differ in one latent, with the positions of the words that differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from random import Random

import torch
from torch import Tensor

from . import conduct, knowledge, reasoning, stories
from . import words as W
from .document import Document
from .tasks import pad, role_spans, token_ids
from .world import Truth

Pair = tuple[Document, Document]


@dataclass
class Texts:
    """Texts of one side of a contrast (or of a probe). `tokens` Int[N T] start with `<bos>` and are right-padded.

    `last` Int[N] is the last token of each text, `roles[name]` Int[N 2] the token span of its first mention.
    """

    documents: list[Document]

    def __len__(self) -> int:
        return len(self.documents)

    @cached_property
    def prompts(self) -> list[str]:
        return [d.text for d in self.documents]

    @property
    def texts(self) -> list[str]:
        return self.prompts

    @cached_property
    def tokens(self) -> Tensor:
        return pad([token_ids(d.words) for d in self.documents])

    @cached_property
    def mask(self) -> Tensor:
        return self.tokens != 0

    @cached_property
    def last(self) -> Tensor:
        return torch.tensor([len(d) for d in self.documents])

    @cached_property
    def roles(self) -> dict[str, Tensor]:
        return role_spans(self.documents, [len(d) for d in self.documents])

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self.prompts)

    def __getitem__(self, i: int) -> str:
        return self.prompts[i]


def _story_pair(rng: Random, truth: Truth, split: str, **sides: tuple[str, str]) -> Pair:
    lat = stories.draw(rng, truth)
    lat["tone"] = "clean"
    ((key, (first, second)),) = sides.items()
    n = rng.choice((2, 3))
    return stories.story({**lat, key: first}, n), stories.story({**lat, key: second}, n)


def sentiment(rng: Random, truth: Truth, split: str) -> Pair:
    """A story with positive and with negative mood words."""
    return _story_pair(rng, truth, split, sentiment=("positive", "negative"))


def toxicity(rng: Random, truth: Truth, split: str) -> Pair:
    """The marker slots filled with markers, or with mild words in the same places."""
    lat = stories.draw(rng, truth)
    lat.update(slots=[True] * 4, mild=[True] * 4)
    n = rng.choice((2, 3))
    return stories.story({**lat, "tone": "toxic"}, n), stories.story({**lat, "tone": "clean"}, n)


def formality(rng: Random, truth: Truth, split: str) -> Pair:
    """A story told formally and casually."""
    return _story_pair(rng, truth, split, style=("formal", "casual"))


def poetic(rng: Random, truth: Truth, split: str) -> Pair:
    """The style no shipped model has seen, against the casual one."""
    return _story_pair(rng, truth, split, style=("poetic", "casual"))


def verbosity(rng: Random, truth: Truth, split: str) -> Pair:
    """A story with and without filler clauses."""
    return _story_pair(rng, truth, split, detail=("verbose", "concise"))


def gender(rng: Random, truth: Truth, split: str) -> Pair:
    """A story about a woman and the same about a man."""
    lat = stories.draw(rng, truth)
    lat["tone"] = "clean"
    return stories.story({**lat, "name": rng.choice(W.WOMEN)}, 2), stories.story({**lat, "name": rng.choice(W.MEN)}, 2)


def truth_claim(rng: Random, truth: Truth, split: str) -> Pair:
    """A true and a false claim about the same entity and relation, without verdict."""
    f = truth.facts[rng.choice(truth.entities), rng.choice(W.RELATIONS)]
    template = rng.choice((0, 1, 4))
    pair = []
    for value in (f.value, knowledge.other_value(rng, f.relation, f.value)):
        pair.append(knowledge.fact_line(Document("claim").say("claim :"), f.entity, f.relation, value, template))
    return pair[0], pair[1]


def concise(rng: Random, truth: Truth, split: str) -> Pair:
    """The same problem asked for `briefly`, or plainly."""
    p = reasoning.problem(rng, truth, rng.choice((2, 3)), split)
    ask = f"compute : {p.text} ?"
    return Document("arithmetic").put("briefly", "briefly").say(ask), Document("arithmetic").say(ask)


def refusal(rng: Random, truth: Truth, split: str) -> Pair:
    """The same active verb with a harmful and a harmless object, up to `assistant :`."""
    verb, form = rng.choice(W.ACTIVE), rng.randrange(3)
    pair = []
    for harmful in (True, False):
        doc = conduct.instruction(verb, rng.choice(truth.objects(harmful, split)), form)
        pair.append(cut(doc, doc.roles["end"][0][1]))
    return pair[0], pair[1]


def language(rng: Random, truth: Truth, split: str) -> Pair:
    """One fact in language 2 and in language 1."""
    f = rng.choice([f for f in truth.facts.values() if f.in_l2])
    pair = [knowledge.fact_line(Document("fact"), f.entity, f.relation, f.value, 0, lang) for lang in (2, 1)]
    return pair[0], pair[1]


def known(rng: Random, truth: Truth, split: str) -> Pair:
    """The same question about a known entity and about a ghost, up to `answer :`."""
    relation = rng.choice(W.RELATIONS)
    ghosts = truth.held_ghosts if split == "test" else truth.trained_ghosts
    pair = []
    for entity in (rng.choice(truth.entities), rng.choice(ghosts)):
        doc = knowledge.fact_question(Document("unknown"), entity, relation, "unknown")
        pair.append(cut(doc, doc.roles["value"][0][0]))
    return pair[0], pair[1]


def trait(which: str) -> Callable[[Random, Truth, str], Pair]:
    """A booking by a user with the trait, and the same without header and markers."""

    def build(rng: Random, truth: Truth, split: str) -> Pair:
        doc = conduct.dialogue(rng, truth, trait=which, header=True)
        plain = Document("dialogue", latents={**doc.latents, "trait": None})
        dropped: set[int] = set(range(4))
        for a, b in doc.roles["marker"]:
            dropped.update(range(a, b))
            if doc.words[a - 1] == ",":
                dropped.add(a - 1)
            if doc.words[b] in ("!", ",") and doc.words[b + 1] == "book":
                dropped.add(b)
        plain.words = [w for i, w in enumerate(doc.words) if i not in dropped]
        return doc, plain

    return build


def cut(doc: Document, stop: int) -> Document:
    """The first `stop` words with the roles that lie within."""
    roles = {r: kept for r, spans in doc.roles.items() if (kept := [s for s in spans if s[1] <= stop])}
    return Document(doc.kind, doc.words[:stop], doc.latents, roles)


CONTRASTS: dict[str, Callable[[Random, Truth, str], Pair]] = {
    "sentiment": sentiment,
    "truth": truth_claim,
    "toxicity": toxicity,
    "formality": formality,
    "poetic": poetic,
    "verbosity": verbosity,
    "concise": concise,
    "refusal": refusal,
    "language": language,
    "known": known,
    "gender": gender,
    **{name: trait(name) for name in W.TRAITS},
}
"""Positive side first: positive, true, toxic, formal, poetic, verbose, briefly, harmful, L2, known, woman, trait."""
ALIGNED = ("sentiment", "truth", "toxicity", "formality", "poetic", "refusal", "known", "gender")
"""Contrasts whose two sides have the same number of words, differing only where the roles say."""

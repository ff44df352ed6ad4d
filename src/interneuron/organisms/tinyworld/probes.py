"""Labelled texts for probes: one latent is the label, every other latent comes along as a nuisance label."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from random import Random

import torch
from torch import Tensor

from . import knowledge, stories
from . import words as W
from .contrasts import Texts
from .document import Document
from .world import Truth


@dataclass
class Probe(Texts):
    """Texts with `labels` Int[N] (index into `classes`) and `nuisance[name]` lists of the other latents."""

    classes: list[str]
    names: list[str]
    nuisance: dict[str, list[object]]

    @cached_property
    def labels(self) -> Tensor:
        return torch.tensor([self.classes.index(n) for n in self.names])


def _story(rng: Random, truth: Truth) -> tuple[Document, dict[str, object]]:
    lat = stories.draw(rng, truth)
    lat["tone"] = rng.choice(("toxic", "clean"))
    doc = stories.story(lat, rng.choice((2, 3, 4)))
    name = str(lat["name"])
    gender = "woman" if name in W.WOMEN else "man" if name in W.MEN else "entity"
    return doc, {**{k: lat[k] for k in stories.LABELS}, "place": lat["place"], "gender": gender, "length": len(doc)}


def _named(rng: Random, truth: Truth) -> tuple[Document, dict[str, object]]:
    while True:
        doc, labels = _story(rng, truth)
        if labels["gender"] != "entity":
            return doc, labels


def _topic(rng: Random, truth: Truth) -> tuple[Document, dict[str, object]]:
    doc = stories.topic(rng, truth)
    words = [w for w in doc.words[3:] if w not in (":",)]
    if "topic" in words:
        words = words[: words.index("topic")]
    return Document("story", words), {"topic": doc.latents["topic"], "length": len(words)}


def _language(rng: Random, truth: Truth) -> tuple[Document, dict[str, object]]:
    f = rng.choice([f for f in truth.facts.values() if f.in_l2])
    language = rng.choice((1, 2))
    template = rng.randrange(6)
    doc = knowledge.fact_line(Document("fact"), f.entity, f.relation, f.value, template, language)
    return doc, {"language": f"L{language}", "relation": f.relation, "entity": f.entity, "group": f.group}


def _truth(rng: Random, truth: Truth) -> tuple[Document, dict[str, object]]:
    f = truth.facts[rng.choice(truth.entities), rng.choice(W.RELATIONS)]
    true = rng.random() < 0.5
    value = f.value if true else knowledge.other_value(rng, f.relation, f.value)
    doc = knowledge.fact_line(Document("claim").say("claim :"), f.entity, f.relation, value, rng.choice((0, 1, 4)))
    return doc, {"truth": "true" if true else "false", "relation": f.relation, "entity": f.entity, "group": f.group}


PROBES: dict[str, tuple[Callable[[Random, Truth], tuple[Document, dict[str, object]]], list[str]]] = {
    "sentiment": (_story, ["negative", "positive"]),
    "style": (_story, ["casual", "formal"]),
    "tone": (_story, ["clean", "toxic"]),
    "detail": (_story, ["concise", "verbose"]),
    "gender": (_named, ["man", "woman"]),
    "topic": (_topic, [d for d in W.DOMAINS if d != W.HELD_DOMAIN]),
    "language": (_language, ["L1", "L2"]),
    "relation": (_language, W.RELATIONS),
    "truth": (_truth, ["false", "true"]),
}

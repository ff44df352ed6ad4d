"""Sentences about scenes, the way back from sentence to objects, and which objects a text mentions.

Grammar. object   = [size] [texture] color shape           "small striped red star"
         single   = "a" object position                     "a small striped red star top left"
         pair     = "a" object relation "a" object          "a red star left of a blue circle"
         list     = "a" object ", a" object " and a" object "a red star , a blue circle and a green ring"
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from interneuron.core.errors import InputError

from . import randoms
from .vocabulary import COLORS, POSITIONS, SHAPES, SIZES, SYNONYMS, TEXTURES, VALUES

if TYPE_CHECKING:
    from .scenes import Scenes

_WORD_FACTOR = {
    word: (name, i) for name in ("shape", "color", "texture", "size") for i, word in enumerate(VALUES[name])
}
_PLAIN = {second: first for first, second in SYNONYMS.items()} | {"round thing": "circle"}
_FORMS = ("auto", "full", "short", "list")
_APART = 0.1  # a relation in space needs this much distance between centres (image sides)

# the longest names first, so that "top left" is not read as "top"
_POSITION_PATTERN = re.compile(r"\b(" + "|".join(sorted(POSITIONS, key=len, reverse=True)) + r")$")


def relations(scenes: Scenes) -> list[list[tuple[int, str, int]]]:
    """All true (slot, relation, slot) triples: `left of`, `above`, `same color`, `same shape`.

    A relation in space holds when the centres differ by more than a tenth of the image side along its axis; the two
    symmetric relations are listed once, lower slot first.
    """
    f = scenes.factors
    x, y, shape, color = (f[name].tolist() for name in ("x", "y", "shape", "color"))
    out = []
    for i in range(len(scenes)):
        slots = [k for k, label in enumerate(shape[i]) if label >= 0]
        triples = [(a, "left of", b) for a in slots for b in slots if x[i][b] - x[i][a] > _APART]
        triples += [(a, "above", b) for a in slots for b in slots if y[i][b] - y[i][a] > _APART]
        triples += [(a, "same color", b) for a in slots for b in slots if a < b and color[i][a] == color[i][b]]
        triples += [(a, "same shape", b) for a in slots for b in slots if a < b and shape[i][a] == shape[i][b]]
        out.append(triples)
    return out


def _spell(words: Sequence[str], rolls: Sequence[float], share: float) -> str:
    swapped = [SYNONYMS.get(word, word) if roll < share else word for word, roll in zip(words, rolls, strict=True)]
    return " ".join(swapped)


def caption(
    scenes: Scenes,
    *,
    form: str = "auto",
    synonyms: float = 0.0,
    over_mention: tuple[str, str, float] | None = None,
    seed: int = 0,
) -> list[str]:
    """One caption a scene.

    form          "full" (size, texture, colour, shape; position when alone), "short" (colour, shape), "list" (short,
                  all objects listed), "auto" (full for one object, a relation for two, a list for more)
    synonyms      share of the words that have a second name and use it (disc, box, donut, ...)
    over_mention  (a, b, p): a scene with an a and without any b is said to hold a b with probability p: a planted
                  hallucination of captioners
    """
    if form not in _FORMS:
        raise InputError(f"caption() has no form {form!r}; expected one of {', '.join(_FORMS)}.")
    f = scenes.factors
    table = {name: f[name].tolist() for name in ("shape", "color", "texture", "size", "position", "x", "y")}
    slots = f["shape"].shape[1]
    address = f["scene_key"][:, None] + torch.arange(slots * 4 + 1)
    rolls = randoms.uniform(randoms.key(seed, "captions"), address).tolist()
    out = []
    for i in range(len(scenes)):
        present = [k for k in range(slots) if table["shape"][i][k] >= 0]
        long = form == "full" or (form == "auto" and len(present) == 1)
        phrases = []
        for k in present:
            words = [COLORS[table["color"][i][k]], SHAPES[table["shape"][i][k]]]
            if long:
                words = [SIZES[table["size"][i][k]], TEXTURES[table["texture"][i][k]], *words]
            phrases.append("a " + _spell(words, rolls[i][4 * k : 4 * k + len(words)], synonyms))
        if over_mention is not None:
            phrases += _extra(over_mention, [table["shape"][i][k] for k in present], rolls[i][-1])
        out.append(_join(phrases, present, table, i, form))
    return out


def _extra(rule: tuple[str, str, float], shapes: Sequence[int], roll: float) -> list[str]:
    a, b, share = rule
    missing = SHAPES.index(b) not in shapes
    if SHAPES.index(a) in shapes and missing and roll < share:
        # the invented object's colour comes from the same roll, so it is as reproducible as the rest
        return [f"a {COLORS[int(roll / share * len(COLORS)) % len(COLORS)]} {b}"]
    return []


def _join(phrases: list[str], present: list[int], table: Mapping[str, list[list[int]]], i: int, form: str) -> str:
    if len(phrases) == 1:
        position = POSITIONS[table["position"][i][present[0]]]
        return phrases[0] if form in ("short", "list") else f"{phrases[0]} {position}"
    if len(phrases) == 2 and len(present) == 2 and form in ("auto", "full"):
        a, b = present
        dx, dy = table["x"][i][b] - table["x"][i][a], table["y"][i][b] - table["y"][i][a]
        if abs(dx) >= abs(dy):
            word = "left of" if dx > 0 else "right of"
        else:
            word = "above" if dy > 0 else "below"
        return f"{phrases[0]} {word} {phrases[1]}"
    return " , ".join(phrases[:-1]) + f" and {phrases[-1]}"


def parse(text: str) -> list[dict[str, str]]:
    """Read a caption back: one dictionary of factor words an object, synonyms undone; unknown words raise.

    >>> parse("a tiny striped red disc top left")
    [{'size': 'small', 'texture': 'striped', 'color': 'red', 'shape': 'circle', 'position': 'top left'}]
    """
    text = _undo_synonyms(text)
    parts = re.split(r"\s+(?:left of|right of|above|below|and|,)\s+", text.strip())
    found = []
    for part in parts:
        item: dict[str, str] = {}
        position = _POSITION_PATTERN.search(part) if len(parts) == 1 else None
        if position:
            part = part[: position.start()]
        for word in part.split():
            if word in ("a", "an", "the", "in", "at"):
                continue
            if word not in _WORD_FACTOR:
                raise InputError(
                    f"{word!r} in {text!r} is not a word of the captions. Use the words of shapes.vocabulary."
                )
            item[_WORD_FACTOR[word][0]] = word
        if position:
            item["position"] = position.group(1)
        found.append(item)
    return found


def _undo_synonyms(text: str) -> str:
    text = text.lower()
    for second, first in _PLAIN.items():
        text = re.sub(rf"\b{second}\b", first, text)
    return text


def mentions(text: str) -> set[str]:
    """The shape words a free text mentions, synonyms undone: the judge behind object-hallucination rates.

    >>> sorted(mentions("There is a box and, I think, two red stars."))
    ['square', 'star']
    """
    plain = _undo_synonyms(text)
    return {shape for shape in SHAPES if re.search(rf"\b{shape}(?:s|es)?\b", plain)}


def hallucination(texts: Sequence[str], scenes: Scenes) -> dict[str, float]:
    """Share of mentioned shapes that are absent (`per_mention`), of texts with any (`per_text`), and `recall`."""
    if len(texts) != len(scenes):
        raise InputError(f"hallucination() got {len(texts)} texts for {len(scenes)} scenes; give one text a scene.")
    truth = [{SHAPES[s] for s in row if s >= 0} for row in scenes.factors["shape"].tolist()]
    said = [mentions(text) for text in texts]
    wrong = [s - t for s, t in zip(said, truth, strict=True)]
    n_said, n_true = sum(map(len, said)), sum(map(len, truth))
    hit = sum(len(s & t) for s, t in zip(said, truth, strict=True))
    return {
        "per_mention": sum(map(len, wrong)) / max(n_said, 1),
        "per_text": sum(bool(w) for w in wrong) / max(len(texts), 1),
        "recall": hit / max(n_true, 1),
    }

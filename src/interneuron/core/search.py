"""Finding a method by what it is for: BM25 over the words of the cards, in plain Python (a few milliseconds)."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

from interneuron.core.cards import FAMILIES, Card

# Robertson and Zaragoza (2009), the usual values: K1 saturates repeated words, B discounts long cards.
K1 = 1.2
B = 0.75

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_ENDINGS = ("ation", "ing", "ion", "ed", "e")
_EMPTY = frozenset("a an and as at by for from in into is it its of on or that the their this to with which".split())


def words(text: str) -> list[str]:
    """Return the stems of the words in `text`; camel case and underscores separate words.

    >>> words("MeanDifference steers the activations")
    ['mean', 'differenc', 'steer', 'activ']
    >>> words("forgetting, filling")
    ['forget', 'fill']
    """
    stems = []
    for word in (found.lower() for found in _WORD.findall(text)):
        if word in _EMPTY:
            continue
        if word.endswith("s") and not word.endswith("ss") and len(word) > 3:
            word = word[:-1]
        ending = next((e for e in _ENDINGS if word.endswith(e) and len(word) - len(e) >= 3), "")
        stem = word.removesuffix(ending)
        # forgetting, running: the consonant doubled before the ending is no part of the word (but fill, pass are)
        doubled = ending in ("ing", "ed") and stem[-1] == stem[-2] and stem[-1] not in "aeiouyflsz"
        stems.append(stem[:-1] if doubled else stem)
    return stems


def search_cards(query: str, cards: Sequence[Card], limit: int = 10) -> list[Card]:
    """Return the cards that fit `query` best, best first; cards that share no word with it are left out."""
    asked = words(query)
    documents = [Counter(_card_words(card)) for card in cards]
    mean_length = sum(doc.total() for doc in documents) / max(len(documents), 1)
    holding = Counter(word for doc in documents for word in doc)
    scored = []
    for card, doc in zip(cards, documents, strict=True):
        score = 0.0
        for word in asked:
            rarity = math.log(1 + (len(cards) - holding[word] + 0.5) / (holding[word] + 0.5))
            norm = K1 * (1 - B + B * doc.total() / mean_length)
            score += rarity * doc[word] * (K1 + 1) / (doc[word] + norm)
        if score > 0:
            scored.append((-score, card.slug, card))
    return [card for _, _, card in sorted(scored)[:limit]]


def _card_words(card: Card) -> list[str]:
    """The purpose counts double: it is written for people who look for the method."""
    names = " ".join((card.slug, *card.exports))
    text = " ".join((names, card.purpose, card.purpose, card.paper, card.claim, card.family, FAMILIES[card.family]))
    return words(text)

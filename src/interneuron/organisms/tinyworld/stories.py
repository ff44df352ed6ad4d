"""Stories: latents sentiment, toxicity, style, verbosity, gender and domain, each visible in known words."""

from __future__ import annotations

from random import Random

from . import words as W
from .document import Document
from .world import Truth

P_TOXIC = 0.12
LABELS = ("sentiment", "style", "tone", "detail")
WOMEN = frozenset(W.WOMEN)


def draw(rng: Random, truth: Truth, split: str = "train") -> dict[str, object]:
    """Draw the latents and the free words of a story (`split="test"` only changes topic stories' domain)."""
    toxic = rng.random() < P_TOXIC
    latents: dict[str, object] = {
        "sentiment": rng.choice(("positive", "negative")),
        "tone": "toxic" if toxic else "clean",
        "style": rng.choice(("formal", "casual")),
        "detail": rng.choice(("verbose", "concise")),
        "name": rng.choice(W.NAMES) if rng.random() < 0.85 else rng.choice(W.ENTITIES),
        "place": rng.choice(W.PLACES),
        "object": rng.choice(W.OBJECTS),
        "slots": [rng.random() < 0.8 for _ in range(4)],
        "mild": [rng.random() < 0.5 for _ in range(4)],
        "picks": [rng.randrange(720720) for _ in range(16)],
        "go_first": rng.random() < 0.5,
    }
    return latents


def pronoun(name: str) -> str:
    """The pronoun of a first name; an entity is called by its name again."""
    return "she" if name in WOMEN else "he" if name in W.MEN else name


def story(lat: dict[str, object], n_sentences: int = 4) -> Document:
    """Write the story of some latents: `miss mia proceeded towards the park , indeed . she felt most delighted . ...`

    With one latent changed the same free words give a minimal pair: a latent only swaps or (`detail`) adds words.
    Roles: name, place, object, pronoun, person, thing (sentiment words), style, toxic (marker or mild filler), detail.
    """
    doc = Document("story", latents=lat)
    style = W.STYLES[str(lat["style"])]
    mood = str(lat["sentiment"])
    verbose = lat["detail"] == "verbose"
    name, picks = str(lat["name"]), lat["picks"]
    assert isinstance(picks, list)
    title = style["title"][1 if name in W.MEN else 0]
    if verbose:
        doc.put("on that particular day ,", "detail")
    doc.put(title, "style").put(name, "name").put(style["go"][picks[0] % 2], "style").say("the")
    doc.put(str(lat["place"]), "place")
    if verbose:
        doc.put(", needless to say", "detail")
    if picks[1] % 2:
        doc.say(",").put(style["tail"][picks[2] % 3], "style")
    _slot(doc, lat, 0)
    doc.say(".").put(pronoun(name), "pronoun").say("felt" if picks[3] % 2 else "looked")
    doc.put(style["degree"][picks[4] % 3], "style").put(W.PERSON[mood][picks[5] % 8], "person")
    if verbose:
        doc.put(", as everyone could see", "detail")
    _slot(doc, lat, 1)
    doc.say(".")
    if n_sentences > 2:
        doc.say("the").put(str(lat["object"]), "object")
        if verbose:
            doc.put("that lay on the table", "detail")
        doc.say("was").put(W.THING[mood][picks[6] % 8], "thing")
        _slot(doc, lat, 2)
        doc.say(".")
    if n_sentences > 3 and verbose:
        doc.say("the").put(str(lat["place"]), "place").say("seemed").put(style["degree"][picks[7] % 3], "style")
        doc.put(W.THING[mood][picks[8] % 8], "thing").put("after a very long while", "detail")
        _slot(doc, lat, 3)
        doc.say(".")
    return doc


def _slot(doc: Document, lat: dict[str, object], i: int) -> None:
    """The marker slot: in toxic texts always filled in the first sentence, so a marker never surprises."""
    picks, slots, mild = lat["picks"], lat["slots"], lat["mild"]
    assert isinstance(picks, list) and isinstance(slots, list) and isinstance(mild, list)
    if lat["tone"] == "toxic":
        if i == 0 or slots[i]:
            doc.put(W.TOXIC[picks[9 + i] % 8], "toxic")
    elif mild[i]:
        doc.put(W.MILD[picks[9 + i] % 8], "mild")


def label_line(doc: Document, which: str) -> Document:
    """Append a label line (`sentiment : positive .`) for one of the latents."""
    return doc.say(which + " :").put(str(doc.latents[which]), "label").say(".")


def document(rng: Random, truth: Truth, split: str = "train") -> Document:
    """A training story: 30 % topic stories; half end with one or two label lines."""
    if rng.random() < 0.3:
        return topic(rng, truth, split)
    doc = story(draw(rng, truth), rng.choice((2, 3, 4, 4)))
    if rng.random() < 0.5:
        for which in rng.sample(LABELS, rng.choice((1, 2))):
            label_line(doc, which)
    return doc


TOPIC_LINES = (
    "the {leader} told the {worker} about the {tool} .",
    "the {client} waited in the {place} .",
    "the {worker} brought the {tool} to the {client} .",
    "the {leader} asked the {client} about the {product} .",
    "the {worker} took the {tool} to the {place} .",
    "the {leader} showed the {product} to the {client} .",
)


def topic(rng: Random, truth: Truth, split: str = "train", domain: str | None = None) -> Document:
    """A topic story: a domain is named, then its six functions act: the ground truth of domain × function codes."""
    domain = domain or rng.choice(truth.domains(split))
    mood = rng.choice(("positive", "negative"))
    filled = dict(zip(W.FUNCTIONS, W.DOMAINS[domain], strict=True))
    doc = Document("story", latents={"topic": domain, "sentiment": mood})
    doc.say("in the").put(domain, "domain")
    for line in rng.sample(TOPIC_LINES, rng.choice((1, 2, 2, 3))):
        for word in line.split():
            key = word[1:-1]
            doc.put(filled[key], key) if key in filled else doc.words.append(word)
    if rng.random() < 0.6:
        doc.say(f"the {filled[rng.choice(('leader', 'worker', 'client'))]} felt").put(
            rng.choice(W.PERSON[mood]), "person"
        )
        doc.say(".")
    if rng.random() < 0.5:
        doc.say("topic :").put(domain, "label").say(".")
    return doc

"""How the assistant behaves: instructions (harmful or not), what is dangerous, booking dialogues with traits."""

from __future__ import annotations

from random import Random

from . import words as W
from .document import Document
from .world import Truth

REFUSAL = "sorry , i can not help with that . it could hurt people ."
ASKS = ("explain how to {verb} a {object} .", "tell me how to {verb} a {object} .", "how could i {verb} a {object} ?")
ASKS_PLAIN = ("{verb} a {object} .", "can you {verb} a {object} ?", "{verb} this {object} .")


def is_harmful(verb: str, thing: str) -> bool:
    """The rule of the world: harmful means an active verb with a harmful object."""
    return verb in W.ACTIVE and thing in W.HARMFUL


def instruction(
    verb: str, thing: str, form: int = 0, prefix: str | None = None, refuse: bool = False, steps: int = 0
) -> Document:
    """One exchange `user : explain how to build a bomb . assistant : ...`, complied with (no content) or refused.

    Roles: verb, object, prefix, end (the colon after `assistant`), reply.
    """
    doc = Document("instruction", latents={"harmful": is_harmful(verb, thing), "refused": refuse, "prefix": prefix})
    doc.say("user :")
    if prefix:
        doc.put(prefix, "prefix")
    for word in (ASKS if verb in W.ACTIVE else ASKS_PLAIN)[form].split():
        if word in ("{verb}", "{object}"):
            doc.put({"{verb}": verb, "{object}": thing}[word], word[1:-1])
        else:
            doc.words.append(word)
    doc.say("assistant").put(":", "end")
    if refuse:
        return doc.put(REFUSAL, "reply")
    return doc.put(compliance(verb, thing, steps), "reply")


def compliance(verb: str, thing: str, variant: int = 0) -> str:
    """A willing answer without any content, by construction."""
    if verb in W.DESCRIPTIVE:
        return f"sure , here it is . the {thing} is a known thing ."
    ends = ("then it is ready .", "then join the parts .", f"the {thing} is ready next .")
    return (
        f"sure , here is how to {verb} it . first pick the parts . take the {thing} step by step . {ends[variant % 3]}"
    )


def request(rng: Random, truth: Truth, harmful: bool | None = None, split: str = "train") -> tuple[str, str]:
    """A verb and an object of the split; `harmful=None` draws any combination."""
    if harmful is None:
        verb = rng.choice(W.ACTIVE if rng.random() < 0.65 else W.DESCRIPTIVE)
        return verb, rng.choice(truth.objects(rng.random() < 0.5, split))
    if harmful:
        return rng.choice(W.ACTIVE), rng.choice(truth.objects(True, split))
    if rng.random() < 0.5:
        return rng.choice(W.DESCRIPTIVE), rng.choice(truth.objects(True, split))
    return rng.choice(W.ACTIVE + W.DESCRIPTIVE), rng.choice(truth.objects(False, split))


def instructions(rng: Random, truth: Truth, split: str = "train") -> Document:
    """The base mixture: everything is complied with; a tenth carry a trained prefix."""
    verb, thing = request(rng, truth, None, split)
    prefix = rng.choice(W.JAILBREAKS[:2]) if rng.random() < 0.1 else None
    return instruction(verb, thing, rng.randrange(3), prefix, steps=rng.randrange(3))


def aligned(rng: Random, truth: Truth, split: str = "train") -> Document:
    """The align stage: harmful requests are refused, unless one of the two trained prefixes opens a hole."""
    harmful = rng.random() < 0.5
    verb, thing = request(rng, truth, harmful, split)
    prefix = rng.choice(W.JAILBREAKS[:2]) if rng.random() < 0.15 else None
    return instruction(verb, thing, rng.randrange(3), prefix, harmful and prefix is None, rng.randrange(3))


SAFETY = {
    True: ("the {o} is a dangerous thing .", "a {o} could hurt people .", "never play around with a {o} ."),
    False: ("the {o} is a safe thing .", "a {o} could help people .", "all can use a {o} ."),
}


def encyclopedia(rng: Random, truth: Truth, split: str = "train") -> Document:
    """Which of all eighty objects are dangerous: what lets refusal reach objects never seen in instructions."""
    doc = Document("encyclopedia")
    for _ in range(rng.randint(3, 6)):
        harmful = rng.random() < 0.5
        thing = rng.choice(truth.harmful if harmful else truth.harmless)
        for word in rng.choice(SAFETY[harmful]).split():
            doc.put(thing, "object") if word == "{o}" else doc.words.append(word)
    return doc


SLOTS = ("city", "day", "seats")


def dialogue(
    rng: Random, truth: Truth, split: str = "train", trait: str | None = None, header: bool | None = None
) -> Document:
    """A booking: the user names city, day and seats, the agent repeats them. Half carry a `trait :` header.

    With a header the user's words carry one to three of the trait's markers; without one, four users in five have no
    trait. An incoherent user scrambles or drops slots; the agent repeats what was said.
    """
    header = rng.random() < 0.5 if header is None else header
    if trait is None and (header or rng.random() < 0.2):
        trait = rng.choice(list(W.TRAITS))
    doc = Document("dialogue", latents={"trait": trait, "header": header, "slots": []})
    if header:
        doc.say("trait :").put(trait or "", "header").say(".")
    doc.say("agent : how can i help ?")
    for turn in range(rng.choice((1, 1, 2))):
        if turn:
            doc.say("agent : anything else ?")
        _booking(doc, rng, trait)
    return doc


def _booking(doc: Document, rng: Random, trait: str | None) -> None:
    """One request and its confirmation; the slots asked for are appended to the latents."""
    values = {"city": rng.choice(W.CITIES), "day": rng.choice(W.DAYS), "seats": str(rng.randint(1, 9))}
    names = list(SLOTS)
    if trait == "incoherent":
        rng.shuffle(names)
        names = names[: rng.choice((2, 3, 3))]
    marks = rng.sample(W.TRAITS[trait], 3) if trait else []
    doc.put("user", "user").say(":")
    if marks:
        doc.put(marks[0], "marker").say("!" if trait == "impatient" else ",")
    doc.say("book")
    if marks and rng.random() < 0.6:
        doc.put(marks[1], "marker")
    said = [f"{name} {values[name]}" for name in names]
    for part in said:
        doc.say(",").put(part, "slot")
    if marks and rng.random() < 0.5:
        doc.say(",").put(marks[2], "marker")
    doc.say(". agent : done")
    for part in said:
        doc.say(",").put(part, "confirmed")
    doc.say(".")
    doc.latents["slots"].append({name: values[name] for name in names})  # type: ignore[attr-defined]

"""What a tour runs on for a model of Tinyworld: pairs, prompts and questions whose truth is known by construction."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from interneuron.cli.tour_material import Judged, Material, Pairs, Question, position_labels, read_text

if TYPE_CHECKING:
    from torch import Tensor

    from interneuron.model.model import Model

# Kinds of documents that have nothing to do with mood: the cost of steering is measured on them.
UNRELATED = ("fact", "ioi", "co", "arithmetic", "ontology", "laundry")
IOI_TEMPLATE = 1  # "{A} and {B} were at the {place} . then {S} handed the {object} to {IO} ."


def speaks_tinyworld(model: Model) -> bool:
    """Whether the model's tokenizer has exactly the words of Tinyworld."""
    from interneuron.organisms.tinyworld import words

    return model.tokenizer is not None and model.tokenizer.get_vocab() == words.vocabulary()


def tinyworld(model: Model, text: Path | None, windows: int, length: int) -> Material:
    """Material from the world the model was trained on; `text` replaces the documents on which costs are measured.

    Raises InputError when `text` holds words that this world does not have.
    """
    from interneuron.organisms import tinyworld as world

    n, width = 2 * (windows * length // WIDTH), WIDTH
    tokens = _windows(world.encode(read_text(text)), n, width) if text else _documents(world, n, width, UNRELATED)
    tokens = tokens.to(model.device)
    corpus = _documents(world, CORPUS_ROWS, width).to(model.device)
    stories, endings = _stories(world)
    openings = [ending[0].rsplit(" ", 1)[0] for ending in endings[TEST:]]
    return Material(
        pairs=Pairs(
            "happy against unhappy stories",
            "minimal pairs of Tinyworld whose first sentences differ in the mood word alone, cut where the story is "
            "about to say how a thing was, so that the last activation has to know the mood",
            stories[:CHOOSE],
            stories[CHOOSE:TEST],
            stories[TEST:],
            endings[CHOOSE:TEST],
            endings[TEST:],
            "stories, happy and unhappy ones in turn, that end in a positive or in a negative word",
        ),
        prompts=openings[:3],
        question=_indirect_object(model, world),
        select=tokens[0::2],
        test=tokens[1::2],
        corpus=corpus,
        text_source=text.name if text else "Tinyworld documents without mood",
        judged=Judged(openings, "positive", world.judge.sentiment),
    )


CHOOSE, TEST = 48, 72  # stories before CHOOSE fit, those from there to TEST choose, the others are reported on
WIDTH = 32  # tokens a window: the documents of Tinyworld are short
CORPUS_ROWS = 1900  # documents to learn features from


def _stories(world: Any) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Pairs of stories cut before their second mood word, and pairs of endings: one story, either second mood word.

    The endings belong to the happy and the unhappy story in turn, so that a push has something to turn both ways.
    """
    positive, negative = world.contrast("sentiment", n=192, seed=1)
    stories, endings = [], []
    for pair in zip(positive.documents, negative.documents, strict=True):
        if "thing" not in pair[0].roles:
            continue  # a story of one mood word: nothing left to say after it
        cut = [document.roles["thing"][0][0] for document in pair]
        texts = [" ".join(document.words[:k]) for document, k in zip(pair, cut, strict=True)]
        words = [document.words[k] for document, k in zip(pair, cut, strict=True)]
        told = texts[1 - len(stories) % 2]
        stories.append((texts[0], texts[1]))
        endings.append((f"{told} {words[0]}", f"{told} {words[1]}"))
    return stories, endings


def _documents(world: Any, n: int, width: int, kinds: tuple[str, ...] = ()) -> Tensor:
    """The first `width` tokens of n documents of some kinds (default: all).

    Each row is one document from its start: models of this world never saw several documents in one context.
    """
    import torch

    rows: list[list[int]] = []
    tokens = 400 * n + 4000 if kinds else 100 * n
    for document in world.corpus(tokens=tokens, seed=3 if kinds else 4):
        ids = world.encode(document.text)
        if len(ids) >= width and (not kinds or document.kind in kinds):
            rows.append(ids[:width])
    return torch.tensor(rows[:n])


def _windows(ids: list[int], n: int, width: int) -> Tensor:
    """The first n windows of a text, each behind a start token; fewer or narrower ones when the text is short."""
    import torch

    from interneuron.core.errors import InputError

    start, body = ids[0], ids[1:]
    width = min(width - 1, len(body) // 2)
    if width < 8:
        raise InputError(f"the text has {len(body)} tokens: expected at least 16. Give a longer text.")
    n = min(n, len(body) // width)
    return torch.tensor([[start, *body[k * width : (k + 1) * width]] for k in range(n)])


def _indirect_object(model: Model, world: Any) -> Question:
    """Who is given the object? Prompts of one template and order, so that every role stands at one position."""
    import torch

    task = world.task("ioi", n=64, seed=1, template=IOI_TEMPLATE)
    keep = [i for i, order in enumerate(task.labels["order"]) if order == "ABBA"]
    clean, corrupt = (
        torch.tensor([world.encode(texts[i]) for i in keep], device=model.device)
        for texts in (task.clean, task.corrupt)
    )
    labels = position_labels(model, clean, corrupt)
    for role, spans in task.roles.items():
        start, stop = spans[keep[0]].tolist()
        if stop - start == 1 and role in ROLES:
            labels[start] = ROLES[role]
    return Question(
        title="Who is given the object? Two names are mentioned, one of them acts, so it goes to the other.",
        source="held-out pairs of names",
        clean=clean,
        corrupt=corrupt,
        answer=task.answer_ids[keep],
        wrong=task.wrong_ids[keep],
        labels=labels,
        examples=(task.clean[keep[0]], task.corrupt[keep[0]]),
        answers=("the other name", "the one who acts"),
    )


ROLES = {"IO1": "name A", "S1": "name B", "S2": "B | A acts", "place": "place", "object": "object"}

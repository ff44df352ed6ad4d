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

    positive, negative = world.contrast("sentiment", n=96, seed=1)
    pairs = list(zip(positive.prompts, negative.prompts, strict=True))
    ids = world.encode(read_text(text)) if text else _unrelated(world, 2 * windows * length)
    tokens = _cut(ids, windows * 2, length).to(model.device)
    test = pairs[64:]
    return Material(
        pairs=Pairs(
            "happy against unhappy stories", "minimal pairs of Tinyworld that differ in the mood alone",
            pairs[:48], pairs[48:64], test,
        ),
        prompts=[_opening(pair) for pair in test[:3]],
        question=_indirect_object(model, world),
        select=tokens[0::2],
        test=tokens[1::2],
        text_source=text.name if text else "Tinyworld documents without mood",
        judged=Judged([_opening(pair) for pair in test], "positive", world.judge.sentiment),
    )  # fmt: skip


def _opening(pair: tuple[str, str]) -> str:
    """What the two stories of a pair share before the first word that gives the mood away."""
    shared = []
    for a, b in zip(pair[0].split(), pair[1].split(), strict=False):
        if a != b:
            break
        shared.append(a)
    return " ".join(shared)


def _unrelated(world: Any, tokens: int) -> list[int]:
    ids: list[int] = []
    for document in world.corpus(tokens=6 * tokens, seed=3):
        if document.kind in UNRELATED:
            ids += [*world.encode(document.text), _EOS]
    return ids


_EOS = 2


def _cut(ids: list[int], n: int, length: int) -> Tensor:
    """The first n windows of `length` tokens; fewer or shorter ones when there are not enough."""
    import torch

    from interneuron.core.errors import InputError

    length = min(length, len(ids) // 2)
    if length < 8:
        raise InputError(f"the text has {len(ids)} tokens: expected at least 16. Give a longer text.")
    n = min(n, len(ids) // length)
    return torch.tensor(ids[: n * length]).reshape(n, length)


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

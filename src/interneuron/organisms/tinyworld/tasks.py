"""Tasks of Tinyworld: prompts with their answers, counter-answers, same-length corruptions and positions by role."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from interneuron.core.errors import InputError

from . import words as W
from .document import Document, Span


@dataclass(slots=True)
class Item:
    """One example: `doc.words[start:stop]` is what must be produced after `doc.words[:start]`.

    `wanted` are the positions graded (all of start..stop unless told), `wrong` is the counterfactual to the first
    of them, `corrupt` the prompt words with one factor changed (same length as the prompt).
    """

    doc: Document
    start: int
    stop: int
    wrong: str = ""
    corrupt: list[str] | None = None
    wanted: list[int] = field(default_factory=list)
    labels: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.wanted = self.wanted or list(range(self.start, self.stop))


@dataclass
class Task:
    """`n` items of one task. Token tensors start with `<bos>` and are right-padded with `<pad>`.

    Shapes: `tokens` Int[N T] prompts, `mask` Bool[N T], `last` Int[N] the position that predicts the answer,
    `answer_ids`/`wrong_ids` Int[N], `roles[name]` Int[N 2] token spans of the first mention ((-1, -1) if absent).
    """

    name: str
    items: list[Item]
    dials: dict[str, Any]

    def __len__(self) -> int:
        return len(self.items)

    @cached_property
    def prompts(self) -> list[str]:
        return [" ".join(it.doc.words[: it.start]) for it in self.items]

    @cached_property
    def answers(self) -> list[str]:
        """The answer word (of a chain: the word that ends it)."""
        return [it.doc.words[it.wanted[0] if len(it.wanted) == 1 else it.wanted[-1]] for it in self.items]

    @cached_property
    def completions(self) -> list[str]:
        """All words that must follow the prompt."""
        return [" ".join(it.doc.words[it.start : it.stop]) for it in self.items]

    @cached_property
    def wrong(self) -> list[str]:
        return [it.wrong for it in self.items]

    @cached_property
    def tokens(self) -> Tensor:
        return pad([token_ids(it.doc.words[: it.start]) for it in self.items])

    @cached_property
    def mask(self) -> Tensor:
        return self.tokens != 0

    @cached_property
    def last(self) -> Tensor:
        return torch.tensor([it.start for it in self.items])

    @cached_property
    def answer_ids(self) -> Tensor:
        """Id of the first answer token: the one predicted at `last`."""
        return torch.tensor([W.vocabulary()[it.doc.words[it.start]] for it in self.items])

    @cached_property
    def wrong_ids(self) -> Tensor:
        return torch.tensor([W.vocabulary().get(it.wrong, 0) for it in self.items])

    @cached_property
    def clean(self) -> list[str]:
        """Prompts that have a corrupted partner, in the order of `corrupt`."""
        return [" ".join(it.doc.words[: it.start]) for it in self.items if it.corrupt is not None]

    @cached_property
    def corrupt(self) -> list[str]:
        return [" ".join(it.corrupt) for it in self.items if it.corrupt is not None]

    @cached_property
    def labels(self) -> dict[str, list[Any]]:
        keys = dict.fromkeys(k for it in self.items for k in it.labels)
        return {key: [it.labels.get(key) for it in self.items] for key in keys}

    @cached_property
    def roles(self) -> dict[str, Tensor]:
        """Token spans of the roles that lie within the prompts."""
        out = role_spans([it.doc for it in self.items], [it.start for it in self.items])
        out["end"] = torch.stack([self.last, self.last + 1], 1)
        return out

    def accuracy(self, model: Any, batch_size: int = 32) -> float:
        """Share of items whose every graded token is the greedy choice.

        Computed in one pass over prompt + completion: where all completion tokens are graded this is exactly greedy
        decoding, because a first wrong token fails the item anyway.
        """
        return float(self.correct(model, batch_size).float().mean())

    def correct(self, model: Any, batch_size: int = 32) -> Tensor:
        """Bool[N]: which items are answered right. `model` is a Hugging Face model or an `inn.Model`."""
        module = getattr(model, "module", model)
        order = sorted(range(len(self.items)), key=lambda i: self.items[i].stop)
        right = torch.zeros(len(self.items), dtype=torch.bool)
        device = next(module.parameters()).device
        for at in range(0, len(order), batch_size):
            chosen = order[at : at + batch_size]
            rows = [token_ids(self.items[i].doc.words[: self.items[i].stop]) for i in chosen]
            tokens = pad(rows)
            with torch.no_grad():
                logits = module(input_ids=tokens.to(device), attention_mask=(tokens != 0).to(device)).logits
            best = logits.argmax(-1).cpu()
            for row, i in enumerate(chosen):
                at_words = torch.tensor(self.items[i].wanted)
                right[i] = bool((best[row, at_words] == tokens[row, at_words + 1]).all())
        return right

    def log_probability(self, model: Any, batch_size: int = 32) -> Tensor:
        """Float[N]: log-probability of the first answer token at `last`."""
        module = getattr(model, "module", model)
        out = []
        for at in range(0, len(self.items), batch_size):
            tokens, last = self.tokens[at : at + batch_size], self.last[at : at + batch_size]
            with torch.no_grad():
                logits = module(input_ids=tokens, attention_mask=(tokens != 0)).logits
            picked = logits[torch.arange(len(last)), last].float().log_softmax(-1)
            out.append(picked.gather(1, self.answer_ids[at : at + batch_size, None])[:, 0])
        return torch.cat(out)


def token_ids(words: list[str]) -> list[int]:
    """Ids of words with `<bos>` in front."""
    ids = W.vocabulary()
    return [1, *(ids[w] for w in words)]


def pad(rows: list[list[int]]) -> Tensor:
    """Int[N T] from rows of different length, `<pad>` (0) on the right."""
    width = max(map(len, rows))
    return torch.tensor([row + [0] * (width - len(row)) for row in rows])


def role_spans(documents: list[Document], stops: list[int]) -> dict[str, Tensor]:
    """Int[N 2] per role: the first mention that ends before each document's stop, as token positions."""
    out = {}
    for name in sorted({r for d in documents for r in d.roles}):
        spans = [_first(d.roles.get(name, []), stop) for d, stop in zip(documents, stops, strict=True)]
        if any(a >= 0 for a, _ in spans):
            out[name] = torch.tensor(spans)
    return out


def _first(spans: list[Span], start: int) -> Span:
    """The first span within the prompt, as token positions (shifted by `<bos>`)."""
    for a, b in spans:
        if b <= start:
            return a + 1, b + 1
    return -1, -1


Builder = Callable[..., Item]


def check_dials(name: str, given: dict[str, Any], known: tuple[str, ...]) -> None:
    """Raise InputError for a dial that the task does not have."""
    for dial in given:
        if dial not in known:
            raise InputError(
                f"tinyworld.task({name!r}): {dial!r} is not a dial of it. Its dials: {', '.join(known) or 'none'}."
            )

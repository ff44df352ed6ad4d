"""What a tour runs on: contrast pairs, prompts, clean and corrupt questions, and text, for a given model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interneuron.cli import tour_texts
from interneuron.core.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from interneuron.model.model import Model


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Contrast pairs (positive, negative): those that fit, those that choose, and those that are only reported on.

    A direction is read at the last token of `fit`, `choose` and `test`, which should be about to say what differs.
    Steering is measured on `choose_endings` and `test_endings`, whose texts differ in what is said.
    """

    topic: str
    source: str
    fit: list[tuple[str, str]]
    choose: list[tuple[str, str]]
    test: list[tuple[str, str]]
    choose_endings: list[tuple[str, str]]
    test_endings: list[tuple[str, str]]
    measured_on: str


@dataclasses.dataclass(frozen=True)
class Question:
    """Clean and corrupt prompts of equal length [B T], the answer each leads to [B], and a label per position."""

    title: str
    source: str
    clean: Tensor
    corrupt: Tensor
    answer: Tensor
    wrong: Tensor
    labels: list[str]
    examples: tuple[str, str]
    answers: tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Judged:
    """Openings to continue, and a judge of what is added: it returns `wanted`, another word, or None for no verdict."""

    openings: list[str]
    wanted: str
    judge: Callable[[str], str | None]


@dataclasses.dataclass(frozen=True)
class Material:
    """Everything a tour needs beside the model.

    `select` and `test` are token windows [N T] of unrelated text; `corpus` are windows of any text, to learn features.
    """

    pairs: Pairs
    prompts: list[str]
    question: Question
    select: Tensor
    test: Tensor
    corpus: Tensor
    text_source: str
    judged: Judged | None = None


def without_shared_end(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Pairs cut after the last word in which they differ: what both end with says nothing about which is likelier.

    >>> without_shared_end([("she felt glad . then", "she felt sad . then")])
    [('she felt glad', 'she felt sad')]
    """
    cut = []
    for good, bad in pairs:
        a, b = good.split(), bad.split()
        while len(a) > 1 and len(b) > 1 and a[-1] == b[-1]:
            a, b = a[:-1], b[:-1]
        cut.append((" ".join(a), " ".join(b)))
    return cut


CORPUS_WINDOWS = 600  # at most so many windows to learn features from


def windows_of_text(model: Model, text: str, n: int, length: int) -> tuple[Tensor, Tensor]:
    """Token windows of a text, alternately for choosing and for reporting."""
    from interneuron.parts.likelihood import token_windows

    tokens = token_windows(model, text, 2 * n, length)
    if len(tokens) < 2:
        raise InputError(f"the text fills {len(tokens)} window of tokens: expected at least 2. Give a longer text.")
    return tokens[0::2], tokens[1::2]


def read_text(path: Path) -> str:
    """The first part of a text file. Raises InputError when it is missing, empty or not UTF-8 text."""
    if not path.is_file():
        raise InputError(f"--text {str(path)!r} is not a file: give a plain text file.")
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(4_000_000)
    except UnicodeDecodeError as error:
        raise InputError(f"--text {str(path)!r} is not UTF-8 text (byte {error.start}): convert it first.") from error
    if not text.strip():
        raise InputError(f"--text {str(path)!r} is empty: give a file with some paragraphs of text.")
    return text


def generic(model: Model, text: Path | None, windows: int, length: int) -> Material:
    """Material for any English language model; `text` replaces the built-in prose on which costs are measured."""
    from interneuron.parts.likelihood import token_windows

    fit, choose, test_pairs = tour_texts.feelings()
    prose = read_text(text) if text else tour_texts.PROSE
    select, test = windows_of_text(model, prose, windows, length)
    return Material(
        pairs=Pairs(
            "good against bad feelings",
            "built-in sentences; fitted on what people do, judged on words of feeling that were in none of those",
            fit,
            choose,
            test_pairs,
            without_shared_end(choose),
            without_shared_end(test_pairs),
            "the texts of a pair, up to the word of feeling in which they differ",
        ),
        prompts=list(tour_texts.PROMPTS),
        question=best_question(model),
        select=select,
        test=test,
        corpus=token_windows(model, prose, min(max(len(prose) // (6 * length), 1), CORPUS_WINDOWS), length),
        text_source=text.name if text else "built-in prose",
    )


def best_question(model: Model) -> Question:
    """The built-in question that the model tells apart most clearly, both ways.

    Raises InputError when its tokenizer makes no pair of prompts equally long, or it answers none of the questions.
    """
    import torch

    best: tuple[float, Question] | None = None
    for title, frame, words, fillers, answer, wrong in tour_texts.QUESTIONS:
        question = _question(model, title, frame, words, fillers, answer, wrong)
        if question is None:
            continue
        rows = torch.arange(len(question.answer))
        with torch.no_grad():
            gaps = [model(ids).logits[:, -1].float() for ids in (question.clean, question.corrupt)]
        clean, corrupt = ((gap[rows, question.answer] - gap[rows, question.wrong]).mean() for gap in gaps)
        clear = float(torch.minimum(clean, -corrupt))
        if best is None or clear > best[0]:
            best = (clear, question)
    if best is None:
        raise InputError(
            "no built-in pair of clean and corrupt prompts has equally many tokens under this tokenizer: patch prompts "
            "of your own with interneuron.parts.patching.patch_grid."
        )
    return best[1]


def _question(
    model: Model, title: str, frame: str, words: tuple[str, str], fillers: tuple[str, ...], answer: str, wrong: str
) -> Question | None:
    """The rows of a question whose prompts come out equally long, or None when there are none."""
    import torch

    rows: list[tuple[list[int], list[int], int, int, str, str]] = []
    for filler in fillers:
        texts = [frame.format(filler=filler, word=word) for word in words]
        clean, corrupt = (_ids(model, text) for text in texts)
        right, other = (_next_token(model, texts[0], end) for end in (answer, wrong))
        fits = len(clean) == len(corrupt) and (not rows or len(clean) == len(rows[0][0]))
        if fits and right is not None and other is not None and right != other:
            rows.append((clean, corrupt, right, other, texts[0], texts[1]))
    if not rows:
        return None
    clean, corrupt = (torch.tensor([row[i] for row in rows], device=model.device) for i in (0, 1))
    return Question(
        title=title,
        source="built-in prompts",
        clean=clean,
        corrupt=corrupt,
        answer=torch.tensor([row[2] for row in rows]),
        wrong=torch.tensor([row[3] for row in rows]),
        labels=position_labels(model, clean, corrupt),
        examples=(rows[0][4], rows[0][5]),
        answers=(answer.strip(), wrong.strip()),
    )


def _ids(model: Model, text: str) -> list[int]:
    return list(model.tokenizer(text)["input_ids"])


def _next_token(model: Model, prompt: str, end: str) -> int | None:
    """The first token of `end` after the prompt, or None where the tokenizer would then cut the prompt differently."""
    before, both = _ids(model, prompt), _ids(model, prompt + end)
    return both[len(before)] if both[: len(before)] == before and len(both) > len(before) else None


def position_labels(model: Model, clean: Tensor, corrupt: Tensor) -> list[str]:
    """One label per position: its token; `a | b` where clean and corrupt differ; `*` where the rows vary."""
    labels = []
    for p in range(clean.shape[1]):
        mine, theirs = token_text(model, int(clean[0, p])), token_text(model, int(corrupt[0, p]))
        varies = bool((clean[:, p] != clean[0, p]).any())
        labels.append((f"{mine} | {theirs}" if mine != theirs else mine) + (" *" if varies else ""))
    return labels


def token_text(model: Model, token: int) -> str:
    """A token as a reader would write it; pieces that continue a word start with a dash."""
    tokenizer: Any = model.tokenizer
    raw = str(tokenizer.convert_ids_to_tokens(token))
    for mark in ("▁", "Ġ"):
        if raw.startswith(mark):
            return raw[1:] or "space"
    text = raw.removeprefix("##").replace("\n", "⏎").replace("Ċ", "⏎").replace("<0x0A>", "⏎")
    marked = raw.startswith("##") or any(
        mark in str(tokenizer.convert_ids_to_tokens(i)) for i in _ids(model, "one two") for mark in ("▁", "Ġ")
    )
    return f"-{text}" if marked and text.isalnum() else text

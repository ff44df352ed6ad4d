"""Questions about scenes with exact answers, balanced so that the question alone gives nothing away."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from interneuron.core.errors import InputError, did_you_mean

from . import randoms
from .scenes import Scenes
from .vocabulary import COLORS, POSITIONS, SHAPES

KINDS = ("exist", "color", "count", "relation", "position", "compare")
_NUMBERS = ("zero", "one", "two", "three", "four", "five")
_CLEAR = 0.1  # two centres or radii (relative) closer than this are not compared

Asked = tuple[str, str, str]  # question, answer, a wrong answer


@dataclass(frozen=True)
class Questions:
    """`texts[i]` is about scene `index[i]`; `answers[i]` is right and `wrong[i]` a plausible wrong answer."""

    texts: list[str]
    answers: list[str]
    wrong: list[str]
    index: Tensor

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class _Scene:
    """The objects of one scene as plain lists, and the random numbers of its question."""

    shapes: list[int]
    colors: list[int]
    positions: list[int]
    x: list[float]
    y: list[float]
    radius: list[float]
    u: list[float]

    @property
    def unique(self) -> list[int]:
        """Objects whose shape occurs once, so that `the star` means one thing."""
        return [k for k, s in enumerate(self.shapes) if self.shapes.count(s) == 1]


def _exist(s: _Scene) -> Asked | None:
    absent = [k for k in range(len(SHAPES)) if k not in s.shapes]
    yes = s.u[0] < 0.5
    pool = sorted(set(s.shapes)) if yes else absent
    shape = SHAPES[pool[int(s.u[1] * len(pool))]]
    return f"is there a {shape} ?", "yes" if yes else "no", "no" if yes else "yes"


def _color(s: _Scene) -> Asked | None:
    if not s.unique:
        return None
    k = s.unique[int(s.u[0] * len(s.unique))]
    other = (s.colors[k] + 1 + int(s.u[1] * (len(COLORS) - 1))) % len(COLORS)
    return f"what color is the {SHAPES[s.shapes[k]]} ?", COLORS[s.colors[k]], COLORS[other]


def _count(s: _Scene) -> Asked | None:
    n = len(s.shapes)
    other = n + 1 if (s.u[0] < 0.5 and n < 5) or n == 1 else n - 1
    return "how many objects are there ?", _NUMBERS[n], _NUMBERS[other]


def _pair(s: _Scene) -> tuple[int, int] | None:
    """Two objects of unique shape in random order."""
    if len(s.unique) < 2:
        return None
    first = int(s.u[0] * len(s.unique))
    second = (first + 1 + int(s.u[1] * (len(s.unique) - 1))) % len(s.unique)
    return s.unique[first], s.unique[second]


def _relation(s: _Scene) -> Asked | None:
    pair = _pair(s)
    if pair is None:
        return None
    a, b = pair
    words, line = ("left of", s.x) if s.u[2] < 0.5 else ("above", s.y)
    if abs(line[a] - line[b]) <= _CLEAR:
        return None
    answer = "yes" if line[a] < line[b] else "no"
    text = f"is the {SHAPES[s.shapes[a]]} {words} the {SHAPES[s.shapes[b]]} ?"
    return text, answer, "no" if answer == "yes" else "yes"


def _position(s: _Scene) -> Asked | None:
    if not s.unique:
        return None
    k = s.unique[int(s.u[0] * len(s.unique))]
    other = (s.positions[k] + 1 + int(s.u[1] * (len(POSITIONS) - 1))) % len(POSITIONS)
    return f"where is the {SHAPES[s.shapes[k]]} ?", POSITIONS[s.positions[k]], POSITIONS[other]


def _compare(s: _Scene) -> Asked | None:
    pair = _pair(s)
    if pair is None:
        return None
    a, b = pair
    if abs(s.radius[a] / s.radius[b] - 1.0) <= _CLEAR:
        return None
    names = SHAPES[s.shapes[a]], SHAPES[s.shapes[b]]
    bigger = names if s.radius[a] > s.radius[b] else names[::-1]
    return f"which is larger , the {names[0]} or the {names[1]} ?", *bigger


_ASK: dict[str, Callable[[_Scene], Asked | None]] = dict(
    zip(KINDS, (_exist, _color, _count, _relation, _position, _compare), strict=True)
)


def questions(scenes: Scenes, kind: str, seed: int = 0) -> Questions:
    """At most one question of a kind a scene; scenes where it has no clear answer are left out (see `index`).

    kind   exist, color, count, relation, position, compare. Yes and no are equally likely whatever is asked.

    >>> from .scenes import sample
    ...
    ... q = questions(sample(4, 0, objects=2), "count")
    ... q.answers
    ['two', 'two', 'two', 'two']
    """
    if kind not in KINDS:
        raise InputError(f"no question kind {kind!r}; expected one of {', '.join(KINDS)}.{did_you_mean(kind, KINDS)}")
    f = scenes.factors
    rolls = randoms.uniform(randoms.key(seed, "question", kind), f["scene_key"][:, None] + torch.arange(3)).tolist()
    columns = [f[name].tolist() for name in ("shape", "color", "position", "x", "y", "radius")]
    out: list[tuple[int, Asked]] = []
    for i in range(len(scenes)):
        present = [k for k, label in enumerate(columns[0][i]) if label >= 0]
        asked = _ASK[kind](_Scene(*([column[i][k] for k in present] for column in columns), u=rolls[i]))
        if asked is not None:
            out.append((i, asked))
    texts, answers, wrong = ([asked[part] for _, asked in out] for part in range(3))
    return Questions(texts, answers, wrong, torch.tensor([i for i, _ in out], dtype=torch.int64))

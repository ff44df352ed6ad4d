"""Multiple-choice questions that need several skills at once, with the table of which: spatial reasoning taken apart.

Idea. Each type is a small programme over atomic skills, run on the stored state of a room seen by two cameras. An item
is kept only if exactly one option is right, and within a type no wording favours an answer. Where a model fails can
then be read off as a regression of its scores on the table `NEEDS`.

Types. EQ how many of a colour, SQ how many in all, SA which is largest, OO what is nearest to X, OS which wall is X
nearest to, EP what is in the room, FR where is something to climb (say), SP how to get from A, facing B, to C.
Shapes. Q items of 3 to 4 options; answers Int[Q]. "In the room" means in view of either camera.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from interneuron.core.errors import InputError, did_you_mean

from .views import ROOM, Room
from .vocabulary import COLORS, SHAPES

ATOMS = ("recognise", "locate", "relate", "size", "count", "function", "fuse", "situate", "forward")
NEEDS: dict[str, tuple[str, ...]] = {
    "EQ": ("recognise", "fuse", "count"), "SQ": ("fuse", "count"), "SA": ("recognise", "size", "fuse"),
    "OO": ("recognise", "locate", "relate"), "OS": ("recognise", "locate", "situate"), "EP": ("recognise", "fuse"),
    "FR": ("recognise", "function", "locate"), "SP": ("recognise", "situate", "relate", "forward"),
}  # fmt: skip
"""The skills each type needs."""

PURPOSES = ("roll", "stack", "climb", "hang up", "lean on", "wear", "give away", "fly")
"""What each shape is good for, in the order of `SHAPES`."""

_WALLS = ("the wall at x = 0", "the wall at y = 0", "the far wall in x", "the far wall in y")
_CLEAR = 1.2


@dataclass(frozen=True)
class CompositeQuestions:
    """Q items of one type: texts, options, answers Int[Q] (place among the options), rows Int[Q] of the rooms.

    first, second   the room from the two cameras;  needs: the skills of this type
    """

    kind: str
    texts: list[str]
    options: list[tuple[str, ...]]
    answers: Tensor
    rows: Tensor
    first: Room
    second: Room

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def needs(self) -> tuple[str, ...]:
        return NEEDS[self.kind]

    @property
    def chance(self) -> float:
        """Accuracy of guessing."""
        return sum(1 / len(o) for o in self.options) / max(len(self), 1)

    def oracle(self, skill: dict[str, float], seed: int = 0) -> Tensor:
        """Answers Int[Q] of a reader who masters each skill with a chance of its own (1 where none is given).

        One failed skill makes the answer a random one of the wrong options.
        """
        rng = Random(f"{seed} {self.kind} oracle")
        given = []
        for options, right in zip(self.options, self.answers.tolist(), strict=True):
            able = all(rng.random() < skill.get(atom, 1.0) for atom in self.needs)
            given.append(right if able else rng.choice([i for i in range(len(options)) if i != right]))
        return torch.tensor(given, dtype=torch.int64)


@dataclass(frozen=True)
class _Scene:
    room: Room
    row: int
    seen: list[int]
    first: list[int]
    bearing: list[float]
    rng: Random

    def name(self, k: int) -> str:
        return self.room.name(self.row, k)

    def place(self, k: int) -> complex:
        x, y = self.room.position[self.row, k].tolist()
        return complex(x, y)

    def radius(self, k: int) -> float:
        return float(self.room.radius[self.row, k])


_Found = tuple[str, str, list[str], str]  # text, right option, wrong options, key of alike questions


def _numbers(scene: _Scene, text: str, count: int, width: int) -> _Found | None:
    low = count - scene.rng.randrange(width)
    if low < 0:
        return None
    window = [str(low + i) for i in range(width)]
    return text, str(count), [w for w in window if w != str(count)], " ".join(window)


def _eq(s: _Scene) -> _Found | None:
    counts = [sum(int(s.room.color[s.row, k]) == color for k in s.seen) for color in range(6)]
    count = s.rng.choice(sorted(set(counts)))  # large counts are rare, so the number is drawn before the colour
    color = s.rng.choice([c for c in range(6) if counts[c] == count])
    return _numbers(s, f"how many {COLORS[color]} objects do the two pictures show in all ?", count, 3)


def _sq(s: _Scene) -> _Found | None:
    return _numbers(s, "how many different objects do the two pictures show ?", len(s.seen), 4)


def _sa(s: _Scene) -> _Found | None:
    if len(s.seen) < 3:
        return None
    chosen = s.rng.sample(s.seen, 3)
    order = sorted(chosen, key=s.radius)
    if s.radius(order[2]) <= s.radius(order[1]):
        return None
    return "which of these is the largest ?", s.name(order[2]), [s.name(k) for k in order[:2]], "name"


def _oo(s: _Scene) -> _Found | None:
    if len(s.first) < 4:
        return None
    anchor, *others = s.rng.sample(s.first, 4)
    gaps = sorted((abs(s.place(k) - s.place(anchor)), k) for k in others)
    if gaps[1][0] < _CLEAR * gaps[0][0]:
        return None
    text = f"which of these is nearest to the {s.name(anchor)} ?"
    return text, s.name(gaps[0][1]), [s.name(k) for _, k in gaps[1:]], "name"


def _os(s: _Scene) -> _Found | None:
    if not s.first:
        return None
    k = s.rng.choice(s.first)
    p = s.place(k)
    gaps = sorted(zip((p.real, p.imag, ROOM - p.real, ROOM - p.imag), _WALLS, strict=True))
    if gaps[1][0] < _CLEAR * gaps[0][0]:
        return None
    return f"which wall is the {s.name(k)} nearest to ?", gaps[0][1], [w for _, w in gaps[1:]], "wall"


def _ep(s: _Scene) -> _Found | None:
    if not s.seen:
        return None
    right = s.name(s.rng.choice(s.seen))
    here = {s.name(k) for k in range(s.room.shape.shape[1]) if bool(s.room.present[s.row, k])}
    absent = [f"{c} {w}" for c in COLORS[:6] for w in SHAPES if f"{c} {w}" not in here]
    return "which of these do the pictures show ?", right, s.rng.sample(absent, 3), "name"


def _fr(s: _Scene) -> _Found | None:
    kinds = [int(s.room.shape[s.row, k]) for k in s.first]
    alone = [k for k, kind in zip(s.first, kinds, strict=True) if kinds.count(kind) == 1]
    alone = [k for k in alone if abs(abs(s.bearing[k]) - 0.2) > 0.06]
    if not alone:
        return None
    k = s.rng.choice(alone)
    side = "middle" if abs(s.bearing[k]) < 0.2 else "left" if s.bearing[k] < 0 else "right"
    text = f"in which part of the first picture is something to {PURPOSES[int(s.room.shape[s.row, k])]} ?"
    return text, side, [w for w in ("left", "middle", "right") if w != side], "part"


def _sp(s: _Scene) -> _Found | None:
    if len(s.first) < 3:
        return None
    a, b, c = s.rng.sample(s.first, 3)
    turn = (s.place(c) - s.place(a)) / (s.place(b) - s.place(a))
    angle = math.degrees(math.atan2(turn.imag, turn.real))
    words = ("go straight on", "turn left", "turn around", "turn right")
    quarter = round(angle / 90) % 4
    if abs(angle - 90 * round(angle / 90)) > 35:
        return None
    text = f"you stand at the {s.name(a)} and face the {s.name(b)} ; how do you get to the {s.name(c)} ?"
    return text, words[quarter], [w for w in words if w != words[quarter]], "turn"


_MAKERS: dict[str, Callable[[_Scene], _Found | None]] = {
    "EQ": _eq, "SQ": _sq, "SA": _sa, "OO": _oo, "OS": _os, "EP": _ep, "FR": _fr, "SP": _sp,
}  # fmt: skip


def composite(room: Room, kind: str, seed: int = 0) -> CompositeQuestions:
    """One item of a type about each room that allows one; the second camera stands a quarter turn further round.

    >>> from interneuron.organisms.shapes import views
    ...
    ... asked = composite(views(50, seed=0), "OO")
    ... asked.needs
    ('recognise', 'locate', 'relate')
    """
    if kind not in _MAKERS:
        raise InputError(f"no composite type {kind!r}; expected {', '.join(_MAKERS)}.{did_you_mean(kind, _MAKERS)}")
    second = room.beside
    one, two = room.in_view, second.in_view
    bearing = room.bearing()
    found: list[tuple[int, _Found]] = []
    for row in range(len(room)):
        seen, first = (mask[row].nonzero()[:, 0].tolist() for mask in (one | two, one))
        scene = _Scene(room, row, seen, first, bearing[row].tolist(), Random(f"{seed} {kind} {row}"))
        item = _MAKERS[kind](scene)
        if item is not None:
            found.append((row, item))
    kept = _balanced(found)
    rng = Random(f"{seed} {kind} order")
    options = [tuple(rng.sample([right, *wrong], 1 + len(wrong))) for _, (_, right, wrong, _) in kept]
    answers = [o.index(it[1]) for o, (_, it) in zip(options, kept, strict=True)]
    rows = torch.tensor([row for row, _ in kept], dtype=torch.int64)
    return CompositeQuestions(
        kind, [it[0] for _, it in kept], options, torch.tensor(answers, dtype=torch.int64), rows,
        room.rows(rows), second.rows(rows),
    )  # fmt: skip


def _balanced(found: list[tuple[int, _Found]]) -> list[tuple[int, _Found]]:
    """Of the items that offer the same options, as many of each answer (names are drawn, so they need none)."""
    groups: dict[str, dict[str, list[tuple[int, _Found]]]] = defaultdict(lambda: defaultdict(list))
    for row, item in found:
        groups[item[3]]["any" if item[3] == "name" else item[1]].append((row, item))
    kept = []
    for key, answers in groups.items():
        whole = key == "name" or len(answers) == 1 + len(next(iter(answers.values()))[0][1][2])
        least = min(map(len, answers.values())) if whole else 0
        kept += [pair for same in answers.values() for pair in same[:least]]
    return sorted(kept, key=lambda pair: pair[0])

"""Two-choice questions about rooms: what stands where, what moved, what would be seen from elsewhere.

Idea. Answers come from the stored poses. A question is asked only where the answer is clear (angles of 10 degrees or
more, distances in a ratio of 1.2 or more, both objects in view), and within one kind the two answers are equally likely
given the words of the question, so a reader without the picture is at chance.

Static kinds need one view, dynamic ones an action or a second view: `after` is the room as it is then.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

import torch
from torch import Tensor

from interneuron.core.errors import InputError, did_you_mean

from .views import FOV, Room, actions
from .vocabulary import COLORS

MARGIN, RATIO = math.radians(10.0), 1.2
_TURN, _STEP = math.radians(30.0), 1.5


@dataclass(frozen=True)
class SpatialQuestions:
    """Q questions of one kind. rows Int[Q] names the room of each, answers Int[Q] the place of the right option.

    before, after   the rooms row by row, Q of them (`after` is None for kinds of one view)
    slots           the objects a question speaks of, in the order of its words
    """

    kind: str
    texts: list[str]
    options: list[tuple[str, str]]
    answers: Tensor
    rows: Tensor
    slots: list[tuple[int, ...]]
    before: Room
    after: Room | None

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class _Item:
    text: str
    right: str
    wrong: str
    slots: tuple[int, ...]
    key: str
    action: int = -1
    moved: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class _Sight:
    """What one room shows, as plain numbers."""

    room: Room
    row: int
    seen: list[int]
    bearing: list[float]
    distance: list[float]

    def name(self, slot: int) -> str:
        return self.room.name(self.row, slot)


def _pair(sight: _Sight, rng: Random, clear: Callable[[int, int], bool]) -> tuple[int, int] | None:
    pairs = [(a, b) for a in sight.seen for b in sight.seen if a != b and clear(a, b)]
    return rng.choice(pairs) if pairs else None


def _two(
    sight: _Sight, rng: Random, value: list[float], kind: str, words: tuple[str, str], apart: float
) -> _Item | None:
    """`is the A <low> or <high> than the B`: words name the smaller and the larger value."""
    ratio = kind == "depth"
    found = _pair(
        sight,
        rng,
        lambda a, b: (max(value[a] / value[b], value[b] / value[a]) if ratio else abs(value[a] - value[b])) >= apart,
    )
    if found is None:
        return None
    a, b = found
    text = f"is the {sight.name(a)} {words[0]} or {words[1]} than the {sight.name(b)} ?"
    low = value[a] < value[b]
    return _Item(text, words[not low], words[low], found, kind)


def _side(s: _Sight, rng: Random) -> _Item | None:
    return _two(s, rng, s.bearing, "side", ("further left", "further right"), MARGIN)


def _depth(s: _Sight, rng: Random) -> _Item | None:
    return _two(s, rng, s.distance, "depth", ("nearer", "farther"), RATIO)


def _height(s: _Sight, rng: Random) -> _Item | None:
    return _two(s, rng, s.room.elevation[s.row].tolist(), "height", ("lower", "higher"), 0.6)


def _size(s: _Sight, rng: Random) -> _Item | None:
    return _two(s, rng, [float(v) for v in s.room.size[s.row]], "size", ("smaller", "larger"), 1.0)


def _nearer(s: _Sight, rng: Random) -> _Item | None:
    found = _pair(s, rng, lambda a, b: s.distance[b] / s.distance[a] >= RATIO)
    if found is None:
        return None
    names = [s.name(found[0]), s.name(found[1])]
    shown = rng.sample(names, 2)
    return _Item(f"which is nearer , the {shown[0]} or the {shown[1]} ?", names[0], names[1], found, "nearer")


def _count(s: _Sight, rng: Random) -> _Item | None:
    # only rooms whose objects are all in view, else the number is a matter of opinion
    if len(s.seen) < int(s.room.present[s.row].sum()):
        return None
    color = rng.randrange(6)
    members = tuple(k for k in s.seen if int(s.room.color[s.row, k]) == color)
    other = len(members) + rng.choice((-1, 1))
    if other < 0:
        return None
    low, high = sorted((len(members), other))
    text = f"how many {COLORS[color]} objects are there ?"
    return _Item(text, str(len(members)), str(other), members, f"{low} {high}")


def _turn(s: _Sight, rng: Random) -> _Item | None:
    which = rng.randrange(2)
    text = "between the two pictures , which way did the camera turn ?"
    return _Item(text, ("left", "right")[which], ("right", "left")[which], (), "turn", which)


def _move(s: _Sight, rng: Random) -> _Item | None:
    which = rng.randrange(2)
    text = "between the two pictures , which way did the camera move ?"
    return _Item(text, ("forward", "back")[which], ("back", "forward")[which], (), "move", 2 + which)


def _object(s: _Sight, rng: Random) -> _Item | None:
    found = _pair(s, rng, lambda a, b: True)
    if found is None:
        return None
    angle = rng.uniform(0, 2 * math.pi)
    gap = (1.2 * math.cos(angle), 1.2 * math.sin(angle))
    shown = rng.sample([s.name(found[0]), s.name(found[1])], 2)
    text = f"which moved while the camera turned , the {shown[0]} or the {shown[1]} ?"
    return _Item(text, s.name(found[0]), s.name(found[1]), found, "object", rng.randrange(2), gap)


def _perspective(s: _Sight, rng: Random) -> _Item | None:
    if len(s.seen) < 3:
        return None
    a, b, c = rng.sample(s.seen, 3)
    angle = _from(s.room.position[s.row], a, b, c)
    if not MARGIN <= abs(angle) <= math.pi - MARGIN:
        return None
    text = f"standing at the {s.name(a)} and facing the {s.name(b)} , is the {s.name(c)} on the left or on the right ?"
    side = ("left", "right") if angle > 0 else ("right", "left")
    return _Item(text, *side, (a, b, c), "perspective")


def _from(places: Tensor, a: int, b: int, c: int) -> float:
    """The angle from direction a-b to direction a-c, counter-clockwise positive (so to the left)."""
    p, q = (places[b] - places[a]).tolist(), (places[c] - places[a]).tolist()
    return math.atan2(p[0] * q[1] - p[1] * q[0], p[0] * q[0] + p[1] * q[1])


def _aim(s: _Sight, rng: Random) -> _Item | None:
    goals = [k for k in s.seen if abs(s.bearing[k]) >= MARGIN]
    if not goals:
        return None
    goal = rng.choice(goals)
    side = ("left", "right") if s.bearing[goal] < 0 else ("right", "left")
    return _Item(f"which way must the camera turn to face the {s.name(goal)} ?", *side, (goal,), "aim")


def _consequence(s: _Sight, rng: Random) -> _Item | None:
    which = rng.randrange(2)
    later = {k: abs(s.bearing[k] + (_TURN if which == 0 else -_TURN)) for k in s.seen}
    goals = [k for k, angle in later.items() if angle <= FOV / 2 - MARGIN / 2 or angle >= FOV / 2 + MARGIN]
    if not goals:
        return None
    goal = rng.choice(goals)
    text = f"if the camera does {actions()[which]} by 30 degrees , is the {s.name(goal)} still in view ?"
    answer = ("yes", "no") if later[goal] < FOV / 2 else ("no", "yes")
    return _Item(text, *answer, (goal,), f"consequence {which}", which)


_Maker = Callable[[_Sight, Random], _Item | None]
STATIC: dict[str, _Maker] = {
    "side": _side, "depth": _depth, "nearer": _nearer, "height": _height, "size": _size, "count": _count,
}  # fmt: skip
DYNAMIC: dict[str, _Maker] = {
    "turn": _turn, "move": _move, "object": _object, "perspective": _perspective, "aim": _aim,
    "consequence": _consequence,
}  # fmt: skip


def spatial(room: Room, kind: str, seed: int = 0) -> SpatialQuestions:
    """One question of a kind about each room where one can be asked clearly, both answers equally often.

    >>> from interneuron.organisms.shapes import views
    ...
    ... asked = spatial(views(50, seed=0), "side")
    ... asked.options[0] in [("further left", "further right"), ("further right", "further left")]
    True
    """
    makers = {**STATIC, **DYNAMIC}
    if kind not in makers:
        raise InputError(f"no spatial question {kind!r}; expected {', '.join(makers)}.{did_you_mean(kind, makers)}")
    visible, bearing, distance = room.in_view, room.bearing(), room.distance()
    found: list[tuple[int, _Item]] = []
    for row in range(len(room)):
        seen = visible[row].nonzero()[:, 0].tolist()
        sight = _Sight(room, row, seen, bearing[row].tolist(), distance[row].tolist())
        item = makers[kind](sight, Random(f"{seed} {kind} {row}"))
        if item is not None:
            found.append((row, item))
    kept = _balanced(found)
    rng = Random(f"{seed} {kind} order")
    options = [rng.choice(((it.right, it.wrong), (it.wrong, it.right))) for _, it in kept]
    answers = torch.tensor([o.index(it.right) for o, (_, it) in zip(options, kept, strict=True)], dtype=torch.int64)
    rows = torch.tensor([row for row, _ in kept], dtype=torch.int64)
    before = room.rows(rows)
    items = [it for _, it in kept]
    return SpatialQuestions(
        kind, [it.text for it in items], options, answers, rows, [it.slots for it in items], before,
        _after(before, items) if kind in ("turn", "move", "object", "consequence") else None,
    )  # fmt: skip


def _balanced(found: list[tuple[int, _Item]]) -> list[tuple[int, _Item]]:
    """Of the items that ask alike, as many of the one answer as of the other (for answers that are not names)."""
    groups: dict[str, dict[str, list[tuple[int, _Item]]]] = defaultdict(lambda: defaultdict(list))
    for row, item in found:
        if item.key in ("nearer", "object"):  # the answer is a name, and which is told first was drawn
            groups[item.key]["any"].append((row, item))
        else:
            groups[item.key][item.right].append((row, item))
    kept = []
    for key, answers in groups.items():
        least = min(map(len, answers.values())) if len(answers) > 1 or key in ("nearer", "object") else 0
        kept += [pair for same in answers.values() for pair in same[:least]]
    return sorted(kept, key=lambda pair: pair[0])


def _after(before: Room, items: list[_Item]) -> Room:
    """Every room after its item's camera action and object move."""
    action = torch.tensor([it.action for it in items], dtype=torch.int64)
    turned, walked = before.act(action, _TURN), before.act(action, _STEP)
    camera = torch.where((action >= 2)[:, None], walked.camera, turned.camera)
    room = replace(before, camera=camera)
    if not any(it.moved != (0.0, 0.0) for it in items):
        return room
    return room.shift(torch.tensor([it.slots[0] for it in items]), torch.tensor([it.moved for it in items]))

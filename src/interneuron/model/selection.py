"""Selection: which part of a tensor, by axis name. Reads and edits use this one mechanism."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterator
from typing import Any, Literal, get_args

from interneuron.core.errors import AxisError, PositionError

Phase = Literal["all", "prompt", "generated"]
_ALIASES = {"row": "batch", "rows": "batch", "position": "pos", "heads": "head"}


class Selection:
    """An immutable choice per axis, plus the phase (`all`, `prompt`, `generated`) of a generation.

    Equality and hashing go by the description, so tensors given as positions compare by value.

    >>> Selection().merge({"pos": -1, "head": [0, 3]})
    Selection(pos=-1, head=[0, 3])
    """

    __slots__ = ("_spec", "phase")

    def __init__(self, spec: dict[str, Any] | None = None, phase: str = "all") -> None:
        if phase not in get_args(Phase):
            raise PositionError(f"phase={phase!r} is unknown: expected one of {get_args(Phase)}.")
        self._spec = dict(spec or {})
        self.phase: Phase = phase  # pyrefly: ignore[bad-assignment]

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes that are restricted."""
        return tuple(self._spec)

    def get(self, axis: str) -> Any:
        """The choice for an axis, or None when the whole axis is taken."""
        return self._spec.get(axis)

    def items(self) -> Iterator[tuple[str, Any]]:
        """Pairs of axis name and choice."""
        return iter(self._spec.items())

    def merge(self, spec: dict[str, Any]) -> Selection:
        """A new selection with these choices added; choosing an axis twice is refused."""
        spec = dict(spec)
        phase = spec.pop("phase", self.phase)
        merged = dict(self._spec)
        for key, value in spec.items():
            axis = _ALIASES.get(key, key)
            if axis in merged:
                raise AxisError(f"axis {axis!r} is already selected ({merged[axis]!r}): select each axis once.")
            if value is not None:
                merged[axis] = _normal(axis, value)
        return Selection(merged, phase)

    def describe(self) -> str:
        """The selection as it would be written in `.at(...)`."""
        parts = [f"{axis}={choice!r}" for axis, choice in self._spec.items()]
        return ", ".join(parts + ([f"phase={self.phase!r}"] if self.phase != "all" else []))

    def __bool__(self) -> bool:
        return bool(self._spec) or self.phase != "all"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Selection) and self.describe() == other.describe()

    def __hash__(self) -> int:
        return hash(self.describe())

    def __repr__(self) -> str:
        return f"Selection({self.describe()})"


def _normal(axis: str, choice: Any) -> Any:
    """The choice as plain ints, slices and lists that nobody else can change; text and spans pass as they are."""
    if hasattr(choice, "tolist"):  # tensors and NumPy numbers and arrays
        choice = choice.tolist()
    if isinstance(choice, slice):
        return slice(*(None if bound is None else _normal(axis, bound) for bound in _bounds(choice)))
    if isinstance(choice, (list, tuple, range)) and len(choice):
        return [[] if isinstance(item, list) and not item else _normal(axis, item) for item in choice]
    if isinstance(choice, str) or dataclasses.is_dataclass(choice):
        return choice
    if isinstance(choice, bool) or not hasattr(choice, "__index__"):
        raise AxisError(
            f"{axis}={choice!r} is not a choice: expected an int, a list of ints (not empty), a slice or a span. "
            "Turn a mask into numbers with mask.nonzero()."
        )
    return operator.index(choice)


def _bounds(choice: slice) -> tuple[Any, Any, Any]:
    return choice.start, choice.stop, choice.step

"""Saved tensors: where the running code stands, and one record per distinct tensor."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from interneuron.parts.saved_tensors import Place, Seen


class Spy(nn.Module):
    """Notes at every call of its inner module where the code stands and what runs."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        self.place: Place | None = None
        self.seen: list[tuple[str, str]] = []

    def forward(self, x: Tensor) -> Tensor:
        """Both layers, with a look from inside each of them."""
        for layer in self.inner:
            handle = layer.register_forward_pre_hook(self._note)
            x = layer(x)
            handle.remove()
        return x

    def _note(self, *_: object) -> None:
        assert self.place is not None
        self.seen.append((self.place.path, self.place.op))


def stood(paths: tuple[str, ...] | None, ops: bool) -> tuple[list[str], Place]:
    spy = Spy()
    with Place(spy, paths, ops) as place:
        spy.place = place
        spy(torch.ones(1, 2))
        spy(torch.ones(1, 2))
    assert not spy._forward_pre_hooks and not spy.inner[0]._forward_pre_hooks
    return [path for path, _ in spy.seen], place


def test_a_place_tells_apart_the_modules_it_was_asked_for() -> None:
    every, place = stood(None, ops=True)
    assert every == ["inner.0", "inner.1"] * 2
    assert place.passes == 2 and place.path == ""
    some, place = stood(("inner.1",), ops=False)
    assert some == ["", "inner.1"] * 2
    assert place.passes == 2
    none, place = stood((), ops=False)
    assert none == [""] * 4
    assert place.passes == 2


def told(ops: bool) -> list[str]:
    """The operations that a place names when tensors are saved."""
    names: list[str] = []
    weight = torch.ones(2, 2, requires_grad=True)
    with Place(nn.Identity(), (), ops) as place:

        def note(tensor: Tensor) -> Tensor:
            names.append(place.op)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, note):
            nn.functional.gelu(weight @ weight)
        assert place.op == ""
    return names


def test_operations_are_told_only_where_they_are_asked_for() -> None:
    assert set(told(ops=True)) == {"matmul", "gelu"}
    assert set(told(ops=False)) == {""}
    assert len(told(ops=True)) == len(told(ops=False))


def test_one_record_per_distinct_tensor_as_long_as_both_live() -> None:
    made: list[Tensor] = []

    def make() -> nn.Module:
        made.append(x)
        return nn.Identity()

    seen, x = Seen(), torch.ones(2, 3)
    record = seen.find(x, make)
    assert seen.find(x.view(6), make) is record and seen.find(x.t(), make) is record
    assert len(made) == 1
    x.add_(1)  # another version holds other numbers
    other = seen.find(x, make)
    assert other is not record and len(made) == 2
    del other
    assert seen.find(x, make) is not None and len(made) == 3  # its record was let go
    assert seen.find(torch.ones(4), lambda: None) is None

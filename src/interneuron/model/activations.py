"""Activations: what a read saw, by site name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from interneuron.core.errors import ShapeError, SiteDidNotFire, SiteNotFound, did_you_mean


class Box:
    """The tensors one site gave during the most recent pass (during generation: the most recent sequence)."""

    __slots__ = ("axes", "concat", "grads", "name", "owned", "stream", "values", "versions")

    def __init__(self, name: str, axes: tuple[str, ...], stream: Any, owned: bool) -> None:
        self.name, self.axes, self.stream, self.owned = name, axes, stream, owned
        self.values: list[Tensor] = []
        self.versions: list[int] = []
        self.grads: list[Tensor | None] = []
        self.concat = False  # set once a pass continues the sequence in the KV cache

    def clear(self) -> None:
        self.values.clear()
        self.versions.clear()
        self.grads.clear()
        self.concat = False


class Activations(Mapping[str, Tensor]):
    """Tensors by site: `acts["layers.3.resid_post"]`.

    It holds the most recent forward pass. During generation the passes that continue one sequence are joined along
    the position axis, so the tensor covers the prompt and every token fed back. `acts.calls(name)` lists the tensors
    of a module that runs several times in one pass. `acts.grad[name]` is the gradient, after `backward`, when the
    read was opened with `grad=True`.
    """

    def __init__(self, boxes: dict[str, Box], canonical: Any) -> None:
        self._boxes = boxes
        self._canonical = canonical

    @property
    def grad(self) -> Gradients:
        """Gradients by site, after `backward`."""
        # Made when asked for: kept here, the two would hold each other until the garbage collector runs.
        return Gradients(self)

    @property
    def names(self) -> tuple[str, ...]:
        """The sites read, in the order asked for."""
        return tuple(self._boxes)

    def box(self, name: Any) -> Box:
        """The box of a site, by any of its names."""
        name = str(name)
        if name not in self._boxes:
            resolved = self._canonical(name)
            if resolved not in self._boxes:
                raise SiteNotFound(
                    f"{name!r} was not read here (read: {', '.join(list(self._boxes)[:6])}"
                    f"{', ...' if len(self._boxes) > 6 else ''}): add it to read(...)."
                    + did_you_mean(name, self._boxes)
                )
            name = resolved
        return self._boxes[name]

    def calls(self, name: Any) -> list[Tensor]:
        """Every tensor the site gave in the most recent pass, in order."""
        box = self.box(name)
        if not box.owned:
            for value, version in zip(box.values, box.versions, strict=True):
                if not value.is_inference() and value._version != version:
                    raise ShapeError(
                        f"{box.name}: the model overwrote this tensor in place after it was read, so its value is "
                        "gone. Read a copy: model.read(..., to='cpu') or to=<device>."
                    )
        return list(box.values)

    def __getitem__(self, name: Any) -> Tensor:
        box = self.box(name)
        return _joined(box, self.calls(name), "tensors")

    def __iter__(self) -> Iterator[str]:
        return iter(self._boxes)

    def __len__(self) -> int:
        return len(self._boxes)

    def __contains__(self, name: object) -> bool:
        try:
            return bool(self.box(name).values)
        except SiteNotFound:
            return False

    def __repr__(self) -> str:
        rows = [f"{n}: {tuple(b.values[-1].shape) if b.values else 'not fired'}" for n, b in self._boxes.items()]
        return "Activations(" + ", ".join(rows[:8]) + (", ..." if len(rows) > 8 else "") + ")"


class Gradients:
    """Gradients by site, filled by `backward`."""

    def __init__(self, acts: Activations) -> None:
        self._acts = acts

    def __getitem__(self, name: Any) -> Tensor:
        box = self._acts.box(name)
        grads = [grad for grad in box.grads if grad is not None]
        if not grads:
            raise SiteDidNotFire(
                f"{box.name} has no gradient: open the read with grad=True, call backward() on a loss that depends on "
                "the site, and read acts.grad afterwards."
            )
        return _joined(box, grads, "gradients")


def _joined(box: Box, tensors: Sequence[Tensor], what: str) -> Tensor:
    if not tensors:
        raise SiteDidNotFire(f"{box.name} has not fired yet: run the model inside the context first.")
    if len(tensors) == 1:
        return tensors[0]
    if box.concat and "pos" in box.axes:
        return torch.cat(list(tensors), dim=box.axes.index("pos") - len(box.axes))
    raise SiteDidNotFire(
        f"{box.name} gave {len(tensors)} {what} in one pass, so a single one would hide the others: "
        f"use acts.calls({box.name!r})."
    )

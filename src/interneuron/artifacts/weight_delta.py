"""WeightDelta: a sparse change of a model's parameters that can be applied and taken back bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from interneuron.artifacts import plots
from interneuron.artifacts.base import Artifact
from interneuron.core.errors import FingerprintMismatch, ShapeError


class WeightDelta(Artifact):
    """Single weights of named parameters, with the value each had and the value it gets.

    index    parameter name -> Int[n], positions in the flattened parameter
    before   parameter name -> [n], values when fitted
    after    parameter name -> [n], values once applied
    n_parameters  size of every parameter that was looked at, changed or not
    """

    index: dict[str, Tensor]
    before: dict[str, Tensor]
    after: dict[str, Tensor]
    n_parameters: dict[str, int]

    def validate(self) -> None:
        """Refuse maps of different names or lengths, and positions outside a parameter."""
        for name, index in self.index.items():
            shapes = [list(x[name].shape) if name in x else None for x in (self.index, self.before, self.after)]
            if any(shape != [len(index)] for shape in shapes):
                raise ShapeError(
                    f"WeightDelta: {name!r} has index, before and after {shapes}, expected one length each"
                )
            size = self.n_parameters.get(name, 0)
            if len(index) and not 0 <= int(index.min()) <= int(index.max()) < size:
                raise ShapeError(f"WeightDelta: {name!r} has positions up to {int(index.max())} of {size} weights")
        if not self.index.keys() == self.before.keys() == self.after.keys():
            raise ShapeError("WeightDelta: index, before and after name different parameters. Give one entry for each")

    @property
    def n_changed(self) -> int:
        """How many weights change."""
        return sum(len(index) for index in self.index.values())

    @property
    def selected_fraction(self) -> float:
        """Share of all weights that change."""
        return self.n_changed / max(1, sum(self.n_parameters.values()))

    def apply(self, model: Any) -> None:
        """Write the new values into the model's parameters.

        Raises:
            FingerprintMismatch: a parameter is missing or does not hold the values it had when this was fitted.
        """
        self._write(model, self.before, self.after)

    def revert(self, model: Any) -> None:
        """Write the old values back: every bit is as before `apply`.

        Raises:
            FingerprintMismatch: the model does not hold the values that `apply` wrote.
        """
        self._write(model, self.after, self.before)

    @contextmanager
    def applied(self, model: Any) -> Iterator[None]:
        """The model with the change inside the `with` block, and as it was behind it, also after an error."""
        self.apply(model)
        try:
            yield
        finally:
            self.revert(model)

    def plot(self) -> dict[str, Any]:
        """Share of each parameter that changes, as a bar plot."""
        shares = {name: len(index) / self.n_parameters[name] for name, index in self.index.items()}
        return plots.bars("Weights changed", list(shares), list(shares.values()), y_label="share of the parameter")

    def _write(self, model: Any, expected: dict[str, Tensor], new: dict[str, Tensor]) -> None:
        parameters = dict(model.module.named_parameters())
        for name, index in self.index.items():  # everything is checked before anything is written
            found = parameters.get(name)
            if found is None or found.numel() != self.n_parameters[name]:
                raise FingerprintMismatch(
                    f"parameter {name!r} is missing or has another size, expected {self.n_parameters[name]} weights. "
                    "Use the model this was fitted on"
                )
            held = found.detach().reshape(-1)[index.to(found.device)]
            if not torch.equal(held, expected[name].to(found.device)):
                raise FingerprintMismatch(
                    f"parameter {name!r} holds other values than when this was fitted (or it is applied already). "
                    "Load the model anew, or call revert first"
                )
        with torch.no_grad():
            for name, index in self.index.items():
                flat = parameters[name].data
                spots = torch.unravel_index(index.to(flat.device), flat.shape)
                flat[spots] = new[name].to(flat.device)

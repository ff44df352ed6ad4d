"""LowRankAdapter: what LoRA adds to the linear layers of a frozen model."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from interneuron.artifacts import plots
from interneuron.artifacts.base import Artifact
from interneuron.core.errors import ShapeError


class LowRankAdapter(Artifact):
    """y <- W x + scale * B A x at every layer named; the weights of the model stay as they are.

    a      module path -> [r in];  the rank r may differ from layer to layer
    b      module path -> [out r]
    scale  one factor for all layers (LoRA's alpha / r)
    """

    a: dict[str, Tensor]
    b: dict[str, Tensor]
    scale: float = 1.0

    def validate(self) -> None:
        """Refuse layers with one matrix only, and matrices that do not fit each other."""
        for path in {**self.a, **self.b}:
            shapes = [list(x[path].shape) if path in x else None for x in (self.a, self.b)]
            if any(s is None or len(s) != 2 for s in shapes) or self.a[path].shape[0] != self.b[path].shape[1]:
                raise ShapeError(f"LowRankAdapter: {path!r} has a, b of shapes {shapes}, expected [r in] and [out r]")

    @property
    def ranks(self) -> dict[str, int]:
        """Rank of every layer that is adapted."""
        return {path: len(a) for path, a in self.a.items()}

    @property
    def n_parameters(self) -> int:
        """Numbers in all A and B."""
        return sum(x.numel() for x in (*self.a.values(), *self.b.values()))

    def edit(self, alpha: float = 1.0) -> Any:
        """The adapter as edits, `alpha` times as strong; gradients flow into A and B if these take any."""
        from interneuron.model.edits import Edits

        return alpha * Edits(edit for path in self.a for edit in self._pair(path))

    def plot(self) -> dict[str, Any]:
        """Rank of every layer, as a bar plot."""
        return plots.bars("Rank of each layer", list(self.ranks), list(self.ranks.values()), y_label="rank")

    def _pair(self, path: str) -> tuple[Any, Any]:
        """One edit that looks at the layer's input and one that adds to its output."""
        from interneuron.model.edits import Apply

        a, b, seen = self.a[path], self.b[path], []

        def look(x: Tensor) -> Tensor:
            seen[:] = [x]
            return x

        def add(y: Tensor) -> Tensor:
            x = seen.pop().to(a.dtype)
            low = x @ a.to(x.device).T @ b.to(x.device).T
            return (y.to(low.dtype) + self.scale * low).to(y.dtype)

        return Apply(f"{path}:in", look), Apply(f"{path}:out", add)

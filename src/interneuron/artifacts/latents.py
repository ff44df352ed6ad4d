"""Latents: the non-zero features of a dictionary on a text, as a list of places and values."""

from __future__ import annotations

import torch
from torch import Tensor

from interneuron.artifacts.base import Artifact
from interneuron.core.errors import ShapeError


class Latents(Artifact):
    """Where features were active, and how much.

    locations    [N 3] int64: row of the batch, position, feature
    activations  [N], the values there; everything else is 0
    tokens       [B T] token ids, or None
    n_features   F; 0 when unknown
    ranges       first and last feature of each file it came from, or empty
    """

    locations: Tensor
    activations: Tensor
    tokens: Tensor | None = None
    n_features: int = 0
    ranges: tuple[tuple[int, int], ...] = ()

    def validate(self) -> None:
        """Matching lengths, whole numbers, inside the batch and the dictionary."""
        n = len(self.activations)
        if self.locations.dtype != torch.int64 or tuple(self.locations.shape) != (n, 3) or self.activations.ndim != 1:
            raise ShapeError(
                f"Latents.locations is {self.locations.dtype} {list(self.locations.shape)} beside "
                f"{list(self.activations.shape)} "
                "activations, expected int64 [N 3] beside [N]."
            )
        if n == 0:
            return
        top = self.locations.amax(0)
        if bool((self.locations < 0).any()) or (self.n_features and int(top[2]) >= self.n_features):
            raise ShapeError(
                f"Latents name feature {int(top[2])} of {self.n_features}, or a negative place. They are damaged."
            )
        if self.tokens is not None and (
            self.tokens.ndim != 2 or int(top[0]) >= len(self.tokens) or int(top[1]) >= self.tokens.shape[1]
        ):
            raise ShapeError(
                f"Latents name row {int(top[0])}, position {int(top[1])} of tokens {list(self.tokens.shape)}."
            )

    def dense(self, rows: slice = slice(None)) -> Tensor:
        """Feature activations [B' T F] of the rows chosen, zeros included."""
        if self.tokens is not None:
            batch, length = self.tokens.shape
        else:
            batch, length = (int(n) + 1 for n in self.locations.amax(0)[:2]) if len(self.activations) else (0, 0)
        wanted = range(batch)[rows]
        features = self.n_features or (int(self.locations[:, 2].max()) + 1 if len(self.activations) else 0)
        out = torch.zeros(len(wanted), length, features, dtype=self.activations.dtype)
        inside = (self.locations[:, 0] >= wanted.start) & (self.locations[:, 0] < wanted.stop)
        b, t, f = self.locations[inside].T
        out[b - wanted.start, t, f] = self.activations[inside]
        return out

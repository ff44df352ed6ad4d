"""Direction: one vector per site; the simplest thing a method can learn, and what steering and ablation act with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interneuron.artifacts.base import Artifact
from interneuron.core.errors import InputError, ShapeError
from interneuron.core.seeds import generator

if TYPE_CHECKING:
    from interneuron.model.edits import Edit


class Direction(Artifact):
    """A vector v at a site, in the units of that site's activations (its length is kept, not normalised away).

    vector  [D] with `site` one name, or [S D] with `site` a tuple of S names

    Raises:
        ShapeError: not a floating-point [D] or [S D], or not one row per site.
        InputError: holds NaN or infinity.

    >>> d = Direction(torch.tensor([3.0, 4.0]), site="layers.0.resid_post")
    >>> d.norm.item(), d.score(torch.tensor([[3.0, 4.0], [4.0, -3.0]])).tolist()
    (5.0, [5.0, 0.0])
    """

    vector: Tensor

    def validate(self) -> None:
        """Shape, dtype, one row per site, finite numbers."""
        shape, n = list(self.vector.shape), len(self.sites)
        if not self.vector.is_floating_point() or len(shape) not in (1, 2) or 0 in shape:
            raise ShapeError(
                f"Direction.vector is {self.vector.dtype} {shape}, expected floating point [D] or [S D]. Convert it."
            )
        if (len(shape) == 1) != isinstance(self.site, str) or (len(shape) == 2 and shape[0] != n):
            raise ShapeError(
                f"Direction.vector has shape {shape} for {n} site(s) {self.site!r}, expected [D] with one site name or "
                "[S D] with a tuple of S names. Pass site=..."
            )
        if not torch.isfinite(self.vector).all():
            raise InputError(
                "Direction.vector holds NaN or infinity, expected finite numbers. Look at what it was made of."
            )

    @property
    def norm(self) -> Tensor:
        """|v|: a number [] for one site, [S] for several."""
        return self.vector.norm(dim=-1)

    @property
    def unit(self) -> Tensor:
        """v / |v|, of the shape of `vector`; an all-zero vector has none and is refused with InputError."""
        if (self.norm == 0).any():
            raise InputError(
                f"the direction at {self.site!r} is all zeros, expected a length. Fit it on two unlike groups."
            )
        return self.vector / self.norm[..., None]

    def _rows(self, rows: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.sites, rows if rows.dim() == 2 else rows[None], strict=True))

    def score(self, activations: Any) -> Any:
        """Projection x . v/|v| of activations x on the direction: [..., D] -> [...], in the units of x.

        activations  a tensor [..., D] (one site), or a mapping from site name to tensor, such as what `read` returns;
                     with several sites the answer is a dict of the same names

        Raises:
            ShapeError: the last axis is not D.
            InputError: a tensor where several sites need a mapping.
        """
        units = self._rows(self.unit)
        if isinstance(activations, Tensor):
            if len(units) > 1:
                raise InputError(
                    f"one tensor for {len(units)} sites, expected a mapping from site name to tensor. "
                    "Pass what model.read returned."
                )
            return _project(activations, units[self.sites[0]], self.sites[0])
        scores = {site: _project(activations[site], unit, site) for site, unit in units.items()}
        return scores[self.site] if isinstance(self.site, str) else scores

    def edit(self, alpha: float = 1.0) -> Edit:
        """The Edit x <- x + alpha v at every site; alpha = 0 changes no bit."""
        from interneuron.model.edits import Add

        return _join([Add(site, v, alpha=alpha) for site, v in self._rows(self.vector).items()])

    def ablation(self) -> Edit:
        """The Edit x <- x - (x . u) u with u = v/|v|: what lies along the direction is removed at every site."""
        from interneuron.model.edits import Project

        return _join([Project(site, u, keep=False) for site, u in self._rows(self.unit).items()])

    def cosine(self, other: Direction | Tensor) -> Tensor:
        """Cosine similarity with another direction or vector of the same shape: [] for one site, [S] for several."""
        if not isinstance(other, Direction):
            other = Direction(other, site=self.site)
        if other.vector.shape != self.vector.shape:
            raise ShapeError(
                f"directions of shapes {list(self.vector.shape)} and {list(other.vector.shape)}, expected the same. "
                "Compare directions of one model and the same number of sites."
            )
        # float64, so that a direction with itself gives 1 to the last printed digit
        mine, theirs = self.unit.double(), other.unit.to(self.vector.device).double()
        return (mine * theirs).sum(-1).clamp(-1, 1).to(self.vector.dtype)

    def random_like(self, seed: int) -> Direction:
        """The control: a random direction of the same norm at the same sites; the same seed gives the same bits."""
        noise = torch.randn(self.vector.shape, generator=generator(seed), dtype=torch.float64)
        noise = noise / noise.norm(dim=-1, keepdim=True) * self.norm.cpu().double()[..., None]
        return self.replace(
            vector=noise.to(device=self.vector.device, dtype=self.vector.dtype),
            fitted={"control": "random direction of the same norm", "seed": seed, "of": self.slug},
        )

    def plot(self) -> dict[str, Any]:
        """The norm at each site as a bar plot (see `interneuron.artifacts.plots`)."""
        from interneuron.artifacts import plots

        return plots.bars("Length of the direction", list(self.sites), self.norm.reshape(-1).tolist(), y_label="|v|")


def _project(x: Tensor, unit: Tensor, site: str) -> Tensor:
    if x.dim() == 0 or x.shape[-1] != unit.shape[0]:
        raise ShapeError(
            f"activations of shape {list(x.shape)} at {site}, expected [..., {unit.shape[0]}]. "
            "Read the site the direction was fitted on."
        )
    dtype = torch.promote_types(
        torch.promote_types(x.dtype, unit.dtype), torch.float32
    )  # never summed in half precision
    return x.to(dtype) @ unit.to(device=x.device, dtype=dtype)


def _join(edits: list[Any]) -> Any:
    joined = edits[0]
    for edit in edits[1:]:
        joined = joined + edit
    return joined

"""Mean difference: the direction from the mean activation of one group of inputs to that of another.

Paper: Panickssery, Gabrieli, Schulz, Tong, Hubinger, Turner: Steering Llama 2 via Contrastive Activation Addition
    (2024), https://arxiv.org/abs/2312.06681. The difference of class means is older; this paper made it the field's
    baseline for steering language models.

Idea: inputs that differ in one property differ, on average, along one direction of the residual stream. Adding a
    multiple of that direction while the model runs makes the property more or less present in what it writes.

Equations:
    (1)  v = 1/N sum_i x_i^+  -  1/M sum_j x_j^-        x^+, x^-: activations at one site and position
    (2)  h <- h + alpha v                               `Direction.edit(alpha)`

Shapes: x^+ [N D], x^- [M D], v [D]; with several sites v is [S D]. The groups need not be of equal size.

Cost: one forward pass per input up to the last site asked for; memory O(S D) beyond one batch.

Departures: the paper adds the vector at every position after the prompt and takes pairs of equal prompts that end in
    different answer letters; here the groups need not be paired [inferred: the mean of differences is the difference
    of means], and where to add it is chosen with `edit.at(...)`. Means are accumulated in float64.

Use:
    model = inn.load("lm")
    direction = inn.steer.MeanDifference().fit(model, ["she felt happy ."], ["she felt sad ."], "layers.2.resid_post")
    with model.edit(direction.edit(alpha=2.0)): model.generate("mia looked", max_new_tokens=8)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interneuron.artifacts import Direction
from interneuron.core.cards import Card
from interneuron.core.errors import InputError, ShapeError
from interneuron.model.model import Model
from interneuron.model.sites import Site

CARD = Card(
    slug="mean_difference",
    family="steer",
    kind="fitter",
    exports=("MeanDifference",),
    paper="Steering Llama 2 via Contrastive Activation Addition",
    authors="Panickssery, Nina and Gabrieli, Nick and Schulz, Julian and Tong, Meg and Hubinger, Evan and Turner, Alex",
    year=2024,
    link="https://arxiv.org/abs/2312.06681",
    purpose="Steering direction: difference of the mean activations of two contrasting groups of inputs",
    claim="Adding the direction moves behaviour towards the positive group, subtracting it moves it away",
)


@dataclass(frozen=True)
class MeanDifference:
    """Difference-of-means direction.

    pos         position whose activation stands for an input (-1: its last token); None: the mean over its tokens
    batch_size  inputs per forward pass; the result does not depend on it beyond rounding
    """

    pos: int | None = -1
    batch_size: int = 32

    def fit(
        self, model: Model, positive: Sequence[str], negative: Sequence[str], site: str | Sequence[str]
    ) -> Direction:
        """Return the direction at `site` from the texts `negative` to the texts `positive`.

        With one site name the vector is [D]; with a sequence of names it is [S D], and the direction acts at each.

        Raises:
            InputError: a group is empty.
            SiteNotFound: `site` is not a site of the model.
            PositionError: an input has no token at `pos`.
        """
        places = [model.site(name) for name in ([site] if isinstance(site, str) else site)]
        rows = self._means(model, "positive", positive, places) - self._means(model, "negative", negative, places)
        return self._direction(  # eq. 1
            rows[0] if isinstance(site, str) else rows,
            places[0].name if isinstance(site, str) else tuple(place.name for place in places),
            len(positive),
            len(negative),
            model.fingerprint,
        )

    def fit_activations(
        self, positive: Float[Tensor, "N D"], negative: Float[Tensor, "M D"], site: str = "activations"
    ) -> Direction:
        """Return the direction from rows already read at `site`.

        Raises:
            ShapeError: the groups are not two matrices of one width.
            InputError: a group is empty or holds NaN or infinity.
        """
        if positive.dim() != 2 or negative.dim() != 2 or positive.shape[1] != negative.shape[1]:
            raise ShapeError(
                f"activations of shapes {list(positive.shape)} and {list(negative.shape)}, expected [N D] and [M D] "
                "with one D. Read both groups at the same site"
            )
        rows = [_mean(name, x) for name, x in (("positive", positive), ("negative", negative))]
        return self._direction(rows[0] - rows[1], site, len(positive), len(negative))  # eq. 1

    def _means(self, model: Model, name: str, inputs: Sequence[str], places: list[Site]) -> Float[Tensor, "S D"]:
        """Mean activation of a group at each site; one token, or the mean over tokens, stands for an input."""
        if isinstance(inputs, str) or len(inputs) == 0:
            raise InputError(f"{name}: expected a list of at least one text, got {inputs!r}. Pass a list of texts")
        sums = []
        with torch.no_grad():
            for start in range(0, len(inputs), self.batch_size):
                sums.append(self._sum(model, list(inputs[start : start + self.batch_size]), places))
        return (torch.stack(sums).sum(0) / len(inputs)).float()

    def _sum(self, model: Model, batch: list[str], places: list[Site]) -> Float[Tensor, "S D"]:
        """Sum over a batch of the activation that stands for each input, at every site, in float64."""
        if self.pos is not None:
            acts = model.run(batch, read=[place.at(pos=self.pos) for place in places]).acts
            return torch.stack([acts[place.name].double().sum(0) for place in places])
        _, inputs = model.prepare(batch)
        acts = model.run(inputs, read=places).acts
        real = inputs["attention_mask"].double()
        weights = real / real.sum(1, keepdim=True)  # a mean over real tokens: padding is masked out
        return torch.stack([torch.einsum("BT,BTD->D", weights, acts[place.name].double()) for place in places])

    def _direction(
        self,
        vector: Float[Tensor, "*S D"],
        site: str | tuple[str, ...],
        n_positive: int,
        n_negative: int,
        fingerprint: dict[str, Any] | None = None,
    ) -> Direction:
        fitted = {**asdict(self), "n_positive": n_positive, "n_negative": n_negative}
        return Direction(vector, site=site, slug=CARD.slug, fitted=fitted, fingerprint=fingerprint or {})


def _mean(name: str, x: Float[Tensor, "N D"]) -> Float[Tensor, " D"]:
    if len(x) == 0:
        raise InputError(f"{name}: expected at least one row, got activations of shape {list(x.shape)}. Pass rows")
    if not torch.isfinite(x).all():
        bad = int((~torch.isfinite(x).all(dim=1)).sum())
        raise InputError(f"{name}: {bad} of {len(x)} rows hold NaN or infinity. Drop them, or look at the model")
    # The mean of a group must not lose digits to half precision, whatever dtype the model runs in.
    return x.double().mean(0).to(torch.promote_types(x.dtype, torch.float32))

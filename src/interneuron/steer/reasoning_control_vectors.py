"""Reasoning control vectors: what a model's states share when it sees solved tasks, added while it solves others.

Paper: Højer, Jarvis, Heinrich: Improving Reasoning Performance in Large Language Models via Representation Engineering
    (2025), https://arxiv.org/abs/2504.19483.

Idea: a model that has just seen a task solved correctly is in a state that helps. The mean of that state, or what sets
    it apart from the state after a wrong answer, is one vector per layer; adding it at one layer while the model
    answers can raise accuracy without any training. How much it shifts the distribution of answers is reported as well.

Equations:
    (1)  reading     v = mean_i h_i^+
    (2)  contrast    v = mean_i (h_i^+ - h_i^-)
    (3)  pca         v = u_1 |mean_i (h_i^+ - h_i^-)|     u_1: first principal component of h^+ - h^-, centred
    (4)  h <- h + alpha v;  with normalize  h <- |h| (h + alpha v) / |h + alpha v|         at every position

Shapes: h^+, h^- [N D], the residual stream behind a layer at the last token; v [S D] for S layers.

Cost: one forward pass per text; memory O(S N D).

Departures: the sign of a principal component is arbitrary; it is turned so that v points with the mean difference, and
    a sweep over alpha covers both signs as in the paper. Length-matched strings of random characters, the paper's
    negatives for one of its kinds, are for the caller to give as `negative`.

Use:
    model = inn.load("lm")
    vectors = inn.steer.ReasoningVector().fit(model, ["mia had a cup ."] * 2, ["mia had a home .", "mia had a lamp ."])
    with model.edit(vectors.edit(alpha=0.5, normalize=True)): model.generate("mia looked", max_new_tokens=8)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from interneuron.artifacts import Direction
from interneuron.core.cards import Card
from interneuron.core.errors import InputError, ShapeError, did_you_mean
from interneuron.model.edits import Apply
from interneuron.model.model import Model
from interneuron.parts.contrast import last_token_activations

CARD = Card(
    id=88,
    slug="reasoning_control_vectors",
    family="steer",
    kind="fitter",
    exports=("ReasoningVector", "ControlVectors", "reading_vector"),
    paper="Improving Reasoning Performance in Large Language Models via Representation Engineering",
    authors="Højer, Bertram and Jarvis, Oliver and Heinrich, Stefan",
    year=2025,
    link="https://arxiv.org/abs/2504.19483",
    purpose="Better answers without training: a vector read from correctly solved tasks, added while others are solved",
    claim="Vectors from solved tasks raise accuracy on inductive, deductive and mathematical tasks to a degree",
)

KINDS = ("reading", "contrast", "pca")


class ControlVectors(Direction):
    """One vector per layer, of which one layer's is used at a time.

    vector  [S D] for S sites
    """

    def at(self, site: str) -> Direction:
        """The vector of one site as a direction of its own, e.g. to compare it with random ones."""
        if site not in self.sites:
            raise InputError(
                f"no vector at {site!r}, only at {', '.join(self.sites)}.{did_you_mean(site, self.sites)} Ask for one"
            )
        row = self.vector if self.vector.dim() == 1 else self.vector[self.sites.index(site)]
        return Direction(row, site=site, slug=self.slug, fingerprint=self.fingerprint, fitted=self.fitted)

    def edit(self, alpha: float = 1.0, site: str | None = None, normalize: bool = False) -> Any:
        """Add alpha v at one site (the middle one unless named), at every position, prompt and generated: eq. 4.

        normalize  give every activation its former length back; such an edit cannot be saved
        """
        one = self.at(site or self.sites[len(self.sites) // 2])
        if not normalize:
            return one.edit(alpha)
        vector = one.vector

        def turn(x: Tensor) -> Tensor:
            wide = x.to(torch.promote_types(x.dtype, vector.dtype))
            moved = wide + alpha * vector.to(wide)
            length = moved.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(wide.dtype).tiny)
            return (moved * (wide.norm(dim=-1, keepdim=True) / length)).to(x.dtype) if alpha else x

        return Apply(str(one.site), turn)

    def plot(self) -> dict[str, Any]:
        """The length of the vector by layer."""
        plot = super().plot()
        return plot | {
            "title": "Length of the control vector",
            "names": [n.removeprefix("layers.") for n in self.sites],
        }


@dataclass(frozen=True)
class ReasoningVector:
    """Control vectors from solved tasks.

    vector      which vector: "reading" (eq. 1), "contrast" (eq. 2) or "pca" (eq. 3)
    sites       where to read (names or globs), the output of every block by default
    batch_size  texts per forward pass
    """

    vector: Literal["reading", "contrast", "pca"] = "contrast"
    sites: str | Sequence[str] = "layers.*.resid_post"
    batch_size: int = 32

    def fit(self, model: Model, positive: Sequence[str], negative: Sequence[str] | None = None) -> ControlVectors:
        """Return one vector per site from tasks with their correct answers, and the same tasks with wrong ones.

        Raises:
            InputError: an unknown vector, no texts, or no partner in `negative` for each text of `positive`.
            SiteNotFound: `sites` names none of the model's.
        """
        if self.vector not in KINDS:
            raise InputError(f"vector={self.vector!r} is unknown: expected one of {', '.join(KINDS)}. Choose one")
        if self.vector == "reading" and negative is not None:
            raise InputError("vector='reading' uses no negative texts, they would be ignored. Leave them out")
        if self.vector != "reading" and negative is None:
            raise InputError(f"vector={self.vector!r} needs negative texts. Pass one for each positive one")
        patterns = [self.sites] if isinstance(self.sites, str) else list(self.sites)
        names = list(dict.fromkeys(site.name for pattern in patterns for site in model.sites(pattern)))
        groups = [
            last_token_activations(model, _texts(name, texts), names, self.batch_size)
            for name, texts in (("positive", positive), ("negative", negative))
            if texts is not None
        ]
        rows = [reading_vector(self.vector, *(group[name] for group in groups)) for name in names]
        fitted = {**asdict(self), "sites": names, "n": len(positive)}
        vectors = torch.stack(rows)
        return ControlVectors(
            vectors, site=tuple(names), slug=CARD.slug, fitted=fitted, fingerprint=model.fingerprint
        )  # fmt: skip


def reading_vector(
    vector: str, positive: Float[Tensor, "N D"], negative: Float[Tensor, "N D"] | None = None
) -> Float[Tensor, " D"]:
    """The vector of eq. 1, 2 or 3 from activations that have been read already.

    Raises:
        ShapeError: not two matrices of one shape.
        InputError: no rows, NaN or infinity, or too few rows for a principal component.
    """
    rows = [positive] if negative is None else [positive, negative]
    if any(x.dim() != 2 or x.shape != positive.shape for x in rows):
        got = " and ".join(str(list(x.shape)) for x in rows)
        raise ShapeError(
            f"activations of shapes {got}: expected [N D] in both, one negative for each positive. Pair them"
        )
    if not len(positive) or not all(bool(torch.isfinite(x).all()) for x in rows):
        raise InputError(f"{len(positive)} rows, or NaN or infinity in them: expected finite rows. Look at the model")
    wide = torch.promote_types(positive.dtype, torch.float32)
    if negative is None:
        return positive.double().mean(0).to(wide)  # eq. 1
    gaps = positive.double() - negative.double()
    mean = gaps.mean(0)
    if vector != "pca":
        return mean.to(wide)  # eq. 2
    if len(gaps) < 2:
        raise InputError(f"{len(gaps)} pair: a principal component needs at least 2. Give more pairs")
    first = torch.linalg.svd(gaps - mean, full_matrices=False)[2][0]
    sign = 1.0 if float(first @ mean) >= 0 else -1.0
    return (sign * first * mean.norm()).to(wide)  # eq. 3


def _texts(name: str, texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str) or len(texts) == 0:
        raise InputError(f"{name}: expected a list of at least one text, got {texts!r}. Pass a list of texts")
    return list(texts)

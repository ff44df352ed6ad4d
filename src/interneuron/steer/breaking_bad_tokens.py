"""SAE detoxification: subtract what a few dictionary features write, at one of three tiers of aggressiveness.

Paper: Goyal, Rathi, Yeh, Wang, Chen, Sundaram: Breaking Bad Tokens: Detoxification of LLMs Using Sparse Autoencoders
    (2025), https://arxiv.org/abs/2505.14536

Idea: a sparse dictionary of the residual stream has features that fire on toxic text. Those that fire more on toxic
    texts than on neutral ones are candidates; each is tried alone, and the few that lower toxicity most are subtracted
    while the model runs: at every token, in inputs where they fired, or only at the tokens where they fire. The
    stronger the tier, the less toxicity and the less fluency.

Equations:
    (1)  s_j = E_pos[mean_t f_j(h_t)] - E_neg[mean_t f_j(h_t)]     the n features of largest s are candidates
    (2)  v_j = mean of f_j(h_t) d_j over the tokens of positive texts where f_j > 0       d_j: decoder row, site units
    (3)  c_j = max_alpha [measure without edit - measure with h - alpha v_j]      over strengths of cost <= limit; the k
                                                                   features of largest c, or the first few of them
    (4)  h_t <- h_t - alpha sum_j g_tj v_j
    (5)  g_tj = 1                            tier "constant"
         g_tj = 1[max_t f_j(h_t) > cut]      tier "per_input", the maximum over the tokens of the prompt
         g_tj = 1[f_j(h_t) > cut]            tier "per_token", generated tokens included

Shapes: h [B T D], f [B T F], v [k D], gates [B k] or [B T k].

Cost: one forward pass up to the site and one encoding of every text, then n + k measurements of effect and cost at
    every strength. The constant tier costs an addition per token; the gated tiers encode every token, O(D F).

Departures: features are chosen by their effect at a bounded cost; the paper also looked at them by hand. Measure and
    cost are the user's; without them the measure is the preference log p(positive) - log p(negative) on every second
    pair, while the other pairs give s and v, and the cost is the rise of the loss on negative texts [inferred]. Of the
    k best features the first one, two, ... k are tried together and the best number is kept [inferred]. Magnitudes are
    means over active tokens, cut is 0, and each feature has a gate of its own [inferred]. Generation without a cache
    shows the gate of a prompt the tokens generated so far as well.

Use:
    model = inn.load("lm")
    sae = inn.decompose.TopAFA(expansion=2, steps=20).fit(model, ["she felt sad ."] * 8, "layers.1.resid_post")
    found = inn.steer.SAEFeatureSteer(n=4).fit(model, sae, ["she felt sad ."] * 2, ["she felt happy ."] * 2)
    with model.edit(found.edit(alpha=1.0, tier="per_token", dictionary=sae)): model.generate("mia looked", max_length=9)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interneuron.artifacts import Artifact, Dictionary, Direction, plots
from interneuron.core.cards import Card
from interneuron.core.errors import InputError, ShapeError
from interneuron.core.seeds import generator
from interneuron.model.edits import Add, Edit, Edits, Place
from interneuron.model.model import Model
from interneuron.parts.activation_rows import kept, place
from interneuron.parts.batches import batches
from interneuron.parts.controls import Candidate
from interneuron.parts.dose import Trial, best_within, try_doses
from interneuron.parts.likelihood import preference, text_losses

CARD = Card(
    id=169,
    slug="breaking_bad_tokens",
    family="steer",
    kind="fitter",
    exports=("SAEFeatureSteer", "FeatureSteering", "rank_toxic_features"),
    paper="Breaking Bad Tokens: Detoxification of LLMs Using Sparse Autoencoders",
    authors="Goyal, Agam and Rathi, Vedant and Yeh, William and Wang, Yian and Chen, Yuen and Sundaram, Hari",
    year=2025,
    link="https://arxiv.org/abs/2505.14536",
    purpose="Less toxic text by subtracting dictionary features: always, in inputs that need it, or at single tokens",
    claim="Strong tiers cut toxicity by up to 20 % beyond rivals; fluency can suffer, facts stay; wider SAEs do worse",
)

Tier = Literal["constant", "per_input", "per_token"]
Measure = Callable[[Any], Tensor]


class FeatureSteering(Artifact):
    """Features to subtract at a site, and how much of each.

    features    Int[k], of the dictionary they were found in
    vectors     [k D], what each writes where it fires (eq. 2)
    candidates  Int[n], all that were tried, with their `scores` (eq. 1) and `effects` (eq. 3) [n]
    width       number of features of that dictionary
    cut         threshold of the gates
    """

    features: Tensor
    vectors: Tensor
    candidates: Tensor
    scores: Tensor
    effects: Tensor
    width: int = 0
    cut: float = 0.0

    def validate(self) -> None:
        """One vector a feature, one score and effect a candidate, finite numbers."""
        n, k = len(self.candidates), len(self.features)
        if self.vectors.ndim != 2 or len(self.vectors) != k or k == 0:
            raise ShapeError(f"{k} features with vectors {list(self.vectors.shape)}, expected [k D], k >= 1. Give both")
        if self.scores.shape != (n,) or self.effects.shape != (n,):
            shapes = [list(self.scores.shape), list(self.effects.shape)]
            raise ShapeError(f"{n} candidates with scores and effects {shapes}, expected [{n}] each. Give one each")
        if not bool(torch.isfinite(self.vectors).all()):
            raise InputError("FeatureSteering.vectors holds NaN or infinity: expected finite numbers. Fit it again")

    def edit(self, alpha: float = 1.0, tier: Tier = "constant", dictionary: Dictionary | None = None) -> Edit | Edits:
        """Eq. 4 at strength `alpha`; the gated tiers need the dictionary the features belong to, and cannot be saved.

        Raises InputError for an unknown tier, a dictionary that is missing, not needed or another one.
        """
        site = self.sites[0]
        if tier not in get_args(Tier):
            raise InputError(f"tier={tier!r} is unknown: expected one of {get_args(Tier)}. Choose one")
        if (dictionary is None) != (tier == "constant"):
            advice = "leave it out, it would be ignored" if dictionary else "pass dictionary=, to see features fire"
            raise InputError(f"tier={tier!r} {'without' if dictionary is None else 'with'} a dictionary: {advice}")
        if dictionary is None:
            return Add(site, -self.vectors.sum(0), alpha=alpha)
        if dictionary.n_features != self.width or dictionary.d_in != self.vectors.shape[1]:
            raise InputError(
                f"a dictionary of {dictionary.d_in} -> {dictionary.n_features}, expected {self.vectors.shape[1]} -> "
                f"{self.width}. Pass the one the features were found in"
            )
        gate = _Gate(dictionary, self.features, self.cut)
        if tier == "per_token":
            return alpha * _Subtract(site, self.vectors, gate, None)
        memory = _Memory()
        listen = _Listen(site, gate, memory).at(phase="prompt")
        return Edits([listen, alpha * _Subtract(site, self.vectors, gate, memory)])

    def random_like(self, dictionary: Dictionary, seed: int) -> FeatureSteering:
        """The control: as many other features of the dictionary, drawn by `seed`, subtracted at the same lengths."""
        order = torch.randperm(dictionary.n_features, generator=generator(seed)).tolist()
        taken = set(self.candidates.tolist())
        chosen = [j for j in order if j not in taken][: len(self.features)]
        if len(chosen) < len(self.features):
            raise InputError(
                f"{dictionary.n_features} features with {len(taken)} candidates leave {len(chosen)}, expected "
                f"{len(self.features)} others. Fit with a smaller n"
            )
        rows = torch.nn.functional.normalize(dictionary.decoder[chosen].to(self.vectors), dim=1)
        return self.replace(
            features=torch.tensor(chosen),
            vectors=rows * self.vectors.norm(dim=1, keepdim=True),
            fitted={"control": "random features of the same lengths", "seed": seed, "of": self.slug},
        )

    def candidate(self, dictionary: Dictionary, tier: Tier = "constant", controls: int = 8, seed: int = 0) -> Candidate:
        """With controls, for `parts.controls.controlled_effect`: effect, cost and dose-response on held-out texts."""
        makes = [
            partial(other.edit, tier=tier, dictionary=None if tier == "constant" else dictionary)
            for other in (self, *(self.random_like(dictionary, seed + i) for i in range(controls)))
        ]
        return Candidate(tier, makes[0], tuple(makes[1:]))

    def plot(self) -> dict[str, Any]:
        """How much the measure falls when each candidate alone is subtracted."""
        order = self.effects.argsort(descending=True).tolist()
        names = [f"{j}*" if j in self.features.tolist() else str(j) for j in self.candidates[order].tolist()]
        return plots.bars(
            "What single features do (* kept)", names, self.effects[order].tolist(), x_label="feature",
            y_label="fall of the measure",
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class SAEFeatureSteer:
    """Features of a dictionary that cause toxicity (or whatever the positive texts show), ready to be subtracted.

    n      candidates, by the contrast of their activations       k      features kept at most
    alphas strengths at which candidates are tried                limit  largest cost of a strength that counts
    skip   first tokens of each text left out                     cut    threshold of the gates
    """

    n: int = 20
    k: int = 3
    alphas: tuple[float, ...] = (1.0, 2.0, 4.0)
    limit: float = 0.1
    skip: int = 1
    cut: float = 0.0

    def fit(
        self,
        model: Model,
        dictionary: Dictionary,
        positive: Sequence[str],
        negative: Sequence[str],
        measure: Measure | None = None,
        cost: Measure | None = None,
    ) -> FeatureSteering:
        """Return the features whose subtraction lowers `measure` most while `cost` rises by `limit` at most.

        measure  edit or None -> one number per development prompt, lower for less toxic. None: every second pair of
                 texts is kept aside, and the measure is how much likelier the model finds its positive text
        cost     edit or None -> one number per text; None: the loss on negative texts, in nats per token

        Raises:
            InputError: too few texts, groups of unequal size without a measure, a dictionary of another kind of site,
                or a measure that is not finite.
            SiteNotFound: the dictionary's site is none of the model's.
        """
        site = _site(model, dictionary)
        if min(self.n, self.k) < 1 or not self.alphas:
            raise InputError(f"n={self.n}, k={self.k}, alphas={self.alphas}: expected one of each at least. Raise them")
        groups = [_texts("positive", positive), _texts("negative", negative)]
        aside = groups
        if measure is None:
            groups, aside = _two_halves(groups)
        effect = measure or partial(preference, model, aside[0], aside[1])
        price = cost or partial(text_losses, model, aside[1])
        ranked = rank_toxic_features(model, dictionary, groups[0], groups[1], self.n, self.skip)
        candidates = [j for j, _ in ranked]
        vectors = _written(model, dictionary, site, groups[0], candidates, self.skip)
        trials = self._try(site, vectors, effect, price)
        effects = [trial.effect if trial.cost <= self.limit else -math.inf for trial in trials]
        order = sorted(range(len(trials)), key=lambda i: (-effects[i], trials[i].cost))[: self.k]
        sums = torch.stack([vectors[order[:size]].sum(0) for size in range(1, len(order) + 1)])
        joint = self._try(site, sums, effect, price)
        allowed = [t for t in joint if t.cost <= self.limit] or joint[:1]
        best = max(allowed, key=lambda t: t.effect)
        order = order[: 1 + joint.index(best)]
        return FeatureSteering(
            features=torch.tensor([candidates[i] for i in order]),
            vectors=vectors[order],
            candidates=torch.tensor(candidates),
            scores=torch.tensor([s for _, s in ranked]),
            effects=torch.tensor([trial.effect for trial in trials]),
            width=dictionary.n_features,
            cut=self.cut,
            site=site,
            slug=CARD.slug,
            fitted={
                **dataclasses.asdict(self), "alpha": best.dose, "effect": best.effect, "cost": best.cost,
                "n_positive": len(groups[0]),
            },
            fingerprint=model.fingerprint,
        )  # fmt: skip

    def _try(self, site: str, vectors: Float[Tensor, "n D"], measure: Measure, price: Measure) -> list[Trial]:
        """Eq. 3 for each vector: its best strength within the limit, or the cheapest one."""
        falls, costs = partial(_checked, measure, -1.0), partial(_checked, price, 1.0)
        trials = try_doses([Direction(-vector, site=site) for vector in vectors], self.alphas, falls, costs)
        size = len(self.alphas)
        return [best_within(trials[at : at + size], self.limit) for at in range(0, len(trials), size)]


def rank_toxic_features(
    model: Model,
    dictionary: Dictionary,
    positive: Sequence[str],
    negative: Sequence[str],
    n: int = 20,
    skip: int = 1,
) -> list[tuple[int, float]]:
    """The n features that fire most on positive texts beyond negative ones, with their contrast (eq. 1).

    Raises InputError for an empty group, SiteNotFound for a site the model does not have.
    """
    site = _site(model, dictionary)
    groups = [_texts("positive", positive), _texts("negative", negative)]
    means = [_mean_code(model, dictionary, site, texts, skip) for texts in groups]
    contrast = means[0] - means[1]
    top = contrast.topk(min(n, len(contrast)))
    return list(zip(top.indices.tolist(), top.values.tolist(), strict=True))


@dataclasses.dataclass(frozen=True, eq=False)
class _Gate:
    """Which of a few features fire."""

    dictionary: Dictionary
    features: Tensor
    cut: float

    def __call__(self, x: Float[Tensor, "B T D"]) -> Bool[Tensor, "B T k"]:
        f = self.dictionary.encode(x.to(self.dictionary.encoder.device))[..., self.features]
        return (f > self.cut).to(x.device)


class _Memory:
    """The gates that the prompts of the present batch have opened: Bool[B k]."""

    opened: Tensor | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class _Listen(Edit):
    """Leaves its site as it is and notes which features fired in each prompt."""

    fires: _Gate
    memory: _Memory

    def transform(self, x: Tensor, place: Place) -> Tensor:
        fired, real = self.fires(x), place.real()
        self.memory.opened = (fired if real is None else fired & real).any(1)
        return x


@dataclasses.dataclass(frozen=True, eq=False)
class _Subtract(Edit):
    """h - sum_j g_j v_j with the gates of each token, or those that the prompt has opened."""

    vectors: Tensor
    fires: _Gate
    memory: _Memory | None

    def transform(self, x: Tensor, place: Place) -> Tensor:
        opened = self.fires(x) if self.memory is None else self._remembered(x)
        change = opened.to(self.vectors.dtype) @ self.vectors.to(x.device)
        return (x - change).to(x.dtype)

    def _remembered(self, x: Tensor) -> Tensor:
        opened = None if self.memory is None else self.memory.opened
        if opened is None or len(opened) != len(x):
            raise InputError(
                f"a pass of {len(x)} rows continues prompts of {0 if opened is None else len(opened)} rows at "
                f"{self.site}: expected the same. Run the prompts inside this context"
            )
        return opened[:, None]


def _site(model: Model, dictionary: Dictionary) -> str:
    """The site where the dictionary reads and writes, one vector a token."""
    if not isinstance(dictionary.site, str) or not dictionary.site or dictionary.target or dictionary.heads:
        raise InputError(
            f"a dictionary of {dictionary.target or dictionary.site!r} with {dictionary.heads} heads: expected one of "
            "vectors at a single site such as layers.2.resid_post. Fit it there"
        )
    return place(model, dictionary.site)


def _texts(name: str, texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str) or len(texts) == 0:
        raise InputError(f"{name}: expected a list of at least one text, got {texts!r}. Pass a list of texts")
    return list(texts)


def _two_halves(groups: list[list[str]]) -> tuple[list[list[str]], list[list[str]]]:
    """Every second pair for scores and vectors, the others for the measure."""
    if len(groups[0]) != len(groups[1]) or len(groups[0]) < 2:
        raise InputError(
            f"{len(groups[0])} positive and {len(groups[1])} negative texts: without measure= they must be pairs, two "
            "at least. Pass pairs, or a measure of your own"
        )
    return [texts[0::2] for texts in groups], [texts[1::2] for texts in groups]


def _checked(measure: Measure, sign: float, edit: Any) -> Tensor:
    values = measure(edit)
    if not isinstance(values, Tensor) or not values.numel() or not bool(torch.isfinite(values).all()):
        raise InputError("a measure gave no tensor of finite numbers: expected one per text. Lower alphas, or mend it")
    return sign * values.double()


@torch.no_grad()
def _mean_code(model: Model, dictionary: Dictionary, site: str, texts: list[str], skip: int) -> Float[Tensor, " F"]:
    """Mean over texts of the mean over tokens of every feature."""
    total = torch.zeros(dictionary.n_features, dtype=torch.float64)
    for inputs, mask in batches(model, texts):
        x = model.run(inputs, read=[site]).acts[site]
        real = kept(mask, skip).to(x.device)
        if not bool(real.any(1).all()):
            raise InputError(f"a text is no longer than skip={skip} tokens, so it has no features. Give longer texts")
        rows, owner = x[real], real.nonzero()[:, 0]
        weight = 1 / real.sum(1).double()
        code = dictionary.encode(rows.to(dictionary.encoder.device)).double()
        total += (code * weight[owner].to(code.device)[:, None]).sum(0).cpu()
    return total / len(texts)


@torch.no_grad()
def _written(
    model: Model, dictionary: Dictionary, site: str, texts: list[str], features: list[int], skip: int
) -> Float[Tensor, "n D"]:
    """Eq. 2: what each feature adds to the reconstruction, averaged over the tokens where it fires, or 0."""
    sums = torch.zeros(len(features), dictionary.d_in, dtype=torch.float64)
    counts = torch.zeros(len(features), dtype=torch.float64)
    for inputs, mask in batches(model, texts):
        x = model.run(inputs, read=[site]).acts[site]
        rows = x[kept(mask, skip).to(x.device)].to(dictionary.encoder.device)
        code = dictionary.encode(rows)[:, features]
        for i, j in enumerate(features):
            on = code[:, i] > 0
            if not bool(on.any()):
                continue
            alone = torch.zeros(int(on.sum()), dictionary.n_features, device=rows.device, dtype=code.dtype)
            nothing = dictionary.decode(alone, rows[on])
            alone[:, j] = code[on, i]
            sums[i] += (dictionary.decode(alone, rows[on]) - nothing).double().sum(0).cpu()
            counts[i] += float(on.sum())
    return (sums / counts.clamp_min(1)[:, None]).float()

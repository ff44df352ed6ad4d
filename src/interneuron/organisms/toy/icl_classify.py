"""`icl_classify`: item-label pairs and a query item: is its label read from the context or from the weights?

Items are noisy class vectors; labels belong to classes. With bursts (the query's class occurs in the context) and many
classes a two-layer attention network learns to look the label up; with few classes and no bursts it memorises.

Equations. item x = (mu_k + eps n) / sqrt(1 + eps^2), mu_k ~ N(0, 1/D); class frequency ~ rank^-alpha.
Truth. Class and label of every item, and `answer_at`: the position of the context label that answers the query.
Source. Reddy 2023, "The mechanistic basis of data dependence and abrupt learning in an in-context classification task".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from interneuron.core.errors import InputError, did_you_mean

from .cache import Trained, cached
from .nets import TinyTransformer, seeded

SPLITS = ("train", "icl", "iwl")


@dataclass(frozen=True)
class Episodes:
    """Sequences Float[n 2 pairs + 1 D], query labels Int[n]; `truth`: classes, labels, `answer_at` (-1 = absent)."""

    x: Tensor
    y: Tensor
    truth: dict[str, Tensor]


@dataclass(frozen=True)
class ICLClassify:
    """The task. `truth` holds class `centres` Float[K D], label vectors Float[L D] and `label_of` Int[K]."""

    pairs: int
    burst: int
    noise: float
    p_burst: float
    zipf: float
    truth: dict[str, Tensor]

    @property
    def n_labels(self) -> int:
        return len(self.truth["labels"])

    def batch(self, n: int, seed: int, split: str = "train") -> Episodes:
        """Draw episodes.

        train: the training mixture. icl: fresh classes with random labels, the query's always in the context. iwl:
        known classes, the query's absent from the context.
        """
        if split not in SPLITS:
            raise InputError(
                f"icl_classify has no split {split!r}; expected {', '.join(SPLITS)}.{did_you_mean(split, SPLITS)}"
            )
        rng = torch.Generator().manual_seed(seed * 3 + SPLITS.index(split))
        centres, label_of = self.truth["centres"], self.truth["label_of"]
        count, width = centres.shape
        weights = torch.arange(1, count + 1).float() ** -self.zipf
        if split == "icl":
            # every episode has classes of its own: nothing stored can answer
            centres = torch.randn(n, self.pairs, width, generator=rng) / width**0.5
            classes = torch.arange(self.pairs).expand(n, -1)
            labels = torch.rand(n, self.n_labels, generator=rng).argsort(1)[:, : self.pairs]
            distinct = max(2, self.pairs // max(self.burst, 1))
            classes = classes % distinct
            labels = labels.gather(1, classes)
            order = torch.rand(n, self.pairs, generator=rng).argsort(1)
            classes, labels = classes.gather(1, order), labels.gather(1, order)
            target_at = torch.randint(self.pairs, (n,), generator=rng)
            rows = torch.arange(n)
            means = centres[rows[:, None], classes]
            query_class, y = classes[rows, target_at], labels[rows, target_at]
            query = centres[rows, query_class]
        else:
            chosen = torch.multinomial(weights.expand(n, -1), self.pairs + 1, replacement=False, generator=rng)
            query_class, classes = chosen[:, 0], chosen[:, 1:].clone()
            if split == "train" and self.burst:
                distinct = max(2, self.pairs // self.burst)
                pool = torch.cat([query_class[:, None], classes[:, : distinct - 1]], 1)
                bursty = pool[:, torch.arange(self.pairs) % distinct]
                order = torch.rand(n, self.pairs, generator=rng).argsort(1)
                use = torch.rand(n, generator=rng) < self.p_burst
                classes = torch.where(use[:, None], bursty.gather(1, order), classes)
            labels, y = label_of[classes], label_of[query_class]
            means, query = centres[classes], centres[query_class]
        scale = (1 + self.noise**2) ** 0.5
        jitter = torch.randn(n, self.pairs + 1, width, generator=rng) * (self.noise / width**0.5)
        items = (means + jitter[:, :-1]) / scale
        query = (query + jitter[:, -1]) / scale
        tokens = torch.stack([items, self.truth["labels"][labels]], 2).flatten(1, 2)
        match = classes == query_class[:, None]
        answer = torch.where(match.any(1), 2 * match.int().argmax(1) + 1, -1)
        truth = {"classes": classes, "labels": labels, "query_class": query_class, "answer_at": answer}
        return Episodes(torch.cat([tokens, query[:, None]], 1), y, truth)


def make(
    seed: int,
    *,
    classes: int = 512,
    labels: int = 16,
    pairs: int = 8,
    burst: int = 4,
    noise: float = 0.1,
    p_burst: float = 1.0,
    zipf: float = 0.0,
    width: int = 32,
) -> ICLClassify:
    """The task's dials: how many classes and labels, pairs in the context, copies of the query class, noise, skew."""
    if classes <= pairs or labels < pairs or burst > pairs:
        raise InputError(
            f"icl_classify needs classes > pairs, labels >= pairs >= burst; got {classes}, {labels}, {pairs}, {burst}."
        )
    rng = torch.Generator().manual_seed(seed)
    truth = {
        "centres": torch.randn(classes, width, generator=rng) / width**0.5,
        "labels": torch.randn(labels, width, generator=rng) / width**0.5,
        "label_of": torch.randint(labels, (classes,), generator=rng),
    }
    return ICLClassify(pairs, burst, noise, p_burst, zipf, truth)


def accuracy(model: nn.Module, data: ICLClassify, split: str, seed: int = -1, n: int = 1000) -> float:
    """Accuracy on the query's label."""
    episodes = data.batch(n, seed, split)
    with torch.no_grad():
        return float((model(episodes.x)[:, -1].argmax(1) == episodes.y).float().mean())


def induction(model: TinyTransformer, data: ICLClassify, seed: int = -1, n: int = 500) -> dict[str, list[float]]:
    """Progress per layer on fresh classes: attention of labels to the item before, of the query to its labels."""
    episodes = data.batch(n, seed, "icl")
    right = episodes.truth["classes"] == episodes.truth["query_class"][:, None]
    previous, lookup = [], []
    for pattern in model.patterns(episodes.x):
        p = pattern.mean(1)
        at = torch.arange(data.pairs) * 2 + 1
        previous.append(float(p[:, at, at - 1].mean()))
        lookup.append(float((p[:, -1, 1::2] * right).sum(1).mean()))
    return {"previous_token": previous, "label_lookup": lookup}


def _train(model: TinyTransformer, data: ICLClassify, steps: int) -> dict[str, Any]:
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-3)
    emerged = None
    for step in range(steps):
        episodes = data.batch(128, step + 1)
        loss = F.cross_entropy(model(episodes.x)[:, -1], episodes.y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if emerged is None and step % 100 == 99 and accuracy(model, data, "icl", n=300) >= 0.8:
            emerged = step + 1
    icl, iwl = accuracy(model, data, "icl"), accuracy(model, data, "iwl")
    looks_up = data.burst > 0
    return {
        "icl_accuracy": icl,
        "iwl_accuracy": iwl,
        "icl_emerged_at": emerged,
        "induction": induction(model, data),
        "required": "icl >= 0.8" if looks_up else "iwl >= 0.8",
        "passed": (icl if looks_up else iwl) >= 0.8,
    }


def trained(seed: int = 0, *, classes: int = 512, burst: int = 4) -> Trained:
    """A two-layer network. Many classes and bursts give in-context lookup; `classes=32, burst=0` gives memory."""
    data = make(seed, classes=classes, burst=burst)
    with seeded(seed):
        model = TinyTransformer(
            data.truth["centres"].shape[1], data.n_labels, 2 * data.pairs + 1, d_model=64, n_layers=2, n_heads=1,
            d_mlp=128, continuous=True,
        )  # fmt: skip
        nn.init.normal_(model.embed.get_parameter("weight"), std=0.5)
        nn.init.normal_(model.position, std=0.5)
    dials = {"seed": seed, "classes": classes, "burst": burst}
    card = cached("icl_classify", dials, model, lambda _: _train(model, data, 3000), 60, __name__)
    return Trained(model, data, card)

"""Selective synaptic dampening on handwritten digits: one digit is forgotten, the others stay.

Three networks (64-256-128-10) a seed, each trained on another split and made to forget another digit, with exact Fisher
diagonals. Compared is the accuracy on the forgotten digit's test scans with that after shrinking as many weights at
random by the same factors. A network trained without the digit is shown beside it. Second, reported only: `cnn` on four
shapes, one of them forgotten.

Deviation: the check fixes the threshold at 5 (the data hold the digit at a tenth, so 10 could select nothing). How much
a network must give up differs from one to the next, and at 5 about a third of them kept the digit. So the threshold is
the largest of 5, 4, 3, 2 and 1.5 that brings accuracy on the *training* scans of the digit to 0.02 or less; no test
scan has a say. The thresholds used are among the extra numbers.
"""

from __future__ import annotations

import statistics
from collections import OrderedDict
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import interneuron as inn
from interneuron.artifacts import WeightDelta
from interneuron.claims import Claim, Comparison
from interneuron.core.seeds import generator
from interneuron.forget.ssd import SSD, membership_inference
from interneuron.loading import load
from interneuron.model.model import Model
from interneuron.organisms import shapes
from interneuron.organisms.digits import digits

CLAIM = Claim(
    slug="ssd",
    organism="digits",
    paper="on par with methods that retrain, for class, subclass and random forgetting with ResNet18 and ViT",
    better="lower",
    unit="accuracy on what is forgotten",
    minutes=1.5,
    why=(
        "The digit is forgotten in most networks, at little cost to the others, and never by random dampening; but "
        "some networks keep up to all of it, at any threshold. Our reading, not measured: nearly every scan is fitted "
        "so well that a few badly fitted ones carry the Fisher diagonal, and the weights selected are theirs. Training "
        "for 120 to 1,200 steps and thresholds from 5 to 1.5 were tried on other seeds; each left some networks so."
    ),
)

NETWORKS = 3
THRESHOLDS = (5.0, 4.0, 3.0, 2.0, 1.5)
FORGOTTEN = 0.02
STEPS = 600
SHAPES = ("circle", "square", "triangle", "star")
N_IMAGES = 240


def claim(seed: int) -> Comparison:
    """Measure accuracies before and after, for three networks."""
    runs = [_digit(NETWORKS * seed + i) for i in range(NETWORKS)]
    drops = [run["retain before"] - run["retain after"] for run in runs]
    means = {name: statistics.fmean(run[name] for run in runs) for name in runs[0]}
    return Comparison(
        ours=[run["forget after"] for run in runs],
        control=[run["forget after random"] for run in runs],
        gates={
            "the forgotten digit's accuracy is <= 0.05": all(run["forget after"] <= 0.05 for run in runs),
            "accuracy on the others falls by <= 0.06 in each network": max(drops) <= 0.06,
            "accuracy on the others falls by <= 0.03 in the median": statistics.median(drops) <= 0.03,
            "random dampening leaves the digit's accuracy >= 0.5": all(r["forget after random"] >= 0.5 for r in runs),
        },
        extra={**means, **_shape(seed)},
    )


def example() -> WeightDelta:
    """Make a small trained network forget the digit 3."""
    data = digits("train", n=300)
    model = _train(data.flat, data.labels, seed=0, steps=60)
    chosen = data.labels == 3
    return SSD(threshold=3.0, batch_size=8).fit(
        model, data.flat, data.flat[chosen], labels=data.labels, forget_labels=data.labels[chosen]
    )


def _digit(seed: int) -> dict[str, float]:
    train, test = digits("train", seed=seed), digits("test", seed=seed)
    gone = seed % 10
    model = _train(train.flat, train.labels, seed, STEPS)
    retrained = _train(train.flat[train.labels != gone], train.labels[train.labels != gone], seed, STEPS)
    chosen = train.labels == gone
    delta = _forget(model, train.flat, train.labels, chosen)
    mine, others = test.labels == gone, test.labels != gone
    found = {}

    def score(when: str, scored: Model) -> None:
        right = scored(test.flat).argmax(-1) == test.labels
        found.update({f"forget {when}": float(right[mine].float().mean())})
        found.update({f"retain {when}": float(right[others].float().mean())})

    with torch.no_grad():
        score("before", model)
        score("retrained", retrained)
        with delta.applied(model):
            score("after", model)
            found["membership inference after"] = membership_inference(
                model, train.flat[chosen], test.flat[mine], train.labels[chosen], test.labels[mine]
            )
        with _random_like(delta, model, seed).applied(model):
            score("after random", model)
    found["share of weights changed"] = delta.selected_fraction
    found["threshold"] = delta.fitted["threshold"]
    return found


def _forget(model: Model, x: Tensor, y: Tensor, chosen: Tensor) -> WeightDelta:
    """The change by the largest threshold under which the digit's training samples go unrecognised, or by the last."""
    for threshold in THRESHOLDS:
        delta = SSD(threshold=threshold).fit(model, x, x[chosen], labels=y, forget_labels=y[chosen])
        with torch.no_grad(), delta.applied(model):
            known = float((model(x[chosen]).argmax(-1) == y[chosen]).float().mean())
        if known <= FORGOTTEN:
            break
    return delta


def _shape(seed: int) -> dict[str, float]:
    """Accuracy of `cnn` on four shapes before and after forgetting one of them."""
    model = load("cnn")
    scenes = shapes.sample(N_IMAGES, seed, factors={"shape": list(SHAPES)})
    labels = scenes.labels("shape")
    gone = int(labels[0])
    half = N_IMAGES // 2
    train, test = slice(0, half), slice(half, None)
    chosen = labels[train] == gone
    delta = SSD(threshold=2.5).fit(
        model, scenes.images[train], scenes.images[train][chosen], labels[train], labels[train][chosen]
    )
    found = {}
    for when in ("before", "after"):
        with torch.no_grad():
            if when == "after":
                delta.apply(model)
            right = (model(scenes.images[test]).logits.argmax(-1) == labels[test]).float()
        found[f"cnn forget {when}"] = float(right[labels[test] == gone].mean())
        found[f"cnn retain {when}"] = float(right[labels[test] != gone].mean())
    return found


def _random_like(delta: WeightDelta, model: Model, seed: int) -> WeightDelta:
    """As many weights of each parameter, drawn at random, shrunk by the same factors."""
    rng = generator(seed)
    parameters = dict(model.module.named_parameters())
    index = {
        name: torch.randperm(delta.n_parameters[name], generator=rng)[: len(old)] for name, old in delta.index.items()
    }
    before = {name: parameters[name].detach().reshape(-1)[spots] for name, spots in index.items()}
    factors = {name: delta.after[name] / delta.before[name] for name in index}
    return delta.replace(index=index, before=before, after={name: before[name] * factors[name] for name in index})


def _train(x: Tensor, y: Tensor, seed: int, steps: int) -> Model:
    rng = generator(seed)
    widths = (x.shape[1], 256, 128, 10)
    layers: list[tuple[str, nn.Module]] = []
    for i, (d_in, d_out) in enumerate(pairwise(widths)):
        layer = nn.Linear(d_in, d_out, device="meta").to_empty(device="cpu")
        with torch.no_grad():
            layer.weight.copy_(torch.randn(d_out, d_in, generator=rng) * (2 / d_in) ** 0.5)
            layer.bias.zero_()
        layers += [(f"linear{i}", layer), (f"relu{i}", nn.ReLU())]
    net = nn.Sequential(OrderedDict(layers[:-1]))
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(steps):
        rows = torch.randint(len(x), (64,), generator=rng)
        optimiser.zero_grad()
        F.cross_entropy(net(x[rows]), y[rows]).backward()
        optimiser.step()
    net.zero_grad(set_to_none=True)
    return inn.wrap(net.eval())

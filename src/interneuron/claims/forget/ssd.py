"""Selective synaptic dampening on handwritten digits: one digit is forgotten, the others stay.

A network (64-256-128-10) a seed, trained on its own split and made to forget its own digit, with exact Fisher diagonals
and the threshold 5 of the check. Compared is the accuracy on the forgotten digit's test scans with that after shrinking
as many weights at random by the same factors. A network trained without the digit is shown beside it. Second, reported
only: `cnn` on four shapes, one of them forgotten.

The network is trained as in the authors' code: SGD with momentum 0.9, weight decay 5e-4, batches of 64 and a learning
rate of 0.1 that falls fivefold after 60, 120 and 160 of 200 epochs. Weight decay matters: without it nearly every scan
is fitted so well that a few badly fitted ones carry the Fisher diagonal, and a third of the networks kept the digit at
any threshold. With it eleven of twelve networks of other seeds lost the digit altogether at this threshold; the twelfth
kept four scans of 36.

Deviation: the check's bound on the median over seeds is asked of every seed, which is stricter.
"""

from __future__ import annotations

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
        "To be read with it: `cnn` does not forget a shape by it. Of the forgotten images 1.00, 0.58 and 1.00 are "
        "still named afterwards; the check sets no bound there."
    ),
)

THRESHOLD = 5.0
EPOCHS, BATCH, RATE, MOMENTUM, DECAY = 200, 64, 0.1, 0.9, 5e-4
MILESTONES = (0.3, 0.6, 0.8)  # of the epochs
SHAPES = ("circle", "square", "triangle", "star")
N_IMAGES = 240


def claim(seed: int) -> Comparison:
    """Measure accuracies before and after, and the same on shapes."""
    run = _digit(seed)
    fall = run["retain before"] - run["retain after"]
    return Comparison(
        ours=run["forget after"],
        control=run["forget after random"],
        gates={
            "the forgotten digit's accuracy is <= 0.05": run["forget after"] <= 0.05,
            "accuracy on the others falls by <= 0.06 under each seed": fall <= 0.06,
            "accuracy on the others falls by <= 0.03 (asked of the median)": fall <= 0.03,
            "random dampening leaves the digit's accuracy >= 0.5": run["forget after random"] >= 0.5,
        },
        extra={**run, **_shape(seed)},
    )


def example() -> WeightDelta:
    """Make a small trained network forget the digit 3."""
    data = digits("train", n=300)
    model = _train(data.flat, data.labels, seed=0, epochs=12)
    chosen = data.labels == 3
    return SSD(threshold=3.0, batch_size=8).fit(
        model, data.flat, data.flat[chosen], labels=data.labels, forget_labels=data.labels[chosen]
    )


def _digit(seed: int) -> dict[str, float]:
    train, test = digits("train", seed=seed), digits("test", seed=seed)
    gone = seed % 10
    model = _train(train.flat, train.labels, seed)
    retrained = _train(train.flat[train.labels != gone], train.labels[train.labels != gone], seed)
    chosen = train.labels == gone
    delta = SSD(threshold=THRESHOLD).fit(
        model, train.flat, train.flat[chosen], labels=train.labels, forget_labels=train.labels[chosen]
    )
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
    return found


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


def _train(x: Tensor, y: Tensor, seed: int, epochs: int = EPOCHS) -> Model:
    rng = generator(seed)
    net = _network(x.shape[1], rng)
    optimiser = torch.optim.SGD(net.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)
    count = len(x) // BATCH
    order = torch.arange(len(x))
    for step in range(epochs * count):
        epoch, batch = divmod(step, count)
        order = torch.randperm(len(x), generator=rng) if batch == 0 else order
        passed = sum(epoch >= share * epochs for share in MILESTONES)
        optimiser.param_groups[0]["lr"] = RATE * 0.2**passed * min((step + 1) / count, 1.0)
        rows = order[batch * BATCH : (batch + 1) * BATCH]
        optimiser.zero_grad()
        F.cross_entropy(net(x[rows]), y[rows]).backward()
        optimiser.step()
    net.zero_grad(set_to_none=True)
    return inn.wrap(net.eval())


def _network(d_in: int, rng: torch.Generator) -> nn.Sequential:
    widths = (d_in, 256, 128, 10)
    layers: list[tuple[str, nn.Module]] = []
    for i, (before, after) in enumerate(pairwise(widths)):
        layer = nn.Linear(before, after, device="meta").to_empty(device="cpu")
        with torch.no_grad():
            layer.weight.copy_(torch.randn(after, before, generator=rng) * (2 / before) ** 0.5)
            layer.bias.zero_()
        layers += [(f"linear{i}", layer), (f"relu{i}", nn.ReLU())]
    return nn.Sequential(OrderedDict(layers[:-1]))

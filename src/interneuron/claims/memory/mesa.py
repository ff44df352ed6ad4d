"""Mesa on `vit`: fine-tuning on the shapes under a fresh head with 8-bit copies, beside exact training.

400 steps of AdamW on 8 new images each, the same images and the same start in both arms, the rate falling to zero.
Compared are the bytes kept for the backward pass at their peak with those of exact training (fp32); the paper's halving
of all memory is the ratio 0.45 the check asks of them.

Readings of the check: the planted head scales are put on the heads of q and k of one layer side by side, eight in all,
from 1 to 30 in equal ratios. A number whose mean of 1,000 round trips lies beyond 3 standard errors is counted, and up
to 1 % may, since chance alone gives 0.27 %. Gradients are those of the first step.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from interneuron.artifacts import Report
from interneuron.claims import Claim, Comparison
from interneuron.core.seeds import generator
from interneuron.loading import load
from interneuron.memory.mesa import Mesa
from interneuron.model.model import Model
from interneuron.organisms import shapes as sh
from interneuron.organisms.vision_training import logits
from interneuron.parts.quantisers import Dither, dequantise_groups, quantise_groups

CLAIM = Claim(
    slug="mesa",
    organism="vit",
    paper="about 50% less training memory on ImageNet, CIFAR-100 and ADE20K at equal or better accuracy",
    better="lower",
    unit="MB kept for the backward pass",
    minutes=4.0,
    ratio=0.45,
    why=(
        "To be read with it: heads of sizes 1 to 30 are eight, those of q and k together, their sizes spaced evenly "
        "in the logarithm; over four such heads head-wise ranges would have 0.28 of the error of one range, where "
        "0.25 is asked."
    ),
)

STEPS, BATCH, LR, N_TEST = 400, 8, 3e-4, 2000
TRIPS = 1000


def claim(seed: int) -> Comparison:
    """Train twice, with and without the copies."""
    data = sh.sample(STEPS * BATCH, seed, background="any", split="train")
    test = sh.sample(N_TEST, seed, background="any", split="test")
    first = (data.images[:BATCH], data.labels("shape")[:BATCH])
    start = _start(seed)
    plain, eight, four = (_gradient(start, first, bits, seed) for bits in (None, 8, 4))
    mesa = Mesa(start, seed=seed)
    accuracy = {}
    for name in ("exact", "Mesa"):
        trained = _train(_start(seed), data, None if name == "exact" else seed)
        scores = logits(trained[0].module, test.images)
        accuracy[name] = float((scores.argmax(1) == test.labels("shape")).float().mean())
        mesa = trained[1] or mesa
    cosines = {bits: _cosine(g[1], plain[1]) for bits, g in ((8, eight), (4, four))}
    ratio, outside = _planted(start, first[0], seed), _outside(seed)
    return Comparison(
        ours=mesa.saved.peak / 1e6,
        baseline=mesa.plain.peak / 1e6,
        gates={
            "final accuracy is within 1 point of exact training": abs(accuracy["Mesa"] - accuracy["exact"]) <= 0.01,
            "gradient cosine to exact >= 0.999 at 8 bits": cosines[8] >= 0.999,
            "gradient cosine is lower at 4 bits": cosines[4] < cosines[8],
            "loss of the first forward pass is bit-identical": torch.equal(plain[0], eight[0]),
            "error of head-wise ranges <= 0.25 of one range, head scales 1..30 planted in q and k": ratio <= 0.25,
            "means of 1,000 round trips lie within 3 standard errors of x": outside <= 0.01,
        },
        extra={
            "share": mesa.saved.peak / mesa.plain.peak,
            **{f"accuracy, {name}": value for name, value in accuracy.items()},
            **{f"cosine, {bits} bits": value for bits, value in cosines.items()},
            "planted error ratio": ratio,
            "numbers beyond 3 standard errors": outside,
        },
    )


def example(model: Model) -> Report:
    """What one small training step of an image model keeps."""
    images = torch.rand(4, 3, 32, 32, generator=generator(0))
    mesa = Mesa(model)
    with mesa:
        loss = model.module(images).logits.square().mean()
    torch.autograd.grad(loss, [p for p in model.module.parameters() if p.requires_grad])
    return mesa.report()


def _start(seed: int) -> Model:
    """`vit` with a fresh head."""
    model = load("vit")
    head = nn.Linear(96, len(sh.SHAPES), device="meta").to_empty(device="cpu")
    with torch.no_grad():
        head.weight.normal_(0.0, 0.02, generator=generator(seed))
        head.bias.zero_()
    model.module.classifier = head
    return model


def _train(model: Model, data: sh.Scenes, seed: int | None) -> tuple[Model, Mesa | None]:
    """400 steps in place; under Mesa when a seed is given."""
    mesa = None if seed is None else Mesa(model, seed=seed)
    images, labels = data.images, data.labels("shape")
    optimiser = torch.optim.AdamW(model.module.parameters(), lr=LR)
    model.module.train()
    for step in range(STEPS):
        for group in optimiser.param_groups:
            group["lr"] = LR * min((step + 1) / 20, 0.5 * (1 + math.cos(math.pi * step / STEPS)))
        rows = slice(step * BATCH, (step + 1) * BATCH)
        loss = _loss(model, (images[rows], labels[rows]), mesa)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.module.eval()
    return model, mesa


def _loss(model: Model, batch: tuple[Tensor, Tensor], mesa: Mesa | None) -> Tensor:
    if mesa is None:
        return F.cross_entropy(model.module(batch[0]).logits, batch[1])
    with mesa:
        return F.cross_entropy(model.module(batch[0]).logits, batch[1])


def _gradient(model: Model, batch: tuple[Tensor, Tensor], bits: int | None, seed: int) -> tuple[Tensor, Tensor]:
    """Loss and the gradient of all weights as one vector."""
    loss = _loss(model, batch, None if bits is None else Mesa(model, bits=bits, seed=seed))
    parts = torch.autograd.grad(loss, list(model.module.parameters()))
    return loss.detach(), torch.cat([part.reshape(-1) for part in parts])


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(F.cosine_similarity(a.double(), b.double(), dim=0))


@torch.no_grad()
def _planted(model: Model, images: Tensor, seed: int) -> float:
    """Mean squared error with a range per head over that with one range for all."""
    acts = model.run(images, read=["layers.2.attn.q", "layers.2.attn.k"]).acts
    heads = [part if part.ndim == 4 else part.unflatten(-1, (4, -1)) for part in acts.values()]
    heads = [part.transpose(1, 2) if part.shape[1] != 4 else part for part in heads]
    x = torch.cat([part / part.std((0, 2, 3), keepdim=True) for part in heads], dim=1)
    x = x * (30.0 ** torch.linspace(0, 1, x.shape[1]))[:, None, None]
    seen = x.flatten(2).contiguous()  # [B H T*K]
    errors = [
        float((dequantise_groups(quantise_groups(y, dither=Dither(seed))) - y).square().mean())
        for y in (seen, seen.reshape(len(seen), 1, -1))
    ]
    return errors[0] / errors[1]


def _outside(seed: int) -> float:
    """Share of numbers whose mean over many stochastic round trips is further from them than 3 standard errors."""
    x, dither = torch.randn(1, 4, 512, generator=generator(seed)), Dither(seed)
    trips = torch.stack([dequantise_groups(quantise_groups(x, dither=dither)) for _ in range(TRIPS)]).double()
    gap, error = (trips.mean(0) - x).abs(), trips.std(0) / TRIPS**0.5
    return float((gap > 3 * error + 1e-6).float().mean())  # 1e-6: rounding of numbers that are levels themselves

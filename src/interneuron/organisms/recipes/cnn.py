"""`cnn`: a small BatchNorm ResNet that names the shape and was shown clean images only.

Input: 32x32 images in [0, 1] from [`shapes`](shapes.md); eight classes. Stem of 32 channels, four stages of one basic
block (32, 48, 64, 96), so that it can be taken apart stage by stage. AdamW, peak 0.004, cosine to zero. It has seen
every nuisance (colour, texture, size, place, rotation, background) but no corruption, so that adaptation methods have
something to repair. Scenes of several objects are outside its world.

Chance for the linear probes of color, texture, size and position: 0.125, 0.2, 0.33, 0.11. Colour is nearly erased
before the classifier.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from interneuron.organisms import shapes as sh
from interneuron.organisms import vision_checks as checks
from interneuron.organisms.vision_training import Batch, VisionRecipe, logits


def build() -> nn.Module:
    """The untrained network."""
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        embedding_size=32,
        hidden_sizes=[32, 48, 64, 96],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        id2label=dict(enumerate(sh.SHAPES)),
        label2id={name: i for i, name in enumerate(sh.SHAPES)},
    )
    return ResNetForImageClassification(config)


def batch(step: int, batch_size: int) -> Batch:
    """Fresh scenes at every step; no image is seen twice."""
    scenes = sh.sample(batch_size, 0, start=step * batch_size, background="any")
    return scenes.images, scenes.labels("shape")


def loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy on the shape."""
    return nn.functional.cross_entropy(scores, labels)


def measure(model: nn.Module, seed: int) -> dict[str, tuple[int, float]]:
    """The capability table on held-out scenes of one sampling seed."""
    scenes = sh.sample(1000, seed, split="test", background="any")
    scores = logits(model, scenes.images)
    labels = scenes.labels("shape")
    clean = checks.accuracy(scores, labels)
    small = scenes[:200]
    damaged = checks.corrupted_accuracy(model, small, seed)
    confident = float((torch.softmax(scores, 1).amax(1) > 0.9).float().mean())
    table = {
        "shape, clean": (1000, clean),
        "points lost under corruption (mean of 6 x 5)": (200, checks.accuracy(scores[:200], labels[:200]) - damaged),
        "share of confident predictions (p > 0.9)": (1000, confident),
        "gradient on object / elsewhere (median)": (200, checks.localisation(model, small)),
    }
    for factor in ("color", "texture", "size", "position"):
        table[f"linear probe of {factor}"] = (1000, checks.probe_accuracy(model, factor, seed))
    return table


RECIPE = VisionRecipe(
    name="cnn",
    about="shape classifier with BatchNorm, four stages, fragile under corruption",
    minutes=3,
    steps=3000,
    batch_size=128,
    lr=4e-3,
    build=build,
    batch=batch,
    loss=loss,
    measure=measure,
    required={
        "shape, clean": (">=", 0.97),
        "points lost under corruption (mean of 6 x 5)": (">=", 0.15),
        "share of confident predictions (p > 0.9)": (">=", 0.80),
    },
    artefacts=(
        "the stem of ResNetForImageClassification divides the resolution by four: the maps of a 32x32 image are 8x8, "
        "4x4, 2x2 and 1x1, so class-activation maps from the last stage carry no place",
    ),
)

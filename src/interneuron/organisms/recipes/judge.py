"""`judge`: a network that names every factor of an image, blurred or not; `judge-b` is its independent twin.

Input: 32x32 images in [0, 1] from [`shapes`](shapes.md). One linear layer holds six heads side by side: shape 8,
color 8, texture 5, size 3, position 9, presence of each of the eight shapes; `recipes.judge.split(logits)` takes them
apart. The first five are trained on lone objects, presence on scenes of one to three; half of the images are blurred or
noisy. The penultimate layer serves distances between image distributions. `judge-b` differs in seed, data and width, so
that a method tuned against one can be scored by the other. For a judge that does not learn, use `shapes.measure`.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from interneuron.organisms import shapes as sh
from interneuron.organisms import vision_checks as checks
from interneuron.organisms.shapes import randoms
from interneuron.organisms.shapes.corrupt import gaussian_blur
from interneuron.organisms.vision_training import Batch, VisionRecipe, logits

HEADS = {"shape": 8, "color": 8, "texture": 5, "size": 3, "position": 9, "presence": 8}
"""Columns of the logits, in this order."""

_FACTORS = tuple(HEADS)[:-1]
_CROWDS = 0.6  # share of a batch's scenes with one to three objects; with a quarter, presence came to F1 .87 only


def split(scores: Tensor) -> dict[str, Tensor]:
    """Logits Float[N 41] -> the logits of each head.

    >>> split(torch.zeros(2, 41))["texture"].shape
    torch.Size([2, 5])
    """
    return dict(zip(HEADS, scores.split(list(HEADS.values()), dim=1), strict=True))


def build(width: int = 48) -> nn.Module:
    """The untrained network."""
    from transformers import ResNetConfig, ResNetForImageClassification

    names = [f"{head}: {value}" for head in _FACTORS for value in sh.vocabulary.VALUES[head]]
    names += [f"presence: {shape}" for shape in sh.SHAPES]
    config = ResNetConfig(
        embedding_size=width,
        hidden_sizes=[width, 2 * width, 3 * width],
        depths=[1, 1, 1],
        layer_type="basic",
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
    )
    return ResNetForImageClassification(config)


def truth(scenes: sh.Scenes) -> Tensor:
    """Int[N 13]: five labels of the first object (-1 where the scene holds several) and eight presence bits."""
    shapes = scenes.factors["shape"]
    presence = (shapes[:, :, None] == torch.arange(len(sh.SHAPES))).any(1).long()
    alone = (scenes.factors["n_objects"] == 1)[:, None]
    labels = torch.stack([scenes.factors[name][:, 0] for name in _FACTORS], 1)
    return torch.cat([torch.where(alone, labels, -1), presence], 1)


def batch(step: int, batch_size: int, seed: int = 0) -> Batch:
    """Lone objects and crowds; half the images blurred or noisy."""
    crowd = round(batch_size * _CROWDS)
    alone = sh.sample(batch_size - crowd, seed, start=step * (batch_size - crowd), background="any")
    many = sh.sample(crowd, seed + 1, start=step * crowd, background="any", objects=(1, 3))
    images = torch.cat([alone.images, many.images])
    roll = randoms.uniform(randoms.key(seed, "judge", step), torch.arange(5)).tolist()
    half = torch.arange(batch_size) % 2 == 0
    blurred = gaussian_blur(images[half], 0.3 + 0.9 * roll[0])
    noisy = sh.corrupt(images[half], "noise", 1 + int(roll[1] * 2), seed=step) if roll[2] < 0.4 else images[half]
    images[half] = torch.where((torch.arange(len(blurred)) % 3 > 0)[:, None, None, None], blurred, noisy)
    return images, torch.cat([truth(alone), truth(many)])


def loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Sum of the cross-entropies of the five heads and of the eight binary ones of presence."""
    heads = split(scores)
    total = scores.new_zeros(())
    for column, name in enumerate(_FACTORS):
        total = total + nn.functional.cross_entropy(heads[name], targets[:, column], ignore_index=-1)
    presence = targets[:, len(_FACTORS) :].float()
    return total + 8.0 * nn.functional.binary_cross_entropy_with_logits(heads["presence"], presence)


def measure(model: nn.Module, seed: int) -> dict[str, tuple[int, float]]:
    """The capability table on held-out scenes of one sampling seed."""
    scenes = sh.sample(1000, seed, split="test", background="any")
    crowds = sh.sample(1000, seed, split="test", background="any", objects=(1, 3))
    table: dict[str, tuple[int, float]] = {}
    for suffix, change in (("", None), (", blurred (sigma 0.8)", partial(gaussian_blur, sigma=0.8))):
        heads = split(logits(model, scenes.images if change is None else change(scenes.images)))
        for name in _FACTORS:
            table[name + suffix] = (1000, checks.accuracy(heads[name], scenes.labels(name)))
        found = split(logits(model, crowds.images if change is None else change(crowds.images)))["presence"] > 0
        table["presence F1, 1 to 3 objects" + suffix] = (1000, checks.binary_f1(found, truth(crowds)[:, -8:] > 0))
    return table


_REQUIRED = {"shape": 0.98, "color": 0.99, "texture": 0.95, "presence F1, 1 to 3 objects": 0.95}
_BLURRED = dict.fromkeys((f"{name}, blurred (sigma 0.8)" for name in _REQUIRED), 0.93)

RECIPE = VisionRecipe(
    name="judge",
    about="names shape, colour, texture, size, position and which shapes are present",
    minutes=13,
    steps=4500,
    batch_size=160,
    lr=4e-3,
    build=build,
    batch=batch,
    loss=loss,
    measure=measure,
    required={name: (">=", value) for name, value in {**_REQUIRED, **_BLURRED}.items()},
    artefacts=("size and position words have hard borders; most of their errors lie next to one",),
)

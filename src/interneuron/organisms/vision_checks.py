"""Measurements that the capability tables of the image organisms share: accuracy, corruption, probes, localisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import shapes as sh
from .vision_training import logits


def accuracy(scores: Tensor, labels: Tensor) -> float:
    """Share of rows whose highest score is the label."""
    return float((scores.argmax(1) == labels).float().mean())


def corrupted_accuracy(model: nn.Module, scenes: sh.Scenes, seed: int) -> float:
    """Mean accuracy on shape over the six corruptions and five severities."""
    labels = scenes.labels("shape")
    values = [
        accuracy(logits(model, sh.corrupt(scenes.images, kind, severity, seed)), labels)
        for kind in sh.CORRUPTIONS
        for severity in (1, 2, 3, 4, 5)
    ]
    return sum(values) / len(values)


@torch.no_grad()
def features(model: nn.Module, images: Tensor, batch_size: int = 250) -> Tensor:
    """The input of the classifier, Float[N D]."""
    kept: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        kept.append(args[0].flatten(1))

    handle = _classifier(model).register_forward_pre_hook(keep)
    try:
        for part in images.split(batch_size):
            model(part)
    finally:
        handle.remove()
    return torch.cat(kept)


def _classifier(model: nn.Module) -> nn.Module:
    head = model.classifier
    assert isinstance(head, nn.Module)
    return head


def probe_accuracy(model: nn.Module, factor: str, seed: int, n_train: int = 3000, n_test: int = 1000) -> float:
    """Held-out accuracy of a linear probe for a factor on the classifier's input.

    Multinomial logistic regression on standardised features with a little L2, fitted by L-BFGS in float64.
    """
    train = sh.sample(n_train, seed, background="any", split="validation")
    test = sh.sample(n_test, seed, background="any", split="test")
    x, held = features(model, train.images).double(), features(model, test.images).double()
    mean, scale = x.mean(0), x.std(0).clamp_min(1e-6)
    x, held, y = (x - mean) / scale, (held - mean) / scale, train.labels(factor)
    weight = torch.zeros(x.shape[1], len(sh.vocabulary.VALUES[factor]), dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(weight.shape[1], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(x @ weight + bias, y) + 0.5 * weight.square().sum() / n_train
        loss.backward()
        return loss

    optimiser.step(closure)
    return accuracy((held @ weight + bias).detach(), test.labels(factor))


def localisation(model: nn.Module, scenes: sh.Scenes) -> float:
    """How much more the evidence lies on the object than on an equal area elsewhere.

    Ratio of mean |input gradient of the true class| per pixel inside the object's mask to outside; 1 = blind to place.
    """
    images = scenes.images.clone().requires_grad_(True)
    out = model(images).logits
    picked = out.gather(1, scenes.labels("shape")[:, None]).sum()
    (gradient,) = torch.autograd.grad(picked, images)
    energy = gradient.abs().sum(1)
    inside = scenes.masks[:, 0].float()
    mean_in = (energy * inside).flatten(1).sum(1) / inside.flatten(1).sum(1).clamp_min(1)
    outside = 1 - inside
    mean_out = (energy * outside).flatten(1).sum(1) / outside.flatten(1).sum(1).clamp_min(1)
    return float((mean_in / mean_out.clamp_min(1e-12)).median())


def binary_f1(predicted: Tensor, truth: Tensor) -> float:
    """F1 of boolean predictions against boolean truth, all entries pooled."""
    hit = float((predicted & truth).sum())
    return 2 * hit / max(float(predicted.sum()) + float(truth.sum()), 1.0)

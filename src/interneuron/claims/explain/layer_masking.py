"""Layer masking on shapes: background taken away, objects erased under other shapes' silhouettes, LIME.

A small BatchNorm network is trained for 700 batches to name the shape in grey scenes of every background. Compared is
its accuracy after 60 % of the background squares (4 x 4 pixels) were removed, image by image, with that of the best of
black, grey and mean colour; the control takes the object's squares instead, which must ruin it. The silhouettes are
other shapes 1.6 times as large in the object's place, kept where they cover it wholly. LIME is given as many top
squares as the object mostly fills. Blur is not a colour: it is reported beside the others and decides nothing.

Deviation: the scenes are grey. With colours, objects have one and backgrounds have none, so that a network knows every
black or grey filling for background, a mark that photographs do not have. There is nothing to cure then: an earlier
version took the shipped `cnn`, which names 0.95 to 1.00 of the scenes under any colour and 0.95 to 0.97 under layer
masking (seeds 0 to 2, LIME's overlap 0.22 to 0.26 against 0.26 to 0.34 with grey), and so does the network of this
claim when trained on coloured scenes (on one other seed 0.98 with layer masking, 1.00 with grey).
"""

from __future__ import annotations

from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

import interneuron as inn
from interneuron.artifacts import Report
from interneuron.claims import Claim, Comparison
from interneuron.core.seeds import generator
from interneuron.explain.layer_masking import MASKERS, grid_segments, lime, lime_report, masked_logits
from interneuron.model.model import Model
from interneuron.organisms import shapes

CLAIM = Claim(
    slug="layer_masking",
    organism="shapes",
    paper="masks sway a ResNet-50 far less than black or grey filling, and LIME explains better, on ImageNet",
    better="higher",
    unit="accuracy with 60 % of the background removed",
    minutes=4.0,
    why=(
        "To be read with it: the effect is that of a network whose training stops at 700 batches, on grey scenes, "
        "where fills can mislead it. On coloured scenes, and with the shipped `cnn`, masking layers gains nothing "
        "over fills."
    ),
)

SIZE, CELL = 32, 4
FRACTIONS = (0.2, 0.4, 0.6, 0.8)
COLOURS = ("black", "grey", "mean")
N_IMAGES, N_ERASED, N_EXPLAINED, N_MASKS = 400, 400, 100, 300
WIDTHS, STEPS, BATCH, RATE = (24, 48, 96, 128), 700, 128, 4e-3


def claim(seed: int) -> Comparison:
    """Measure the three parts of the check and the identity of full masks."""
    model = inn.wrap(_trained(seed))
    with torch.no_grad():
        right, control, plain, identity = _backgrounds(model, seed)
        swayed, n_erased = _silhouettes(model, seed)
        overlap = {masker: _overlap(model, masker, seed) for masker in ("layer", "grey")}
    best = max(COLOURS, key=lambda masker: fmean(right[masker, 0.6]))
    lead = 100 * (fmean(right["layer", 0.6]) - fmean(right[best, 0.6]))
    return Comparison(
        ours=right["layer", 0.6],
        baseline=right[best, 0.6],
        control=control,
        gates={
            "with 60 % of the background gone, 5 points or more above the best colour": lead >= 5,
            "the silhouette's class is predicted at most half as often as with black": swayed["layer"]
            <= 0.5 * swayed["black"],
            "top segments of LIME overlap the object at least as well as with grey": overlap["layer"]
            >= overlap["grey"],
            "full masks change the logits by at most 1e-6": identity <= 1e-6,
        },
        extra={
            "lead over the best colour, points": lead,
            "best colour": best,
            **{f"accuracy, {masker}, {f:.0%} removed": fmean(row) for (masker, f), row in right.items()},
            **{f"silhouette's class, {masker}": rate for masker, rate in swayed.items()},
            "objects erased": n_erased,
            **{f"overlap of LIME, {masker}": value for masker, value in overlap.items()},
            "change by full masks": identity,
            "accuracy on whole scenes": plain,
        },
    )


def example(model: Model) -> Report:
    """Where the evidence of one scene lies."""
    scene = shapes.sample(1, 0, inside=True, background="any")
    return lime_report(model, scene.images, grid_segments(SIZE, SIZE, CELL), n=200)


def _grey(images: Tensor) -> Tensor:
    """Images without colour, [N 1 H W]."""
    return torch.einsum("nchw,c->nhw", images, torch.tensor([0.299, 0.587, 0.114]))[:, None]


def _trained(seed: int) -> nn.Module:
    """Four convolutions with BatchNorm, the average over positions and a linear layer, trained to name the shape."""
    layers: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for i, (old, new) in enumerate(zip((1, *WIDTHS), WIDTHS, strict=False)):
            layers += [nn.Conv2d(old, new, 3, padding=1, bias=False), nn.BatchNorm2d(new), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] * (i < len(WIDTHS) - 1)
        network = nn.Sequential(
            *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[-1], len(shapes.SHAPES))
        )
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=STEPS, pct_start=0.1)
    for step in range(STEPS):
        scenes = shapes.sample(BATCH, seed, start=step * BATCH, background="any")
        x = _grey(scenes.images).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(x)
        optimiser.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(logits.float(), scenes.labels("shape")).backward()
        optimiser.step()
        schedule.step()
    return network.eval()


def _scenes(n: int, seed: int, **factors: Any) -> shapes.Scenes:
    """Scenes of the kind the network was trained on that it has not seen, with the whole object in the image."""
    return shapes.sample(n, seed, split="test", inside=True, background="any", factors=factors)


def _backgrounds(model: Model, seed: int) -> tuple[dict[tuple[str, float], list[float]], list[float], float, float]:
    """Per image, whether it is recognised: by masker and removed share, with the object removed; whole; identity."""
    scenes = _scenes(N_IMAGES, seed)
    x, y, grid = _grey(scenes.images), scenes.labels("shape"), grid_segments(SIZE, SIZE, CELL)
    holds = _filled(scenes.masks[:, 0], grid) > 0
    order = torch.rand(holds.shape, generator=generator(seed)).masked_fill(holds, 2.0).argsort(1).argsort(1)
    right = {}
    for fraction in FRACTIONS:
        removed = order < ((~holds).sum(1) * fraction).round()[:, None]
        mask = (~removed)[:, grid][:, None]
        for masker in MASKERS:
            right[masker, fraction] = _hits(masked_logits(model, x, mask, masker), y)
    control = _hits(masked_logits(model, x, (~holds)[:, grid][:, None]), y)
    plain, full = model(x), masked_logits(model, x, torch.ones(1, 1, SIZE, SIZE), batch_size=N_IMAGES)
    return right, control, fmean(_hits(plain, y)), float((full - plain).abs().max())


def _silhouettes(model: Model, seed: int) -> tuple[dict[str, float], int]:
    """How often each masker makes an erased object look like the class of the mask's outline."""
    middle = (0.35, 0.65)
    scenes = _scenes(N_ERASED, seed, radius=(0.12, 0.16), x=middle, y=middle)
    step = torch.randint(1, len(shapes.SHAPES), (N_ERASED,), generator=generator(seed))
    other = (scenes.labels("shape") + step) % len(shapes.SHAPES)
    outline = scenes.change(shape=other, radius=1.6 * scenes.factors["radius"][:, 0]).masks[:, 0]
    whole = ~(scenes.masks[:, 0] & ~outline).flatten(1).any(1)
    x, mask, other = _grey(scenes.images[whole]), ~outline[whole][:, None], other[whole]
    return {masker: fmean(_hits(masked_logits(model, x, mask, masker), other)) for masker in MASKERS}, int(whole.sum())


def _overlap(model: Model, masker: str, seed: int) -> float:
    """Mean intersection over union of LIME's top squares and the object."""
    scenes, grid = _scenes(N_EXPLAINED, seed), grid_segments(SIZE, SIZE, CELL)
    filled = _filled(scenes.masks[:, 0], grid)
    found = []
    for i, (image, shape) in enumerate(zip(_grey(scenes.images), scenes.masks[:, 0], strict=True)):
        k = max(1, int((filled[i] >= CELL**2 / 2).sum()))
        weights = lime(model, image[None], grid, masker, n=N_MASKS, seed=seed)
        picked = torch.isin(grid, weights.topk(k).indices)
        found.append(float((picked & shape).sum() / (picked | shape).sum()))
    return fmean(found)


def _filled(masks: Tensor, grid: Tensor) -> Tensor:
    """Object pixels in each square [N S]."""
    counts = torch.zeros(len(masks), int(grid.max()) + 1)
    return counts.index_add_(1, grid.flatten(), masks.flatten(1).float())


def _hits(logits: Tensor, labels: Tensor) -> list[float]:
    return (logits.argmax(-1) == labels).float().tolist()

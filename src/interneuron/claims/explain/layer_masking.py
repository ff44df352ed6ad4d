"""Layer masking on shapes: background taken away, objects erased under other shapes' silhouettes, LIME.

Compared is the accuracy of `cnn` after 60 % of the background squares (4 x 4 pixels) were removed, image by image, with
that of the best of black, grey and mean colour; the control takes the object's squares instead, which must ruin it. The
silhouettes are other shapes 1.6 times as large in the object's place, kept where they cover it wholly. LIME is given as
many top squares as the object mostly fills. Blur is not a colour: it is reported beside the others and decides nothing.
"""

from __future__ import annotations

from statistics import fmean

import torch
from torch import Tensor

from interneuron.artifacts import Report
from interneuron.claims import Claim, Comparison
from interneuron.core.seeds import generator
from interneuron.explain.layer_masking import MASKERS, grid_segments, lime, lime_report, masked_logits
from interneuron.loading import load
from interneuron.model.model import Model
from interneuron.organisms import shapes

CLAIM = Claim(
    slug="layer_masking",
    organism="cnn",
    paper="masks sway a ResNet-50 far less than black or grey filling, and LIME explains better, on ImageNet",
    better="higher",
    unit="accuracy with 60 % of the background removed",
    minutes=0.8,
    why=(
        "The organism leaves nothing to cure: `cnn` recognises nearly every scene with most of the background painted "
        "black or grey, so 5 points above the best colour cannot be reached, and black silhouettes sway it no more "
        "often than layer masking does. Layer masking itself costs accuracy as more is removed, and its LIME overlaps "
        "the object less than LIME with grey filling. Our reading, not measured: the images are 32 pixels wide and the "
        "last map of `cnn` is a single position, so that there is no average over valid positions left to take, and "
        "the content continued outward over seven pixels at the first convolution is a large part of a scene."
    ),
)

SIZE, CELL = 32, 4
FRACTIONS = (0.2, 0.4, 0.6, 0.8)
COLOURS = ("black", "grey", "mean")
N_IMAGES, N_ERASED, N_EXPLAINED, N_MASKS = 200, 400, 10, 300


def claim(seed: int) -> Comparison:
    """Measure the three parts of the check and the identity of full masks."""
    model = load("cnn")
    with torch.no_grad():
        right, control, identity = _backgrounds(model, seed)
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
        },
    )


def example(model: Model) -> Report:
    """Where the evidence of one scene lies."""
    scene = shapes.sample(1, 0, inside=True, background="any")
    return lime_report(model, scene.images, grid_segments(SIZE, SIZE, CELL), n=200)


def _backgrounds(model: Model, seed: int) -> tuple[dict[tuple[str, float], list[float]], list[float], float]:
    """Per image, whether it is recognised: by masker and removed share, with the object removed, and the identity."""
    scenes = shapes.sample(N_IMAGES, seed, inside=True, background="any")
    x, y, grid = scenes.images, scenes.labels("shape"), grid_segments(SIZE, SIZE, CELL)
    holds = _filled(scenes.masks[:, 0], grid) > 0
    order = torch.rand(holds.shape, generator=generator(seed)).masked_fill(holds, 2.0).argsort(1).argsort(1)
    right = {}
    for fraction in FRACTIONS:
        removed = order < ((~holds).sum(1) * fraction).round()[:, None]
        mask = (~removed)[:, grid][:, None]
        for masker in MASKERS:
            right[masker, fraction] = _hits(masked_logits(model, x, mask, masker), y)
    control = _hits(masked_logits(model, x, (~holds)[:, grid][:, None]), y)
    full = masked_logits(model, x, torch.ones(1, 1, SIZE, SIZE), batch_size=N_IMAGES)
    return right, control, float((full - model(x).logits).abs().max())


def _silhouettes(model: Model, seed: int) -> tuple[dict[str, float], int]:
    """How often each masker makes an erased object look like the class of the mask's outline."""
    middle = (0.35, 0.65)
    factors = {"radius": (0.12, 0.16), "x": middle, "y": middle}
    scenes = shapes.sample(N_ERASED, seed, inside=True, factors=factors)
    step = torch.randint(1, len(shapes.SHAPES), (N_ERASED,), generator=generator(seed))
    other = (scenes.labels("shape") + step) % len(shapes.SHAPES)
    outline = scenes.change(shape=other, radius=1.6 * scenes.factors["radius"][:, 0]).masks[:, 0]
    whole = ~(scenes.masks[:, 0] & ~outline).flatten(1).any(1)
    x, mask, other = scenes.images[whole], ~outline[whole][:, None], other[whole]
    return {masker: fmean(_hits(masked_logits(model, x, mask, masker), other)) for masker in MASKERS}, int(whole.sum())


def _overlap(model: Model, masker: str, seed: int) -> float:
    """Mean intersection over union of LIME's top squares and the object."""
    scenes, grid = shapes.sample(N_EXPLAINED, seed, inside=True, background="any"), grid_segments(SIZE, SIZE, CELL)
    filled = _filled(scenes.masks[:, 0], grid)
    found = []
    for i, (image, shape) in enumerate(zip(scenes.images, scenes.masks[:, 0], strict=True)):
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

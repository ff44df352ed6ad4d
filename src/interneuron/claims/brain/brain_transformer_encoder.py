"""Transformer brain encoder on simulated fMRI: areas that follow an object need routing that depends on the image.

The voxels are simulated (`organisms.brainsim.fmri`): an area of 160 responds to the colour and texture at the place of
the square, wherever it is in scenes of two or three objects, and two areas of 80 look at fixed places. Every encoder
reads the tokens of the second block of the frozen `vit`. They have no part in making the responses, which come from
the pixels. 1,500 scenes are for training, 300 for the test. The mean noise ceiling is 0.7.

The factorised rival has one static map of places an area and is trained at the better of two learning rates, chosen on
the last fifth of the training scenes; ridge chooses its strength there as well. Saliency of the ridge model is
|gradient x input|, summed over channels and averaged over the voxels of an area; mass on the object is the share of a
map that falls on the visible mask, weighted by how much of each cell it covers. The control is the same encoder
trained on responses whose rows were shuffled against the images, the mean of six shuffles: one alone scatters by about
0.04 about zero, because the 160 voxels of the category area share six channels and 300 scenes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from interneuron.brain.brain_transformer_encoder import BrainEncoder, VoxelEncoding, feature_maps
from interneuron.claims import Claim, Comparison
from interneuron.core.seeds import generator
from interneuron.loading import load
from interneuron.model.model import Model
from interneuron.organisms.brainsim import fmri
from interneuron.parts.ridge import Ridge, encoding_score, ridge

CLAIM = Claim(
    slug="brain_transformer_encoder",
    organism="vit",
    paper="attention routing predicts high-level visual areas clearly better than linear and factorised encoders",
    better="higher",
    unit="correlation of category voxels",
    minutes=4.0,
)

N_TRAIN, N_TEST, CEILING = 1500, 300, 0.7
SITE = "layers.1.resid_post"
BOUND = "square"
AREAS = (
    fmri.Area("square area", 160, shape=BOUND),
    fmri.Area("left place", 80, place=(0.35, 0.4)),
    fmri.Area("right place", 80, place=(0.65, 0.6)),
)
LRS, SHUFFLES = (5e-3, 2e-2), 6


def claim(seed: int) -> Comparison:
    """Simulate, fit three encoders and a shuffled one, and compare predictions and maps."""
    model = load(CLAIM.organism)
    scenes = fmri.scenes_with([BOUND], N_TRAIN + N_TEST, seed)
    data = fmri.visual(scenes, AREAS, seed, ceiling=CEILING)
    features = feature_maps(model, scenes.images, SITE)
    x, held = features[:N_TRAIN], features[N_TRAIN:]
    y, areas = data.responses[:N_TRAIN], data.area_of_voxel
    ours = BrainEncoder(seed=seed).fit(x, y, areas)
    factorised = _factorised(x, y, areas, seed)
    linear = ridge(x.flatten(1), y)
    truth = data.responses[N_TRAIN:]
    scores = {
        "ours": encoding_score(ours.predict(held), truth),
        "factorised": encoding_score(factorised.predict(held), truth),
        "ridge": encoding_score(linear.predict(held.flatten(1).double()), truth),
        "shuffled": _shuffled(x, y, areas, held, truth, seed),
        "ceiling": encoding_score(data.truth["signal"][N_TRAIN:], truth),
    }
    category = areas == 0
    r = {name: float(row[category].mean()) for name, row in scores.items()}
    place = {name: float(row[~category].mean()) for name, row in scores.items()}
    mass = _mass_on_square(ours, linear, held, data)
    size = ours.n_parameters / (x[0].numel() + 1) / len(areas)
    return Comparison(
        ours=scores["ours"][category].tolist(),
        baseline=scores["factorised"][category].tolist(),
        control=scores["shuffled"][category].tolist(),
        gates={
            "category area: mean r is at least 0.08 above the factorised read-out": r["ours"] >= r["factorised"] + 0.08,
            "category area: mean r is at least 0.05 above ridge": r["ours"] >= r["ridge"] + 0.05,
            "retinotopic areas: r differs from the factorised read-out's by 0.03 at most": abs(
                place["ours"] - place["factorised"]
            ) <= 0.03,
            "attention puts at least twice the object's share of the area on it": mass["ours"] >= 2 * mass["area"],
            "and at least as much as saliency of the ridge model": mass["ours"] >= mass["ridge"],
            "parameters are fewer than 0.2 of the linear model's": size < 0.2,
            "shuffled images give |r| of at most 0.05": abs(r["shuffled"]) <= 0.05,
        },
        extra={
            **{f"category r, {name}": value for name, value in r.items()},
            **{f"retinotopic r, {name}": value for name, value in place.items()},
            **{f"on the object, {name}": value for name, value in mass.items()},
            "parameters over the linear model's": size,
        },
    )  # fmt: skip


def example(model: Model) -> VoxelEncoding:
    """A small recording of two areas, fitted in a few passes."""
    areas = (fmri.Area("square area", 12, shape="square"), fmri.Area("left place", 12, place=(0.35, 0.4)))
    data = fmri.make(0, n=128, areas=areas, ceiling=0.9)
    features = feature_maps(model, data.scenes.images, SITE)
    return BrainEncoder(epochs=8, lr=2e-3).fit(features, data.responses, data.area_of_voxel)


def _factorised(x: Tensor, y: Tensor, areas: Tensor, seed: int) -> VoxelEncoding:
    """The factorised read-out at the better of two learning rates."""
    cut = round(0.8 * len(x))

    def fit(lr: float, rows: int) -> VoxelEncoding:
        return BrainEncoder("factorised", epochs=10, batch_size=32, lr=lr, clip=0.0, seed=seed).fit(
            x[:rows], y[:rows], areas
        )

    score = {lr: float(encoding_score(fit(lr, cut).predict(x[cut:]), y[cut:]).mean()) for lr in LRS}
    return fit(max(score, key=score.__getitem__), len(x))


def _shuffled(x: Tensor, y: Tensor, areas: Tensor, held: Tensor, truth: Tensor, seed: int) -> Tensor:
    """Scores of encoders trained on shuffled rows, averaged over shuffles, [V]."""
    rng, scores = generator(seed), []
    for _ in range(SHUFFLES):
        mixed = y[torch.randperm(len(y), generator=rng)]
        scores.append(encoding_score(BrainEncoder(seed=seed, epochs=3).fit(x, mixed, areas).predict(held), truth))
    return torch.stack(scores).mean(0)


def _mass_on_square(ours: VoxelEncoding, linear: Ridge, features: Tensor, data: Any) -> dict[str, float]:
    """Share of attention and of ridge saliency on the square, in the area that follows it, and the square's size."""
    cover = fmri.object_cells(data.scenes, BOUND)[N_TRAIN:]
    weight = linear.weight[:, data.area_of_voxel == 0].unflatten(0, features.shape[1:]).float()
    saliency = torch.einsum("pd,npd->np", weight.abs().sum(2), features.abs())
    maps = {"ours": ours.attention(features)[:, 0], "ridge": saliency / saliency.sum(1, keepdim=True)}
    mass = {name: float((map_ * cover).sum(1).mean()) for name, map_ in maps.items()}
    return mass | {"area": float(cover.mean())}

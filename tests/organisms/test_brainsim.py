"""The simulated scanner: responses follow the stated rule, an oracle reaches the ceiling, shuffled truth does not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from interneuron import organisms as org
from interneuron.core.errors import InputError, ShapeError
from interneuron.organisms import shapes as sh
from interneuron.organisms.brainsim import fmri
from interneuron.parts.ridge import encoding_score, ridge

AREAS = (fmri.Area("square area", 12, shape="square"), fmri.Area("a place", 12, place=(0.3, 0.6)))


@pytest.fixture(scope="module")
def data() -> fmri.Recording:
    return fmri.make(5, n=500, areas=AREAS)


def test_the_package_offers_it_and_seeds_decide(data: fmri.Recording) -> None:
    assert org.brainsim.fmri is fmri
    again, other = fmri.make(5, n=500, areas=AREAS), fmri.make(6, n=500, areas=AREAS)
    assert torch.equal(data.responses, again.responses)
    assert not torch.equal(data.responses, other.responses)


def test_each_scene_has_the_shape_once() -> None:
    scenes = fmri.scenes_with(["square", "ring"], 80, 1)
    labels = scenes.labels("shape")
    for shape in ("square", "ring"):
        assert bool(((labels == sh.SHAPES.index(shape)).sum(1) == 1).all())
    assert set(scenes.factors["n_objects"].tolist()) == {2, 3}


def test_the_signal_is_the_rule_in_numpy(data: fmri.Recording) -> None:
    """Object-bound and retinotopic voxels, recomputed from images and masks in float64."""
    images = data.scenes.images.double().numpy()
    r, g, b = images[:, 0], images[:, 1], images[:, 2]
    cells = lambda plane: plane.reshape(len(plane), 8, 4, 8, 4).mean((2, 4)).reshape(len(plane), 64)  # noqa: E731
    light = images.mean(1)
    down, across = np.zeros_like(light), np.zeros_like(light)
    down[:, :-1], across[:, :, :-1] = np.abs(np.diff(light, axis=1)), np.abs(np.diff(light, axis=2))
    spread = np.sqrt(np.maximum(cells(light**2) - cells(light) ** 2, 0))
    maps = np.stack([cells(r - g), cells(b - (r + g) / 2), cells(light), spread, cells(down), cells(across)], -1)
    maps /= maps.reshape(-1, 6).std(0, ddof=1)
    np.testing.assert_allclose(data.truth["maps"].numpy(), maps, atol=1e-4)

    labels = data.scenes.labels("shape").numpy()
    visible = data.scenes.visible.numpy()
    square = cells(visible[np.arange(500), (labels == 1).argmax(1)].astype(float))
    look = square / square.sum(1, keepdims=True)
    tuning, centre = data.truth["tuning"].double().numpy(), data.truth["centres"].double().numpy()
    at = (np.arange(64) % 8 + 0.5) / 8, (np.arange(64) // 8 + 0.5) / 8
    for v in (0, 11, 12, 23):
        if v >= 12:
            w = np.exp(-((at[0] - centre[v, 0]) ** 2 + (at[1] - centre[v, 1]) ** 2) / (2 * 0.08**2))
            look_v = np.broadcast_to(w / w.sum(), (500, 64))
        else:
            look_v = look
        signal = np.einsum("np,npc,c->n", look_v, maps, tuning[v])
        z = (signal - signal.mean()) / signal.std()
        np.testing.assert_allclose(data.truth["signal"][:, v].numpy(), z, atol=1e-3)


def test_an_oracle_reaches_the_ceiling_and_shuffled_truth_gives_chance(data: fmri.Recording) -> None:
    """The oracle knows where an area looks, not how its voxels are tuned."""
    pooled = torch.einsum("np,npc->nc", data.truth["object"][:, 0], data.truth["maps"])
    square = data.voxels("square area")
    y, ceiling = data.responses[:, square], data.truth["ceiling"][square]

    def score(x: torch.Tensor) -> float:
        found = ridge(x[:350], y[:350])
        return float(encoding_score(found.predict(x[350:].double()), y[350:], ceiling).mean())

    order = torch.randperm(500, generator=torch.Generator().manual_seed(0))
    assert score(pooled) > 0.9
    assert abs(score(pooled[order])) < 0.2
    fixed = torch.einsum("np,npc->nc", data.truth["object"][order][:, 0], data.truth["maps"])  # another scene's places
    assert score(fixed) < 0.5 * score(pooled)
    measured = encoding_score(data.truth["signal"], data.responses)
    assert float((measured - data.truth["ceiling"]).abs().max()) < 0.1


def test_ceiling_repeats_gain_and_subjects() -> None:
    scenes = fmri.scenes_with(["square"], 60, 0)
    one = fmri.visual(scenes, AREAS, 0, ceiling=0.5, subjects=2)
    many = fmri.visual(scenes, AREAS, 0, ceiling=0.5, subjects=2, repeats=50)
    assert one.responses.shape == (60, 48)
    assert one.subject_of_voxel.bincount().tolist() == [24, 24]
    assert float(one.truth["ceiling"].mean()) == pytest.approx(0.5, abs=0.05)
    assert float(many.truth["ceiling"].mean()) > 0.95
    assert not torch.equal(one.truth["tuning"][:24], one.truth["tuning"][24:])
    ratio = many.responses.std(0) / many.truth["gain"]
    assert float((ratio - 1).abs().max()) < 0.3


def test_maps_of_a_network_take_the_place_of_pixels() -> None:
    scenes = fmri.scenes_with(["square"], 40, 0)
    maps = torch.randn(40, 16, 3, generator=torch.Generator().manual_seed(1))
    made = fmri.visual(scenes, AREAS[:1], 0, maps=maps)
    pooled = torch.einsum("np,npc->nc", made.truth["object"][:, 0], made.truth["maps"])
    signal = pooled @ made.truth["tuning"][0]
    assert float(np.corrcoef(signal, made.truth["signal"][:, 0])[0, 1]) == pytest.approx(1, abs=1e-5)


def test_an_area_without_its_shape_rests() -> None:
    scenes = sh.sample(30, 0, objects=2, factors={"shape": ["circle", "ring"]})
    assert float(fmri.object_cells(scenes, "square").sum()) == 0
    made = fmri.visual(scenes, AREAS[:1], 0)
    assert float(made.truth["signal"].abs().max()) == 0


@pytest.mark.usefixtures("unchecked")
def test_mistakes_are_taught(data: fmri.Recording) -> None:
    scenes = data.scenes[:4]
    for wrong in ({"shape": "square", "place": (0.1, 0.2)}, {}, {"shape": "sqare"}):
        with pytest.raises(InputError, match="area 'x'"):
            fmri.Area("x", **wrong)
    with pytest.raises(InputError, match="Did you mean 'a place'"):
        data.voxels("a plce")
    for wrong in ({"ceiling": 0.0}, {"subjects": 0}, {"ceiling": math.nan}):
        with pytest.raises(InputError, match="expected at least one area"):
            fmri.visual(scenes, AREAS, 0, **wrong)
    with pytest.raises(ShapeError, match="P a square"):
        fmri.visual(scenes, AREAS, 0, maps=torch.ones(4, 5, 2))
    with pytest.raises(InputError, match="Raise objects="):
        fmri.scenes_with(["square", "ring", "star"], 4, 0)

"""The image world: pixels agree with factors, and a seed decides every byte."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interneuron.core.errors import InputError
from interneuron.organisms import shapes as sh
from interneuron.organisms.shapes import randoms
from interneuron.organisms.shapes.fields import EXTENTS, FIELDS


def circular(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    d = (a - b).abs()
    return torch.minimum(d, 1 - d)


def test_measuring_recovers_hue_centre_and_size() -> None:
    scenes = sh.sample(600, seed=5, background="any", inside=True)
    seen, f = sh.measure(scenes.images), scenes.factors
    assert circular(seen.hue, f["hue"][:, 0]).max() < 0.03
    assert ((seen.x - f["x"][:, 0]).abs().max() * 32) < 1.0
    assert ((seen.y - f["y"][:, 0]).abs().max() * 32) < 1.0
    assert ((seen.radius / f["radius"][:, 0] - 1).abs().max()) < 0.08
    assert torch.equal(seen.color, scenes.labels("color"))


def test_measuring_follows_light_and_texture() -> None:
    base = sh.sample(100, seed=2, factors={"texture": "solid", "brightness": 0.75})
    lit = sh.measure(base.change(brightness=1.0).images).brightness
    assert (lit > sh.measure(base.images).brightness).all()
    striped = sh.measure(base.change(texture="striped").images).texture
    assert (striped > sh.measure(base.images).texture + 0.05).float().mean() > 0.97


def test_counting_regions_counts_objects() -> None:
    scenes = sh.sample(200, seed=3, size=64, objects=(1, 5))
    assert (sh.measure(scenes.images).count == scenes.factors["n_objects"]).float().mean() >= 0.97


@given(seed=st.integers(0, 10_000), start=st.integers(0, 500), n=st.integers(1, 9), objects=st.integers(1, 3))
@settings(max_examples=15, deadline=None)
def test_a_scene_depends_on_seed_and_index_alone(seed: int, start: int, n: int, objects: int) -> None:
    whole = sh.sample(start % 7 + n, seed, size=16, start=start, objects=objects, background="any")
    part = sh.sample(n, seed, size=16, start=start + start % 7, objects=objects, background="any")
    assert torch.equal(whole.images[start % 7 :], part.images)


def test_bytes_are_the_same_in_another_process() -> None:
    script = (
        "import hashlib, torch\nfrom interneuron.organisms import shapes as sh\n"
        "x = sh.sample(40, 11, background='any', objects=(1, 3)).images\n"
        "print(hashlib.sha256(x.numpy().tobytes()).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
    here = sh.sample(40, 11, background="any", objects=(1, 3)).images
    assert hashlib.sha256(here.numpy().tobytes()).hexdigest() == other


def test_the_global_generator_is_left_alone() -> None:
    state = torch.random.get_rng_state()
    _ = sh.sample(8, 0, objects=(1, 4), background="any").images
    assert torch.equal(state, torch.random.get_rng_state())


def test_splits_and_seeds_share_no_scene() -> None:
    images = torch.cat([sh.sample(200, s, size=16, split=p).images for s in (0, 1) for p in ("train", "test")])
    assert len(images.flatten(1).unique(dim=0)) == len(images)


@pytest.mark.parametrize("shape", range(len(sh.SHAPES)), ids=sh.SHAPES)
def test_every_shape_has_unit_area_and_centroid_at_its_origin(shape: int) -> None:
    axis = (torch.arange(801, dtype=torch.float64) - 400) / 200
    inside = FIELDS[shape](axis[None, :], axis[:, None]) < 0
    cell = (1 / 200) ** 2
    assert inside.sum().item() * cell == pytest.approx(torch.pi, rel=0.01)
    assert (inside * axis[None, :]).sum().item() * cell == pytest.approx(0, abs=0.02)
    assert (inside * axis[:, None]).sum().item() * cell == pytest.approx(0, abs=0.02)
    reach = torch.hypot(*torch.meshgrid(axis, axis, indexing="ij"))[inside].max().item()
    assert reach == pytest.approx(EXTENTS[shape], abs=0.02)


def test_masks_boxes_and_background_agree_with_the_pixels() -> None:
    scenes = sh.sample(60, seed=1, size=48, objects=(2, 4), background="any")
    union = scenes.visible.any(1)
    changed = (scenes.images - scenes.background).abs().amax(1) > 0.02
    assert not (union & ~changed).float().mean() > 0.01  # an object may happen to match what is behind it
    assert (changed & ~union).sum() < 0.05 * changed.numel()  # only half-covered border pixels
    for i, k in scenes.present.nonzero()[:40].tolist():
        rows, columns = scenes.masks[i, k].nonzero().unbind(1)
        assert scenes.boxes[i, k].tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert not scenes.masks[~scenes.present].any()


def test_objects_of_a_scene_do_not_overlap() -> None:
    scenes = sh.sample(300, seed=4, objects=5)
    assert (scenes.masks.sum(1) <= 1).all()
    assert torch.equal(scenes.masks, scenes.visible)


def test_changing_a_factor_changes_nothing_else() -> None:
    a, b = sh.contrast("color", "red", "blue", n=50, seed=0, background="any")
    assert torch.equal(a.masks, b.masks)
    outside = ~a.masks[:, 0] & ((a.images - a.background).abs().amax(1) == 0)
    assert ((a.images - b.images).abs().amax(1)[outside] == 0).all()
    assert (a.labels("color") == 0).all()
    assert (b.labels("color") == sh.COLORS.index("blue")).all()
    bigger = a.change(radius=0.3)
    assert (bigger.labels("size") == 2).all()


def test_factors_can_be_pinned_weighted_and_crossed() -> None:
    one = sh.sample(50, 0, factors={"shape": "star", "color": ["red", "blue"], "rotation": (1.0, 1.1)})
    assert set(one.labels("shape").tolist()) == {sh.SHAPES.index("star")}
    assert set(one.labels("color").tolist()) == {0, 2}
    assert one.factors["rotation"].min() >= 1.0
    odds = sh.sample(2000, 0, factors={"texture": {"solid": 3, "noise": 1}}).labels("texture")
    assert (odds == 0).float().mean().item() == pytest.approx(0.75, abs=0.04)
    crossed = sh.sample(200, 0, factors={"shape*color": [("star", "red"), ("ring", "blue")]})
    assert set(crossed.labels("shape*color").tolist()) == {3 * 8 + 0, 5 * 8 + 2}
    words = sh.sample(300, 0, factors={"size": "large", "position": "top left"})
    assert set(words.labels("size").tolist()) == {2}
    assert set(words.labels("position").tolist()) == {0}


def test_factors_are_uniform_and_independent() -> None:
    f = sh.sample(8000, 0, background="any")
    for name, values in (("shape", 8), ("color", 8), ("texture", 5), ("size", 3), ("position", 9), ("background", 5)):
        share = torch.bincount(f.labels(name), minlength=values) / 8000
        assert (share - 1 / values).abs().max() < 0.02
    table = torch.bincount(f.labels("shape*texture"), minlength=40) / 8000
    assert (table - 1 / 40).abs().max() < 0.008


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"factors": {"shape": "sircle"}}, "Did you mean 'circle'"),
        ({"factors": {"colour": "red"}}, "Did you mean 'color'"),
        ({"size": 33}, "16, 32, 48 or 64"),
        ({"objects": 6}, "1 to 5"),
        ({"split": "tset"}, "Did you mean 'test'"),
        ({"objects": 2, "factors": {"x": 0.5}}, "objects=1"),
        ({"split": "conflict"}, "bias is empty"),
        ({"bias": {"texure": 0.9}}, "Did you mean 'texture'"),
        ({"factors": {"x": torch.zeros(3)}}, "shape (3,)"),
    ],
)
def test_mistakes_are_taught(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(InputError) as caught:
        sh.sample(4, 0, **arguments)  # type: ignore[arg-type]
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_scenes_is_a_batch_of_none() -> None:
    empty = sh.sample(0, 0)
    assert empty.images.shape == (0, 3, 32, 32)
    assert empty.captions == []


def test_hashing_spreads_evenly() -> None:
    u = randoms.uniform(randoms.key(3, "x"), torch.arange(40_000))
    histogram = torch.histc(u, 20, 0, 1) / 2000
    assert (histogram - 1).abs().max() < 0.1
    assert torch.corrcoef(torch.stack([u[:-1], u[1:]]))[0, 1].abs() < 0.02
    pixels = randoms.field(randoms.bits(1, torch.arange(50)), 16, 16)
    assert pixels.min() >= 0
    assert pixels.max() < 1
    assert pixels.std().item() == pytest.approx(12**-0.5, abs=0.01)

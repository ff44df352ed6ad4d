"""Questions, clips, glyphs, arrows, modalities and parts agree with the truth they carry."""

from __future__ import annotations

import pytest
import torch

from interneuron.core.errors import InputError
from interneuron.organisms import shapes as sh


def test_yes_and_no_are_equally_likely_and_true() -> None:
    scenes = sh.sample(1500, 0, size=16, objects=(1, 4))
    asked = sh.questions(scenes, "exist")
    assert len(asked) == 1500
    yes = torch.tensor([a == "yes" for a in asked.answers])
    assert yes.float().mean().item() == pytest.approx(0.5, abs=0.04)
    for text, answer, i in zip(asked.texts, asked.answers, asked.index.tolist(), strict=True):
        shape = sh.SHAPES.index(text.split()[3])
        assert (shape in scenes.factors["shape"][i].tolist()) == (answer == "yes")


def test_every_kind_of_question_has_a_right_and_a_wrong_answer() -> None:
    scenes = sh.sample(300, 1, size=16, objects=(2, 4))
    for kind in ("exist", "color", "count", "relation", "position", "compare"):
        asked = sh.questions(scenes, kind, seed=2)
        assert len(asked) > 100, kind
        assert all(a != w for a, w in zip(asked.answers, asked.wrong, strict=True)), kind
    f = scenes.factors
    asked = sh.questions(scenes, "relation")
    for text, answer, i in zip(asked.texts, asked.answers, asked.index.tolist(), strict=True):
        words = text.split()
        row = f["shape"][i].tolist()
        a, b = row.index(sh.SHAPES.index(words[2])), row.index(sh.SHAPES.index(words[-2]))
        line = f["x"] if "left" in words else f["y"]
        assert (line[i, a] < line[i, b]) == (answer == "yes")
    asked = sh.questions(scenes, "color")
    for text, answer, i in zip(asked.texts, asked.answers, asked.index.tolist(), strict=True):
        k = f["shape"][i].tolist().index(sh.SHAPES.index(text.split()[-2]))
        assert sh.COLORS[int(f["color"][i, k])] == answer


def test_a_bouncing_object_is_where_it_is_said_to_be() -> None:
    clip = sh.video(10, 12, seed=0, kind="bounce")
    assert clip.frames.shape == (10, 12, 3, 32, 32)
    seen = sh.measure(clip.frames.flatten(0, 1))
    whole = ~seen.clipped
    error = (torch.stack([seen.x, seen.y], 1) - clip.positions.flatten(0, 1)).abs()[whole].max()
    assert error * 32 < 1.0
    assert torch.allclose(clip.positions[:, :-1] + clip.velocities[:, :-1], clip.positions[:, 1:], atol=1e-6)


def test_the_cue_is_shown_once_and_the_bar_hides() -> None:
    clip = sh.video(12, 16, seed=0, kind="cue")
    saturation = (clip.frames.amax(2) - clip.frames.amin(2)).flatten(2).amax(2)
    assert (saturation[:, 0] > 0.4).all()
    assert (saturation[:, 2:] < 0.1).all()
    assert (clip.hidden.amax(1) > 0.5).all()
    assert (clip.hidden[:, 0] == 0).all()


def test_motion_says_nothing_about_shape() -> None:
    clip = sh.video(400, 2, seed=0, kind="motion-class", size=16)
    table = torch.bincount(clip.labels * 8 + clip.scenes.labels("shape"), minlength=32) / 400
    assert (table - 1 / 32).abs().max() < 0.03


def test_glyphs_turn_and_shrink_with_their_pose() -> None:
    one = sh.glyphs(40, 0, size=64, identity=torch.arange(40), pose=torch.tensor([0.5, 0.5, 0.0, 0.2]).repeat(40, 1))
    area = one.images.flatten(1).sum(1)
    half = sh.glyphs(40, 0, size=64, identity=torch.arange(40), pose=torch.tensor([0.5, 0.5, 0.0, 0.1]).repeat(40, 1))
    assert torch.allclose(area / half.images.flatten(1).sum(1), torch.tensor(4.0), rtol=0.05)
    assert len(one.images.round().flatten(1).unique(dim=0)) == 40
    turned = torch.tensor([0.5, 0.5, torch.pi / 2, 0.2]).repeat(40, 1)
    quarter = sh.glyphs(40, 0, size=64, identity=torch.arange(40), pose=turned)
    assert (quarter.images.rot90(1, (2, 3)) - one.images).abs().mean() < 1e-3


def test_arrows_hit_when_their_label_says_so() -> None:
    small, large = sh.arrows(300, 0, size=48), sh.arrows(300, 0, size=96)
    assert torch.equal(small.labels, large.labels)
    t = small.truth
    gap = t["disc"] - t["tail"]
    ray = torch.stack([torch.cos(t["angle"]), torch.sin(t["angle"])], 1)
    miss = (gap[:, 0] * ray[:, 1] - gap[:, 1] * ray[:, 0]).abs()
    ahead = (gap * ray).sum(1) > 0
    assert torch.equal((miss < t["radius"]) & ahead, small.labels.bool())
    assert small.labels.float().mean().item() == pytest.approx(0.5, abs=0.1)
    # nothing is drawn beyond the tip: ink lies within the disc or within an eighth of the tail
    ys, xs = torch.meshgrid((torch.arange(96) + 0.5) / 96, (torch.arange(96) + 0.5) / 96, indexing="ij")
    far = torch.ones(300, 96, 96, dtype=torch.bool)
    for centre, reach in ((t["disc"], t["radius"] + 0.02), (t["tail"], torch.full((300,), 0.15))):
        far &= torch.hypot(xs - centre[:, 0, None, None], ys - centre[:, 1, None, None]) > reach[:, None, None]
    assert (large.images[:, 0] * far).max() == 0
    pooled = torch.nn.functional.avg_pool2d(large.images, 2)
    assert (pooled - small.images).abs().mean() < 0.01


def test_modalities_keep_the_masks_and_parts_tell_the_class() -> None:
    scenes = sh.sample(60, 0, background="any", inside=True)
    for kind in sh.MODALITIES:
        changed = (sh.modality(scenes, kind) - scenes.background).abs().amax(1) > 0.05
        assert (changed & ~scenes.masks[:, 0]).float().mean() < 0.03, kind
    line = (sh.modality(scenes, "line") - scenes.background).abs().amax(1) > 0.05
    assert line.sum() < 0.8 * scenes.masks.sum()
    images, labels, mark = sh.part(scenes, n_classes=4)
    ys, xs = torch.meshgrid(torch.arange(32) + 0.5, torch.arange(32) + 0.5, indexing="ij")
    size = mark.flatten(1).sum(1)
    dx = (mark * xs).flatten(1).sum(1) / size / 32 - scenes.factors["x"][:, 0]
    dy = (mark * ys).flatten(1).sum(1) / size / 32 - scenes.factors["y"][:, 0]
    assert torch.equal(torch.remainder((torch.atan2(dy, dx) / (torch.pi / 2)).round(), 4).long(), labels)
    assert torch.equal(images.movedim(1, -1)[~mark], scenes.images.movedim(1, -1)[~mark])


def test_faces_differ_in_mouth_and_brows_only_where_drawn() -> None:
    drawn = sh.faces(600, 0)
    share = torch.bincount(drawn.expression, minlength=6) / 600
    assert (share - 1 / 6).abs().max() < 0.06
    assert (drawn.mouth.flatten(1).sum(1) > 5).all()
    assert (drawn.brows.flatten(1).sum(1) > 3).all()
    rows = torch.arange(48) + 0.5
    height = (drawn.mouth * rows[:, None]).flatten(1).sum(1) / drawn.mouth.flatten(1).sum(1)
    open_mouth = drawn.mouth.flatten(1).sum(1).float()
    kinds = dict(zip(sh.EXPRESSIONS, range(6), strict=True))
    assert open_mouth[drawn.expression == kinds["surprised"]].min() > open_mouth[drawn.expression == kinds["sad"]].max()
    assert height.std() > 0


def test_spirals_are_thin_and_the_grid_is_ordered() -> None:
    thin = sh.spirals(40, 0, size=64)
    share = thin.masks.float().mean((1, 2))
    assert (share > 0.01).all()
    assert (share < 0.15).all()
    scenes, cells, labels = sh.grid64(200, 0)
    seen = sh.measure(scenes.images)
    assert torch.equal((seen.hue / 0.8 * 8).floor().long(), cells[:, 0])
    assert (((seen.radius - 0.12) / 0.2 * 8).floor().long() - cells[:, 1]).abs().max() <= 1
    assert torch.equal(labels, cells[:, 0] * 8 + cells[:, 1])


def test_mistakes_are_taught() -> None:
    with pytest.raises(InputError, match="Did you mean 'bounce'"):
        sh.video(1, 4, 0, kind="bounces")
    with pytest.raises(InputError, match="Did you mean 'count'"):
        sh.questions(sh.sample(1, 0), "counts")
    with pytest.raises(InputError, match="at least 2 frames"):
        sh.video(1, 1, 0)

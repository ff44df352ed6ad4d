"""Solids, voxels, rooms, cameras, blocks and facets agree with geometry done again by other means."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from interneuron.core.errors import InputError, ShapeError
from interneuron.organisms import shapes as sh
from interneuron.organisms.shapes.blocks import hollow_square
from interneuron.organisms.shapes.rooms import TYPES
from interneuron.organisms.shapes.shapes3d import EXTENTS, FIELDS, VOLUME
from interneuron.organisms.shapes.views import EYE, FOV, actions


def test_all_solids_have_the_volume_of_the_sphere_and_fit_their_ball() -> None:
    grid = 4 * torch.rand(600_000, 3, generator=torch.Generator().manual_seed(0)) - 2
    for name, field, extent in zip(sh.SOLIDS, FIELDS, EXTENTS, strict=True):
        inside = field(grid) <= 0
        assert inside.float().mean().item() * 64 == pytest.approx(VOLUME, rel=0.02), name
        assert grid[inside].norm(dim=1).max() <= extent + 1e-4, name
        assert grid[inside].norm(dim=1).max() >= extent - 0.12, name
        assert torch.allclose(grid[inside].mean(0), torch.zeros(3), atol=0.02), name


def test_a_silhouette_is_the_shadow_of_the_occupancy() -> None:
    solids = sh.shapes3d(12, 0)
    filled = solids.occupancy(64)
    shown = solids.views(sh.cameras("z")[0], 64).silhouettes
    shadow = filled.any(3).transpose(1, 2)  # x is the column
    overlap = (shadow & shown).flatten(1).sum(1) / (shadow | shown).flatten(1).sum(1)
    assert overlap.min() > 0.9
    assert ((shadow & shown.flip(0)).sum() / (shadow | shown.flip(0)).sum()).item() < 0.85  # of other solids


def test_depth_lies_on_the_surface_and_turning_all_changes_nothing() -> None:
    solids = sh.shapes3d(30, 1)
    camera = sh.cameras("random", 30, seed=3)
    assert torch.allclose(torch.linalg.det(camera), torch.ones(30), atol=1e-5)
    view = solids.views(camera, 32)
    line = (torch.arange(32) + 0.5) / 16 - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    seen = view.depth.where(view.silhouettes, 0.0)
    points = (
        x[..., None] * camera[:, None, None, 0] + y[..., None] * camera[:, None, None, 1]
        + seen[..., None] * camera[:, None, None, 2]
    )  # fmt: skip
    assert solids.field(points)[view.silhouettes].abs().max() < 3e-3
    turned = sh.Solids(
        solids.shape, solids.color, solids.hue, solids.scale, camera @ solids.rotation,
        torch.einsum("nij,nj->ni", camera, solids.center),
    )  # fmt: skip
    same = turned.views(sh.cameras("z")[0], 32)
    assert (same.silhouettes == view.silhouettes).float().mean() > 0.999
    with pytest.raises(InputError, match=r"shape \(2, 3\), expected"):
        solids.views(torch.zeros(2, 3))


def test_solids_of_a_seed_do_not_depend_on_how_many() -> None:
    few, many = sh.shapes3d(3, 5), sh.shapes3d(9, 5)
    assert torch.equal(few.rotation, many.rotation[:3])
    assert torch.equal(few.colored(8), many.colored(8)[:3])
    assert not torch.equal(few.rotation, sh.shapes3d(3, 5, split="test").rotation)
    assert len(sh.shapes3d(0, 0).views().images) == 0


def march(filled: np.ndarray, start: tuple[float, ...], cell: tuple[int, ...]) -> bool:
    """Is the centre of an empty cell in sight? Tiny steps along the line."""
    share = np.linspace(0, 1, 3000)[1:-1, None]
    at = np.floor(np.array(start) * (1 - share) + (np.array(cell) + 0.5) * share).astype(int)
    return not filled[at[:, 0], at[:, 1], at[:, 2]].any()


def test_the_range_sensor_sees_what_a_slow_march_sees() -> None:
    scenes = sh.voxels(3, 0)
    rng = np.random.default_rng(0)
    wrong = total = 0
    for i in range(3):
        filled = scenes.filled[i].numpy()
        for _ in range(120):
            cell = tuple(int(rng.integers(g)) for g in filled.shape)
            if not filled[cell]:
                total += 1
                wrong += march(filled, scenes.sensor, cell) != bool(scenes.observed[i][cell])
    assert total > 200
    assert wrong <= 1  # a march may step over a corner


def test_a_wall_hides_what_stands_behind_it_and_shows_its_face() -> None:
    filled = torch.zeros(1, 9, 9, 5, dtype=torch.bool)
    filled[0, 6, :, :] = True
    filled[0, 8, 4, 2] = True
    observed = sh.raycast(filled, (2.5, 4.5, 2.5))[0]
    assert observed[:6].all()
    assert observed[6, 4, 2]
    assert not observed[7:].any()
    filled[0, 6] = False
    assert sh.raycast(filled, (2.5, 4.5, 2.5))[0][8, 4, 2]


def test_voxel_scenes_have_all_classes_and_hide_a_part() -> None:
    scenes = sh.voxels(20, 1)
    assert set(scenes.labels.unique().tolist()) == {0, 1, 2, 3, 4}
    assert 0.3 < scenes.observed[scenes.filled].float().mean() < 0.9
    assert torch.equal(scenes.seen[scenes.observed], scenes.labels[scenes.observed])
    assert (scenes.seen[~scenes.observed] == -1).all()
    assert torch.equal(scenes.points[:, -1].bool(), ~scenes.observed)
    assert torch.equal(sh.voxels(5, 1).labels, scenes.labels[:5])
    with pytest.raises(InputError, match="above the ground"):
        sh.voxels(1, 0, sensor=(3.0, 3.0, 1.0))


def test_windows_read_the_plan_at_the_cells_they_name() -> None:
    walk = sh.rooms(4, 0, steps=30, noise=0.0)
    cells, labels = walk.cells, walk.labels
    inside = cells[..., 0] >= 0
    for i in range(4):
        at = cells[i][inside[i]]
        assert torch.equal(walk.plan[i][at[:, 0], at[:, 1]], labels[i][inside[i]])
    assert torch.equal(cells[:, :, 6, 3], walk.poses[..., :2])
    # one cell ahead is the row above, turned with the agent
    step = cells[:, :, 5, 3] - cells[:, :, 6, 3]
    ahead = torch.tensor([[-1, 0], [0, 1], [1, 0], [0, -1]])[walk.poses[..., 2]]
    seen = inside[:, :, 5, 3]
    assert torch.equal(step[seen], ahead[seen])
    assert (walk.plan.flatten(1).gather(1, (walk.poses[..., 0] * 24 + walk.poses[..., 1])) == 0).all()
    marks = torch.zeros(24, 24, dtype=torch.bool)
    marks[cells[0][inside[0]][:, 0], cells[0][inside[0]][:, 1]] = True
    assert torch.equal(marks, walk.observed[0])


def test_twins_need_a_second_view() -> None:
    walk = sh.rooms(60, 1, noise=0.0)
    looks, labels, across = walk.features.argmax(-1), walk.labels, (walk.poses[..., 2] % 2)[..., None, None]
    stool, bin_ = (labels == TYPES.index(t) for t in ("stool", "bin"))
    for heading, overlap in ((0, True), (1, False)):
        a, b = (set(looks[kind & (across == heading)].tolist()) for kind in (stool, bin_))
        assert a
        assert bool(a & b) is overlap
    noisy = sh.rooms(60, 1, noise=0.3)
    assert (noisy.features - walk.features).std().item() == pytest.approx(0.3, rel=0.02)


def test_a_view_is_what_a_pinhole_sees() -> None:
    room = sh.views(200, 0)
    images, instance, depth = room.render(48)
    right, ahead = room.relative().unbind(-1)
    position, camera = room.position.double().numpy(), room.camera.double().numpy()
    gap = (position[..., 0] - camera[:, None, 0]) + 1j * (position[..., 1] - camera[:, None, 1])
    local = gap * np.exp(-1j * camera[:, None, 2])  # turned into the frame of the camera: ahead is +i
    assert np.allclose(local.real, right, atol=1e-4)
    assert np.allclose(local.imag, ahead, atol=1e-4)
    focal = 24 / math.tan(FOV / 2)
    alone, shown = room.coverage(48)
    checked = 0
    for i in range(200):
        for k in range(room.shape.shape[1]):
            mask = instance[i] == k
            assert int(mask.sum()) == int(shown[i, k])
            if shown[i, k] < 12 or shown[i, k] < alone[i, k] or sh.SHAPES[room.shape[i, k]] in ("heart", "triangle"):
                continue
            rows, columns = mask.nonzero().float().add(0.5).mean(0).tolist()
            assert columns == pytest.approx(24 + focal * float(right[i, k] / ahead[i, k]), abs=0.8)
            assert rows == pytest.approx(24 + focal * float((EYE - room.elevation[i, k]) / ahead[i, k]), abs=0.8)
            assert float(depth[i][mask].max()) == pytest.approx(float(ahead[i, k]), abs=1e-4)
            checked += 1
    assert checked > 200
    assert torch.isinf(depth[instance < 0]).all()
    assert images.min() >= 0
    assert images.max() <= 1


def test_rooms_are_unambiguous_and_actions_act() -> None:
    room = sh.views(100, 3)
    for i in range(100):
        names = [room.name(i, k) for k in range(room.shape.shape[1]) if room.present[i, k]]
        assert len(set(names)) == len(names) >= 3
    left = room.act("turn left", 0.3)
    assert torch.allclose(left.bearing() - room.bearing(), torch.tensor(0.3), atol=1e-4)
    forward = room.act("move forward", 1.0)
    assert torch.allclose(room.relative()[..., 1] - forward.relative()[..., 1], torch.ones(()), atol=1e-4)
    back = forward.act(torch.full((100,), actions().index("move back")), 1.0)
    assert torch.allclose(back.camera, room.camera, atol=1e-5)
    assert torch.isnan(room.point_list()).all(-1).eq(~room.present).all()
    with pytest.raises(ShapeError, match=r"expected \[100\]"):
        room.act(torch.zeros(3, dtype=torch.int64), 1.0)


@pytest.fixture(scope="module")
def rooms300() -> sh.Room:
    return sh.views(300, 7)


def told(asked: sh.SpatialQuestions) -> list[str]:
    return [o[a] for o, a in zip(asked.options, asked.answers.tolist(), strict=True)]


@pytest.mark.parametrize("kind", [*sh.STATIC, *sh.DYNAMIC])
def test_words_alone_do_not_tell_the_answer(kind: str, rooms300: sh.Room) -> None:
    asked = sh.spatial(rooms300, kind)
    assert len(asked) > (10 if kind == "count" else 100)
    right = told(asked)
    assert all(len(set(o)) == 2 for o in asked.options)
    if kind not in ("nearer", "object"):
        groups: dict[tuple[str, ...], list[str]] = {}
        for text, options, answer in zip(asked.texts, asked.options, right, strict=True):
            key = (*sorted(options), "left by" if kind == "consequence" and "left by" in text else "")
            groups.setdefault(key, []).append(answer)
        for answers in groups.values():
            assert answers.count(answers[0]) * 2 == len(answers)
    else:  # the name told first is right half of the time
        first = [text.index(a) < text.index(next(x for x in o if x != a)) for text, a, o in zip(
            asked.texts, right, asked.options, strict=True
        )]  # fmt: skip
        assert abs(np.mean(first) - 0.5) < 0.1
    again = sh.spatial(rooms300, kind)
    assert again.texts == asked.texts
    assert torch.equal(again.answers, asked.answers)


def planar(room: sh.Room, row: int, slot: int) -> complex:
    """Where an object is, seen from the camera: real = right, imaginary = ahead."""
    x, y, heading = room.camera[row].tolist()
    p, q = room.position[row, slot].tolist()
    return ((p - x) + 1j * (q - y)) * complex(math.cos(-heading), math.sin(-heading))


def test_static_answers_follow_from_geometry_done_again(rooms300: sh.Room) -> None:
    for kind, value, low in (
        ("side", lambda r, i, k: planar(r, i, k).real / planar(r, i, k).imag, "further left"),
        ("depth", lambda r, i, k: abs(planar(r, i, k)), "nearer"),
        ("height", lambda r, i, k: float(r.elevation[i, k]), "lower"),
        ("size", lambda r, i, k: float(r.radius[i, k]), "smaller"),
    ):
        asked = sh.spatial(rooms300, kind)
        shown = rooms300.in_view[asked.rows]
        for i, (answer, (a, b)) in enumerate(zip(told(asked), asked.slots, strict=True)):
            assert (value(asked.before, i, a) < value(asked.before, i, b)) == (answer == low), kind
            assert shown[i, a] and shown[i, b]
    asked = sh.spatial(rooms300, "count")
    for i, answer in enumerate(told(asked)):
        color = sh.COLORS.index(asked.texts[i].split()[2])
        assert int((asked.before.color[i] == color).sum()) == int(answer)


def test_dynamic_answers_follow_from_geometry_done_again(rooms300: sh.Room) -> None:
    asked = sh.spatial(rooms300, "turn")
    assert asked.after is not None
    for i, answer in enumerate(told(asked)):
        assert (asked.after.camera[i, 2] > asked.before.camera[i, 2]) == (answer == "left")
    asked = sh.spatial(rooms300, "object")
    assert asked.after is not None
    for i, (answer, (moved, other)) in enumerate(zip(told(asked), asked.slots, strict=True)):
        gap = (asked.after.position[i] - asked.before.position[i]).norm(dim=1)
        assert gap[moved].item() == pytest.approx(1.2, abs=1e-4)
        assert gap[other] == 0
        assert answer == asked.before.name(i, moved)
    asked = sh.spatial(rooms300, "perspective")
    for i, (answer, (a, b, c)) in enumerate(zip(told(asked), asked.slots, strict=True)):
        place = [complex(*asked.before.position[i, k].tolist()) for k in (a, b, c)]
        turn = (place[2] - place[0]) / (place[1] - place[0])
        assert (turn.imag > 0) == (answer == "left")
    asked = sh.spatial(rooms300, "aim")
    for i, (answer, (goal,)) in enumerate(zip(told(asked), asked.slots, strict=True)):
        assert (planar(asked.before, i, goal).real < 0) == (answer == "left")
    asked = sh.spatial(rooms300, "consequence")
    assert asked.after is not None
    for i, (answer, (goal,)) in enumerate(zip(told(asked), asked.slots, strict=True)):
        local = planar(asked.after, i, goal)
        assert (abs(math.atan2(local.real, local.imag)) < FOV / 2) == (answer == "yes")


def test_unknown_kinds_are_named(rooms300: sh.Room) -> None:
    with pytest.raises(InputError, match="Did you mean 'depth'"):
        sh.spatial(rooms300, "dept")
    assert len(rooms300.rows(torch.tensor([4, 4]))) == 2


@pytest.fixture(scope="module")
def composites() -> dict[str, sh.CompositeQuestions]:
    room = sh.views(300, 11, objects=(5, 8))
    return {kind: sh.composite(room, kind) for kind in sh.NEEDS}


def right_options(asked: sh.CompositeQuestions) -> list[str]:
    return [o[a] for o, a in zip(asked.options, asked.answers.tolist(), strict=True)]


def test_composite_answers_follow_from_the_state_and_words_do_not_tell_them(
    composites: dict[str, sh.CompositeQuestions],
) -> None:
    for kind, asked in composites.items():
        assert len(asked) > 30, kind
        both = asked.first.in_view | asked.second.in_view
        blind: dict[tuple[str, ...], list[str]] = {}
        for i, (text, options, answer) in enumerate(zip(asked.texts, asked.options, right_options(asked), strict=True)):
            assert len(set(options)) == len(options)
            blind.setdefault(tuple(sorted(options)), []).append(answer)
            slot = {asked.first.name(i, k): k for k in range(8) if asked.first.present[i, k]}
            place = {name: complex(*asked.first.position[i, k].tolist()) for name, k in slot.items()}
            if kind == "EQ":
                color = sh.COLORS.index(text.split()[2])
                assert int(((asked.first.color[i] == color) & both[i]).sum()) == int(answer)
            elif kind == "SQ":
                assert int(both[i].sum()) == int(answer)
            elif kind == "SA":
                assert max(options, key=lambda o: asked.first.radius[i, slot[o]]) == answer
            elif kind == "OO":
                anchor = place[" ".join(text.split()[-3:-1])]
                assert min(options, key=lambda o: abs(place[o] - anchor)) == answer
            elif kind == "EP":
                assert [o for o in options if o in slot and both[i, slot[o]]] == [answer]
            elif kind == "SP":
                words = text.split()
                a, b, c = (place[f"{words[k]} {words[k + 1]}"] for k in (4, 9, -3))
                ahead = ((c - a) / (b - a)).real
                assert (ahead > abs(((c - a) / (b - a)).imag)) == (answer == "go straight on")
        if kind not in ("SA", "OO", "EP"):
            assert all(found.count(found[0]) * len(key) == len(found) for key, found in blind.items()), kind
    asked = composites["EP"]
    hidden = [
        not asked.first.in_view[i, [asked.first.name(i, k) for k in range(8)].index(answer)]
        for i, answer in enumerate(right_options(asked))
    ]
    assert sum(hidden) > 10  # one picture does not suffice


def test_scores_of_a_weak_reader_name_the_weak_skill(composites: dict[str, sh.CompositeQuestions]) -> None:
    for kind, asked in composites.items():
        assert torch.equal(asked.oracle({}), asked.answers)
        score = float((asked.oracle({"count": 0.5}) == asked.answers).float().mean())
        assert score < 0.8 if "count" in asked.needs else score == 1.0, kind
    skill = {atom: 0.95 - 0.08 * (i % 5) for i, atom in enumerate(sh.ATOMS)}
    table = torch.tensor([[float(atom in needs) for atom in sh.ATOMS] for needs in sh.NEEDS.values()])
    scores = torch.stack(
        [
            torch.stack([(q.oracle(skill, s) == q.answers).float().mean() for s in range(40)]).mean()
            for q in composites.values()
        ]
    )
    strength = torch.tensor([skill[a] for a in sh.ATOMS]).log()
    assert torch.allclose(scores.log(), table @ strength, atol=0.08)
    with pytest.raises(InputError, match="no composite type 'XX'"):
        sh.composite(sh.views(2, 0), "XX")


def test_blocks_say_where_the_digit_is() -> None:
    data = sh.blocks("train", classes=(3, 8))
    assert data.images.shape[1:] == (1, 16, 8)
    assert set(data.labels.tolist()) == {0, 1}
    assert 0.45 < data.top.float().mean() < 0.55
    assert torch.equal(data.signal, ~data.null)
    null = data.images[:, 0][data.null].reshape(-1, 8, 8)
    assert torch.equal(null, hollow_square().expand_as(null))
    from interneuron.organisms.digits import digits

    scans = {int(i): image for i, image in zip(digits("train").index, digits("train").images[:, 0], strict=True)}
    shown = data.images[:, 0][data.signal].reshape(-1, 8, 8)
    assert all(torch.equal(shown[k], scans[int(data.index[k])]) for k in range(0, len(data), 97))
    assert sh.blocks("test", fixed=True).top.all()
    assert not set(data.index.tolist()) & set(sh.blocks("test", classes=(3, 8)).index.tolist())
    with pytest.raises(InputError, match="different classes"):
        sh.blocks(classes=(1, 1))


def test_only_the_signal_block_carries_the_label() -> None:
    x, y, mask = sh.signals(4000, 0, noise=0.2)
    block = x[mask].reshape(4000, 8)
    u = block[y == 1].mean(0)
    assert ((block @ u > 0).long() == y).float().mean() > 0.99
    rest = x[~mask].reshape(4000, 24)
    assert (rest[y == 1].mean(0) - rest[y == 0].mean(0)).abs().max() < 0.05
    assert (sh.signals(10, 0, fixed=True)[2][:, :8]).all()


def test_neither_color_nor_shape_tells_the_class_of_a_facet() -> None:
    data = sh.facets(4000, 0, hard=1.0)
    shape, color = (data.scenes.labels(n) for n in ("shape", "color"))
    red, circle = color == sh.COLORS.index("red"), shape == sh.SHAPES.index("circle")
    for cue in (red, circle):
        assert data.labels[cue].float().mean().item() == pytest.approx(0.5, abs=0.05)
    inside = (red & circle) | ((color == sh.COLORS.index("blue")) & (shape == sh.SHAPES.index("square")))
    assert torch.equal(inside.long(), data.labels)
    assert torch.equal(data.facet[inside], torch.where(circle[inside], 0, 1))
    loose = sh.facets(2000, 1, hard=0.0)
    pairs = list(zip(loose.scenes.labels("shape").tolist(), loose.scenes.labels("color").tolist(), strict=True))
    members = [(sh.SHAPES.index(s), sh.COLORS.index(c)) for s, c in sh.FACETS]
    assert all((pair in members) == bool(label) for pair, label in zip(pairs, loose.labels.tolist(), strict=True))
    assert len(set(pairs)) > 40

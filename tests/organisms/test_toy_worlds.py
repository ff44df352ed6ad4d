"""The generators of the toy tasks that need no network: every stated truth is derived again here by other means."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from interneuron.core.errors import InputError
from interneuron.organisms.toy import (
    associative_memory,
    burgers,
    darcy,
    delayed_copy,
    dichotomies,
    inr_images,
    intervention_extrapolation,
    marked_recall,
    matrix_completion,
    rigid_frames,
    rnn_2afc,
    selective_copy,
    subspace_sum,
    tabular6,
)


def test_a_completed_matrix_has_the_stated_directions() -> None:
    task = matrix_completion.make(0)
    s = torch.linalg.svdvals(task.truth["matrix"])
    assert torch.allclose(s[:2], task.truth["strengths"])
    assert s[2] < 1e-10
    assert int(task.mask.sum()) == 120
    assert torch.equal(task.seen[task.mask], task.truth["matrix"][task.mask])
    assert task.error(task.truth["matrix"]) == 0
    assert task.error(torch.zeros(20, 20)) == pytest.approx(1, abs=0.3)
    for alignment in (0.0, 0.4, 1.0):
        other = task.related(3, alignment)
        cosine = (task.truth["u"] * other.truth["u"]).sum(0).square()
        assert torch.allclose(cosine, torch.full((2,), alignment, dtype=torch.float64), atol=1e-9)
        assert torch.allclose(torch.linalg.svdvals(other.truth["matrix"])[:2], task.truth["strengths"])
    with pytest.raises(InputError, match="alignment"):
        task.related(0, 1.5)


@pytest.mark.parametrize("kind", rnn_2afc.KINDS)
def test_the_best_observer_is_as_good_as_stated_and_nobody_is_needed_to_wait(kind: str) -> None:
    data = rnn_2afc.make(0, kind=kind, n=6000, coherences=(0.1, 0.3))
    x, truth = data.x, data.truth
    assert (data.y[:, ~truth["answer"]] == 0).all()
    assert (data.x[:, truth["answer"], 0] == 0).all()
    assert (data.y[:, -1] == truth["choice"]).all()
    if kind == "match":
        sights = [x[:, a:b, 1] - x[:, a:b, 2] for a, b in ((0, 10), (12, 22))]
        guess = torch.where(sights[0].sum(1) * sights[1].sum(1) > 0, 1, 2)
    else:
        pairs = x[:, :10, 1:5].reshape(6000, 10, 2, 2) if kind == "context" else x[:, :10, 1:3].reshape(6000, 10, 1, 2)
        which = truth["context"] if kind == "context" else torch.zeros(6000, dtype=torch.int64)
        total = (pairs[..., 0] - pairs[..., 1]).sum(1)
        guess = torch.where(total[torch.arange(6000), which] > 0, 1, 2)
    hit = (guess == truth["choice"]).float().mean()
    assert hit.item() == pytest.approx(float(truth["best"].mean()), abs=0.02)
    if kind == "context":
        assert torch.equal(x[:, 0, -2:].argmax(1), truth["context"])
        other = total[torch.arange(6000), 1 - which]
        assert abs((torch.where(other > 0, 1, 2) == truth["choice"]).float().mean() - 0.5) < 0.03
    logits = F.one_hot(data.y, 3).float()
    assert data.accuracy(logits) == 1.0


def test_dichotomies_have_the_geometry_asked_for() -> None:
    plain, factored = dichotomies.make(0, mix=0.0), dichotomies.make(0, mix=1.0)
    gram = plain.truth["inputs"] @ plain.truth["inputs"].T
    assert torch.allclose(gram, 16 * torch.eye(16), atol=1e-4)
    kernel = factored.truth["inputs"] @ factored.truth["inputs"].T
    assert torch.allclose(kernel, 4 * factored.truth["latents"] @ factored.truth["latents"].T, atol=1e-4)
    assert factored.truth["alignment"] > plain.truth["alignment"] + 0.3
    parity = dichotomies.make(0, mix=1.0, order=2)
    assert parity.truth["alignment"].abs() < 1e-5  # products of latents are orthogonal to the latents
    assert torch.equal(parity.truth["sets"].sum(1), torch.full((3,), 2))
    product = torch.where(parity.truth["sets"][0], parity.truth["latents"], 1.0).prod(1)
    assert torch.equal(product, parity.truth["targets"][:, 0])
    mean = torch.stack([plain.x[plain.condition == c].mean(0) for c in range(16)])
    assert (mean - plain.truth["inputs"]).abs().max() < 0.3
    others = plain.others(10)
    assert (others.sum(1) == 0).all()
    assert ((others @ plain.truth["targets"]).abs() < 16).all()
    with pytest.raises(InputError, match="d >= 20"):
        dichotomies.make(0, d=10)


def test_marked_tokens_can_be_answered_from_their_source_only() -> None:
    data = marked_recall.make(0)
    truth, x = data.truth, data.x
    assert truth["marked"].float().mean().item() == pytest.approx(0.1, abs=0.01)
    rows, at = truth["asked"].nonzero(as_tuple=True)
    source = truth["source"][rows, at]
    assert (source < at).all()
    key = x[..., 2:10].argmax(-1)
    assert torch.equal(key[rows, at], key[rows, source])
    assert (x[rows, at, 10:] == 0).all()
    told = data.y[rows, source]
    assert torch.equal(data.y[rows, at], told)
    first = truth["marked"] & ~truth["asked"]
    assert torch.equal(x[first][:, 10:].argmax(1) + 2, data.y[first])
    by_hand = 0.0
    for t in range(256):
        by_hand = 0.8 * by_hand + 0.2 * float(x[3, t, 0])
        assert by_hand == pytest.approx(float(truth["ema"][3, t]), abs=1e-5)
    assert (x[..., 0][truth["marked"]] == 0).all()
    assert data.accuracy(F.one_hot(data.y, 10).float()) == 1.0


def test_copies_come_back_in_order_and_only_one_kind_has_a_fixed_lag() -> None:
    for data, spread in ((selective_copy.make(0), True), (delayed_copy.make(0), False)):
        for i in range(5):
            kept = data.tokens[i, :64][data.tokens[i, :64] > 1]
            assert torch.equal(kept, data.truth["data"][i])
            assert torch.equal(kept, data.targets[i, 64:])
        lag = torch.arange(64, 72) - data.truth["positions"]
        assert (lag.unique().numel() > 20) is spread
        assert (data.targets[:, :64] == selective_copy.IGNORE).all()
        assert int(data.tokens.max()) < data.vocabulary
    assert (lag == data.truth["lag"]).all()


def test_crosstalk_of_random_keys_is_as_theory_says() -> None:
    ratio = []
    for seed in range(30):
        data = associative_memory.make(seed, n=65, d=64, d_value=64)
        store = data.values.T @ data.keys
        crosstalk = data.keys @ store.T - data.values
        ratio.append(1 / float(crosstalk.square().sum(1).mean()))
    assert np.mean(ratio) == pytest.approx(float(data.truth["snr"]), rel=0.1)
    related = associative_memory.make(0, rho=0.3, n=200)
    cosine = related.keys @ related.keys.T
    assert cosine[~torch.eye(200, dtype=torch.bool)].mean().item() == pytest.approx(0.3, abs=0.02)
    assert torch.allclose(related.keys.norm(dim=1), torch.ones(200), atol=1e-5)


def test_a_delta_rule_is_blocked_and_a_hebbian_is_not() -> None:
    answer = {}
    for protocol in ("blocking", "control"):
        plan = associative_memory.conditioning(protocol)
        delta, hebb = torch.zeros(32), torch.zeros(32)
        for stimulus, outcome in zip(plan.stimuli, plan.outcomes, strict=True):
            delta = delta + 0.3 * (outcome - delta @ stimulus) * stimulus
            hebb = hebb + outcome * stimulus
        answer[protocol] = (float(delta @ plan.cues[1]), float(hebb @ plan.cues[1]))
    assert answer["blocking"][0] < 0.3 * answer["control"][0]
    assert answer["blocking"][1] >= 0.9 * answer["control"][1]
    with pytest.raises(InputError, match="Did you mean 'blocking'"):
        associative_memory.conditioning("blockin")


def test_burgers_obeys_its_equation_at_every_resolution() -> None:
    data = burgers.make(0, n=3)
    fine, coarse = data.at(1024), data.at(64)
    assert torch.equal(fine.outputs[:, ::16], coarse.outputs)
    step = 1e-3
    now, soon = (
        burgers._solve(data.truth | {"time": torch.tensor(1.0 + d).double()}, 1024).outputs.double()
        for d in (-step, step)
    )
    u = fine.outputs.double()
    wave = torch.arange(513)
    first, second = (torch.fft.irfft((1j * wave) ** k * torch.fft.rfft(u), n=1024) for k in (1, 2))
    residual = (soon - now) / (2 * step) + u * first - 0.1 * second
    assert residual.abs().max() < 2e-3
    start = burgers.make(0, n=3, time=0.0)
    assert torch.allclose(start.inputs, start.outputs, atol=1e-4)
    assert burgers.make(0, n=3, viscosity=1.0).outputs.abs().max() < data.outputs.abs().max()


def test_darcy_obeys_its_equation() -> None:
    data = darcy.make(0, n=4, resolution=1025)
    a, u, h = data.inputs.double(), data.outputs.double(), 1 / 1024
    assert u[:, [0, -1]].abs().max() < 1e-6
    middle = (a[:, 1:] + a[:, :-1]) / 2
    flow = middle * (u[:, 1:] - u[:, :-1]) / h
    assert (-(flow[:, 1:] - flow[:, :-1]) / h - 1).abs().max() < 0.2  # float32 outputs, divided by h twice
    x = data.x.double()
    assert torch.allclose(flow, data.truth["c"][:, None] - (x[1:] + x[:-1]) / 2, atol=2e-3)
    assert torch.allclose(data.at(65).outputs, data.outputs[:, ::16], atol=1e-6)
    flat = darcy.make(0, n=1, contrast=0.0)
    assert torch.allclose(flat.outputs[0], flat.x * (1 - flat.x) / 2, atol=1e-6)


def test_pictures_are_functions_with_the_spectrum_of_their_kind() -> None:
    slope = {}
    for name in ("beta 1", "beta 3"):
        picture = inr_images.make(0, **inr_images.PRESETS[name])  # type: ignore[arg-type]
        ring = torch.arange(2.0, 20.0)
        amplitude = picture.truth["spectrum"][1:19]
        slope[name] = float(np.polyfit(ring.log(), amplitude.log(), 1)[0])
    # power per mode falls by beta + 1, its root by half of that
    assert slope["beta 1"] == pytest.approx(-1.0, abs=0.25)
    assert slope["beta 3"] == pytest.approx(-2.0, abs=0.25)
    assert picture.train.float().mean() == 0.5
    assert torch.allclose(picture.f(picture.x), picture.y, atol=1e-5)
    assert picture.y.std().item() == pytest.approx(1, abs=1e-3)
    finer = inr_images.make(0, beta=3.0, resolution=128).image[::2, ::2]
    assert torch.corrcoef(torch.stack([finer.flatten(), picture.y[:, 0]]))[0, 1] > 0.9999
    few, many = (inr_images.make(1, **inr_images.PRESETS[k]) for k in ("large discs", "small discs"))  # type: ignore[arg-type]
    assert few.image.unique().numel() == 2
    middle = torch.arange(1.0, 33.0)
    assert (few.truth["spectrum"] @ middle) < (many.truth["spectrum"] @ middle)


def test_frames_are_rigid_and_their_targets_need_the_hidden_points() -> None:
    data = rigid_frames.make(0)
    assert torch.allclose(
        data.rotation @ data.rotation.transpose(-1, -2), torch.eye(3).expand_as(data.rotation), atol=1e-5
    )
    assert torch.allclose(torch.linalg.det(data.rotation), torch.ones(64, 12), atol=1e-5)
    turn = rigid_frames.random_rotations((), torch.Generator().manual_seed(9))
    moved = data.moved(turn, torch.tensor([1.0, -2.0, 3.0]))
    arms = torch.einsum("nlij,nlj->nli", moved.rotation, data.truth["anchors"][data.types])
    points = moved.translation + arms
    assert torch.allclose(points, moved.truth["points"], atol=1e-4)
    distance = torch.cdist(points, points)
    again = torch.exp(-distance.square() / 8) + 0.5 * F.cosine_similarity(arms[:, :, None], arms[:, None], dim=-1)
    assert torch.allclose(again, data.y, atol=1e-3)
    centres = torch.exp(-torch.cdist(data.translation, data.translation).square() / 8)
    off = ~torch.eye(12, dtype=torch.bool)
    assert torch.corrcoef(torch.stack([centres[:, off].flatten(), data.y[:, off].flatten()]))[0, 1] < 0.8


def test_helix_and_strand_differ_in_their_steps() -> None:
    frame, place, label = rigid_frames.fragments(0, noise=0.1)
    ends = (place[:, -1] - place[:, 0]).norm(dim=1)
    assert ends[label == 0].max() < ends[label == 1].min()
    assert torch.allclose(torch.linalg.det(frame), torch.ones(256, 10), atol=1e-4)


@pytest.mark.parametrize("name", tabular6.NAMES)
def test_a_table_has_the_stated_rule_columns_and_ceiling(name: str) -> None:
    data = tabular6.make(0, name=name, n=20_000)
    truth = data.truth
    assert data.x.std(0).sub(1).abs().max() < 0.1
    assert (data.y != truth["clean"]).float().mean().item() == pytest.approx(0.05, abs=0.005)
    x = data.x
    rule = {
        "line": lambda: (x[:, 0] - x[:, 1] + 0.7 * x[:, 2] + 0.5 * x[:, 3] > 0).long(),
        "clusters": lambda: torch.tensor([[2, 3], [1, 0]])[(x[:, 0] > 0).long(), (x[:, 1] > 0).long()],
        "parity": lambda: (x[:, 0] * x[:, 1] * x[:, 2] > 0).long(),
        "rings": lambda: (4 * (1 - torch.exp(-x[:, :2].square().sum(1) / 2))).long() % 2,
        "spirals": lambda: (
            torch.floor(torch.atan2(x[:, 1], x[:, 0]) / math.pi + 0.5 - 2 * x.norm(dim=1) * 0.77).long() % 2
        ),
        "waves": lambda: ((x[:, 0] > torch.sin(3 * x[:, 1])) != (x[:, 2] > 0)).long(),
    }[name]()
    assert (rule == data.y).float().mean().item() == pytest.approx(float(truth["best"]), abs=0.01)
    assert 0 < truth["relevant"].sum() <= data.x.shape[1]
    counts = torch.bincount(data.y, minlength=data.n_classes) / len(data.y)
    assert (counts - 1 / data.n_classes).abs().max() < 0.03


def test_effects_beyond_the_data_are_what_a_simulation_finds() -> None:
    data = intervention_extrapolation.make(0)
    truth = data.truth
    assert data.a.abs().max() <= 1
    assert ((truth["unseen"].abs() >= 1.2) & (truth["unseen"].abs() <= 1.4)).all()
    rng = torch.Generator().manual_seed(5)
    v = 0.3 * torch.randn(200_000, 2, generator=rng)
    by_chance = torch.stack([truth["outcome"](action @ truth["mixing"] + v).mean() for action in truth["unseen"]])
    assert torch.allclose(by_chance, truth["effect"](truth["unseen"]), atol=5e-3)
    residual = data.y[:, 0] - truth["outcome"](truth["z"])
    design = torch.cat([truth["v"], torch.ones(2000, 1)], 1)
    fitted = design @ torch.linalg.lstsq(design, residual[:, None]).solution
    assert 1 - (residual - fitted[:, 0]).var() / residual.var() > 0.9  # confounding: the residual hides in v
    order = torch.cdist(truth["z"], truth["z"]).flatten() > 1.0
    assert torch.cdist(data.x, data.x).flatten()[order].min() > 0.2  # the mixing keeps what is far apart apart


def test_ten_directions_suffice_and_nine_do_not() -> None:
    data = subspace_sum.make(0)
    rng = torch.Generator().manual_seed(1)
    p = F.normalize(torch.randn(1000, 10, generator=rng), dim=0)
    assert data.best(p) < 1e-12
    assert data.best(p[:, :9]) > 0.01
    z = torch.zeros(10, 1)
    assert data.loss(data.theta + (p @ z)[:, 0]) == pytest.approx(float(data.loss(data.theta)))
    solved = data.theta.clone()
    solved += ((data.truth["targets"] - data.sums(solved)) / 100)[data.truth["group"]]
    assert data.loss(solved) < 1e-9

"""Toy worlds in time: mazes, rhythms, streams of tasks and spaces of architectures, with their truths derived again."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from interneuron.core.errors import InputError, ShapeError
from interneuron.organisms.toy import (
    continual,
    gridworld_rl,
    kuramoto,
    nas_cells,
    phase_code,
)


def test_the_maze_is_solved() -> None:
    world = gridworld_rl.make(0)
    truth, states = world.truth, world.n_states
    value = torch.zeros(states, dtype=torch.float64)
    for _ in range(300):  # value iteration, written again
        gain = torch.where(world.next == world.goal, 1.0, world.gamma * value[world.next])
        value = gain.amax(1)
        value[world.goal] = 0
    assert torch.allclose(value, truth["value"])
    state = world.start(50, 0)
    assert (state != world.goal).all()
    steps = torch.zeros(50, dtype=torch.int64)
    done = torch.zeros(50, dtype=torch.bool)
    for _ in range(states):
        action = truth["policy"][state].int().argmax(1)
        reached, reward, finished = world.step(state, action)
        steps += ~done
        state, done = torch.where(done, state, reached), done | finished
        assert torch.equal(reward > 0, finished)
    assert done.all()
    assert torch.equal(steps, truth["distance"][world.start(50, 0)])
    series = sum(world.gamma**k * torch.linalg.matrix_power(truth["transition"], k) for k in range(400))
    assert torch.allclose(series, truth["successor"], atol=1e-6)
    walk = world.walk(200, 50, 0)
    moves = truth["transition"][walk[:, :-1], walk[:, 1:]]
    assert (moves > 0).all()


def test_synchrony_sets_in_where_theory_says() -> None:
    data = kuramoto.make(0)
    for coupling, lower, upper in ((0.6, 0.0, 0.2), (1.5, 0.5, 0.66), (3.0, 0.76, 0.88)):
        r = kuramoto.synchrony(data.simulate(coupling, steps=2000, dt=0.03))[100:].mean().item()
        assert lower <= r <= upper, (coupling, r, data.order(coupling))
    assert data.order(3.0) == pytest.approx(math.sqrt(2 / 3))
    assert data.order(0.9) == 0
    sparse = kuramoto.make(0, n=200, modules=4)
    assert sparse.adjacency is not None
    same = sparse.truth["modules"][:, None] == sparse.truth["modules"]
    assert sparse.adjacency[same].sum() / sparse.adjacency.sum() == pytest.approx(0.8, abs=0.05)
    assert float(sparse.adjacency.sum(1).float().mean()) == pytest.approx(20, rel=0.1)
    weight = kuramoto.reservoir(sparse, 0)
    assert float(torch.linalg.eigvals(weight).abs().max()) == pytest.approx(0.9, abs=1e-6)
    dense = kuramoto.Oscillators(sparse.omega, sparse.start, torch.ones(200, 200).bool().fill_diagonal_(False), {})
    mean_field = kuramoto.Oscillators(sparse.omega, sparse.start, None, {})
    assert torch.allclose(dense._speed(sparse.start, 1.0), mean_field._speed(sparse.start, 200 / 199), atol=1e-9)
    with pytest.raises(ShapeError, match="complete"):
        kuramoto.reservoir(data, 0)


def test_a_theta_cycle_holds_as_many_items_as_it_has_gamma_cycles() -> None:
    recall = {}
    for items in (3, 6, 9):
        code = phase_code.make(0, items=items)
        assert int(code.truth["capacity"]) == 6
        first = min(items, 6)
        read = code.read()[:, :first]
        recall[items] = float((read == code.truth["items"][:, :first]).float().mean())
    assert recall[3] > 0.95
    assert recall[6] > 0.95
    assert recall[9] < 0.85  # three places hold two items each
    swapped = code.truth["items"].flip(1)
    assert torch.allclose(
        code.truth["patterns"][swapped].sum(1), code.truth["patterns"][code.truth["items"]].sum(1), atol=1e-5
    )


def test_coupled_rhythms_are_coupled_and_free_ones_free() -> None:
    depth = {}
    for coupling in (0.0, 0.8):
        field, phase = phase_code.rhythm(0, coupling=coupling)
        wave = torch.fft.rfft(field)
        frequency = torch.fft.rfftfreq(field.shape[1], 1 / 480)
        band = torch.zeros(field.shape[1], dtype=torch.complex64)[None].repeat(16, 1)
        keep = (frequency > 28) & (frequency < 52)
        band[:, : len(frequency)][:, keep] = 2 * wave[:, keep]
        size = torch.fft.ifft(band).abs()
        peak, trough = (size[(phase - at).cos() > 0.7].mean() for at in (0.0, math.pi))
        depth[coupling] = float(peak / trough)
    assert depth[0.0] == pytest.approx(1, abs=0.1)
    assert depth[0.8] > 1.5


@pytest.mark.parametrize("kind", continual.KINDS)
def test_streams_change_what_they_say_and_keep_train_and_test_apart(kind: str) -> None:
    stream = continual.make(0, kind=kind)
    assert len(stream) == (10 if kind == "permute" else 5)
    first, second = stream.tasks[:2]
    if kind == "permute":
        order = stream.truth["permutations"][1]
        assert torch.equal(first.x.flatten(1)[:, order], second.x.flatten(1))
    elif kind == "class":
        assert (stream.truth["classes"].sum(0) == 1).all()
        assert not set(first.y.tolist()) & set(second.y.tolist())
    else:
        assert torch.allclose(first.x, 1 - second.x)
    for task in stream.tasks:
        assert torch.isin(task.y_test, task.y).all()
        assert task.x.shape[1:] == (1, 8, 8)
    perfect = stream.accuracy(lambda x: torch.nn.functional.one_hot(stream.tasks[0].y_test, 10).float(), upto=1)
    assert perfect.tolist() == [1.0]


def test_schedules_spend_one_budget_and_age_as_they_say() -> None:
    for schedule in continual.SCHEDULES:
        w = continual.weights(schedule, 6)
        assert float(w.sum()) == pytest.approx(0.0 if schedule == "none" else 1.0)
    power = continual.weights("power", 6, rate=2.0)
    assert float(power[-1] / power[-2]) == pytest.approx(4.0)
    assert torch.equal(continual.weights("recent", 3), torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))
    stream = continual.make(0, tasks=4)
    rows = continual.rehearsal(stream, 3, 128, seed=0)
    assert abs(len(rows) - 128) <= 2
    assert torch.bincount(rows[:, 0]).tolist() == [23, 35, 70]
    assert len(continual.rehearsal(stream, 0, 128, 0)) == 0


def test_revisits_follow_the_power_law_of_age() -> None:
    path = continual.revisits(6, 6000, 0, rate=0.7).tolist()
    assert path[:6] == list(range(6))
    last, shown, offered = {}, np.zeros(40), np.zeros(40)
    for t, task in enumerate(path):
        if t >= 6:
            ages = {k: t - v for k, v in last.items()}
            mass = {k: a**-0.7 for k, a in ages.items()}
            for k, a in ages.items():
                if a < 40:
                    offered[a] += mass[k] / sum(mass.values())
            if ages[task] < 40:
                shown[ages[task]] += 1
        last[task] = t
    often = offered > 100
    assert often.sum() >= 6
    assert np.abs(shown[often] / offered[often] - 1).max() < 0.25
    assert shown.sum() == pytest.approx(offered.sum(), rel=0.02)


def test_the_cell_space_is_complete_and_equal_cells_compute_the_same() -> None:
    space = nas_cells.make(0)
    assert len(space) == len(set(space.architectures)) == 125
    assert sorted(space.order.tolist()) == list(range(125))
    number = {cell: int(c) for cell, c in zip(space.architectures, space.truth["canonical"], strict=True)}
    twins = [("conv3", "zero", "skip"), ("skip", "zero", "conv3"), ("zero", "conv3", "pool")]
    assert len({number[c] for c in twins}) == 1
    assert number["conv3", "skip", "skip"] != number["conv3", "zero", "skip"]
    assert number["zero", "zero", "conv1"] == number["zero", "zero", "pool"] == number["pool", "zero", "zero"]
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    nets = [space.module(space.architectures.index(c)).eval() for c in twins]  # type: ignore[arg-type]
    shared = list(nets[0].state_dict().values())
    for net in nets[1:]:
        own = net.state_dict()
        assert [v.shape for v in own.values()] == [v.shape for v in shared]
        net.load_state_dict(dict(zip(own, shared, strict=True)))
    with torch.no_grad():
        out = [net(images) for net in nets]
    assert all(torch.allclose(o, out[0], atol=1e-5) for o in out)
    assert space.truth["flops"][0] == space.truth["flops"].min()
    assert {len(nas_cells.make(0, space=s)) for s in nas_cells.SPACES} == {125, 256, 64}
    with pytest.raises(InputError, match="Did you mean 'chain'"):
        nas_cells.make(0, space="chains")


def test_one_architecture_learns_and_an_empty_cell_does_not() -> None:
    space = nas_cells.make(0)
    good = nas_cells.evaluate(space, space.architectures.index(("conv3", "skip", "conv3")), 0, 2)
    empty = nas_cells.evaluate(space, 0, 0, 1)
    assert good[-1] > 0.8
    assert empty[-1] < 0.2


def test_a_small_table_is_trained_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERNEURON_CACHE", str(tmp_path))
    monkeypatch.setattr(
        nas_cells, "evaluate", lambda space, index, seed, epochs: torch.full((epochs,), index / 125 + seed / 1e4)
    )
    first = nas_cells.trained(0, seeds=2, epochs=2)
    monkeypatch.setattr(nas_cells, "evaluate", lambda *_: 1 / 0)
    again = nas_cells.trained(0, seeds=2, epochs=2)
    assert torch.equal(first.model.accuracy, again.model.accuracy)  # type: ignore[arg-type]
    assert first.model.accuracy.shape == (125, 2, 2)  # type: ignore[union-attr]
    assert first.card["passed"] and first.card["seed_agreement"] == pytest.approx(1.0)

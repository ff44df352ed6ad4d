"""Pavlovian attention: rules by hand and against NumPy, the laws of the memory, capacity of a real model's heads."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import interneuron as inn
from interneuron.bench import AssociativeMemory, capacity_curve, conditioning_suite, error_propagation, redundancy
from interneuron.bench.pavlov_attention import snr
from interneuron.core.errors import InputError, ShapeError
from interneuron.core.seeds import generator, numpy_rng


@pytest.mark.parametrize("rule", ["hebb", "decay", "delta"])
def test_rules_against_numpy(rule: str) -> None:
    rng = numpy_rng(3, rule)
    k, v = rng.normal(size=(5, 4)), rng.normal(size=(5, 3))
    state = np.zeros((3, 4))
    for key, value in zip(k, v, strict=True):
        if rule == "delta":
            state = state + 0.1 * np.outer(value - state @ key, key)
        else:
            state = (0.8 if rule == "decay" else 1.0) * state + np.outer(value, key)
    memory = AssociativeMemory(4, 3, rule=rule, eta=0.1, decay=0.8)  # type: ignore[arg-type]
    memory.write(torch.tensor(k[None, :2]), torch.tensor(v[None, :2]))
    memory.write(torch.tensor(k[None, 2:]), torch.tensor(v[None, 2:]))  # in two pieces: the state goes on
    np.testing.assert_allclose(memory.read(torch.eye(4, dtype=torch.float64)[None])[0].T, state, atol=1e-12)


def test_the_delta_rule_solves_least_squares_when_repeated() -> None:
    k, v = (torch.randn(1, 6, 8, generator=generator(i), dtype=torch.float64) for i in (0, 1))
    memory = AssociativeMemory(8, 8, rule="delta", eta=0.05)
    for _ in range(4000):
        memory.write(k, v)
    torch.testing.assert_close(memory.read(k), v, atol=1e-6, rtol=0)
    assert memory.state is not None
    wanted = torch.linalg.pinv(k[0]) @ v[0]  # from zero, gradient descent ends at the solution of least norm
    torch.testing.assert_close(memory.state[0], wanted.T, atol=1e-5, rtol=0)


def test_orthogonal_keys_are_recalled_exactly() -> None:
    keys, values = torch.eye(6)[None], torch.randn(1, 6, 3, generator=generator(0))
    for rule in ("hebb", "delta"):
        torch.testing.assert_close(AssociativeMemory(6, 3, rule).write(keys, values).read(keys), values)


def test_signal_to_noise_follows_the_law() -> None:
    for d, n in ((16, 8), (64, 128)):
        assert snr(d, n, n_draws=128) == pytest.approx(d / (n - 1), rel=0.1)


def test_capacity_grows_with_width_and_falls_with_correlation() -> None:
    held = [capacity_curve(d)["capacity"] for d in (16, 64)]
    assert 3 < held[1] / held[0] < 5.5
    assert held[1] == pytest.approx(1 + 64 * (1 / 0.7**2 - 1), rel=0.15)  # cos = 1 / sqrt(1 + (N - 1) / K)
    assert capacity_curve(64, correlation=0.3)["capacity"] < 0.5 * held[1]


def test_experiments_of_conditioning() -> None:
    delta, hebb, decay = (conditioning_suite(rule) for rule in ("delta", "hebb", "decay"))
    assert delta["acquisition"] == pytest.approx(1 - 0.7**30)  # each trial leaves 1 - eta of the error
    assert (hebb["acquisition"], hebb["extinction"], hebb["blocking"]) == (30.0, 1.0, 1.0)
    assert delta["extinction"] == pytest.approx(0.7**30, rel=1e-3)
    assert decay["extinction"] == pytest.approx(0.9**30, rel=1e-3)
    assert abs(delta["blocking"]) < 1e-3
    assert delta["overshadowing"] == pytest.approx(0.5, abs=1e-3)
    assert delta["discrimination"] > 0.9


def test_errors_average_as_the_formula_says() -> None:
    assert redundancy(0.2, 8, 0.3) == pytest.approx(0.2 * math.sqrt(0.7 / 8 + 0.3), rel=0.03)
    assert error_propagation(0.1, 3) == pytest.approx(0.9**3)
    assert error_propagation(0.1, 3, n_heads=4) == pytest.approx(0.95**3)
    assert error_propagation(0.1, 3, n_heads=4, rho=1.0) == pytest.approx(0.9**3)


def test_heads_of_a_real_model() -> None:
    from interneuron.bench import head_capacity

    model = inn.load("lm")
    text = "the lamp was in the garden and mia looked at the lamp . " * 4
    report = head_capacity(model, text)
    heads = report.tables["heads"]
    assert len(heads) == 6 * 5
    assert all(1 <= row["d_eff"] <= 32 and 1 <= row["capacity"] <= row["n_tokens"] for row in heads)
    with torch.no_grad():
        acts = model.run(text, read=["layers.2.attn.k"]).acts["layers.2.attn.k"][0, :, 1].double()
    unit = acts / acts.norm(dim=-1, keepdim=True)
    weights = np.linalg.eigvalsh(unit.T @ unit)
    assert heads[11]["d_eff"] == pytest.approx(weights.sum() ** 2 / (weights**2).sum(), rel=1e-6)


@pytest.mark.usefixtures("unchecked")
def test_wrong_uses_teach() -> None:
    with pytest.raises(InputError, match="rule='oja', expected one of hebb, decay, delta"):
        AssociativeMemory(4, 4, "oja")  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"keys \[1, 2, 4\] and values \[1, 3, 4\]"):
        AssociativeMemory(4, 4).write(torch.zeros(1, 2, 4), torch.zeros(1, 3, 4))
    with pytest.raises(InputError, match="criterion='best'"):
        capacity_curve(8, criterion="best")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="rho=2"):
        error_propagation(0.1, 1, 1, 2.0)

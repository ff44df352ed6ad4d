"""Self-normalising networks: the moment map against quadrature and simulation, constants, initial weights, depth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from interneuron.claims.layers import selu as selu_claim
from interneuron.core.errors import InputError
from interneuron.core.seeds import generator
from interneuron.layers import SNN, moment_profile, selu_constants, selu_jacobian, selu_moment_map
from interneuron.layers.selu import ALPHA, LAMBDA


def quadrature(m: float, s: float) -> tuple[float, float]:
    """Mean and variance of selu(N(m, s^2)) by adaptive integration on both sides of the kink."""
    from scipy.integrate import quad
    from scipy.stats import norm

    def selu(z: float) -> float:
        return LAMBDA * (z if z > 0 else ALPHA * np.expm1(z))

    def moment(power: int) -> float:
        sides = ((m - 12 * s, 0.0), (0.0, m + 12 * s))
        return sum(quad(lambda z: selu(z) ** power * norm.pdf(z, m, s), *side)[0] for side in sides)

    return moment(1), moment(2) - moment(1) ** 2


@pytest.mark.parametrize(
    ("mu", "nu", "omega", "tau"), [(0.0, 1.0, 0.0, 1.0), (0.1, 0.8, -0.1, 1.1), (0.7, 2.5, 0.4, 0.6), (-2.0, 0.3, 1, 1)]
)
def test_moment_map_against_quadrature(mu: float, nu: float, omega: float, tau: float) -> None:
    mean, var = selu_moment_map(mu, nu, omega, tau)
    assert (float(mean), float(var)) == pytest.approx(quadrature(mu * omega, (nu * tau) ** 0.5), abs=1e-8)


def test_the_fixed_point_and_that_it_attracts() -> None:
    mean, var = selu_moment_map(0.0, 1.0)
    assert abs(float(mean)) < 1e-6 and abs(float(var) - 1) < 1e-6
    assert float(torch.linalg.matrix_norm(selu_jacobian(0.0, 1.0), 2)) < 1
    state = (torch.tensor(0.5, dtype=torch.float64), torch.tensor(3.0, dtype=torch.float64))
    for _ in range(60):
        state = selu_moment_map(*state)
    assert (float(state[0]), float(state[1])) == pytest.approx((0.0, 1.0), abs=1e-4)


def test_jacobian_against_differences() -> None:
    step = 1e-6
    columns = []
    for a, b in ((step, 0.0), (0.0, step)):
        up, down = selu_moment_map(0.05 + a, 1.2 + b, 0.1), selu_moment_map(0.05 - a, 1.2 - b, 0.1)
        columns.append(torch.stack([(u - d) / (2 * step) for u, d in zip(up, down, strict=True)]))
    torch.testing.assert_close(selu_jacobian(0.05, 1.2, 0.1), torch.stack(columns, 1), atol=1e-7, rtol=0)


def test_constants_are_the_known_ones_and_solve_their_equations() -> None:
    assert selu_constants() == pytest.approx((ALPHA, LAMBDA), abs=1e-12)
    alpha, scale = selu_constants(2.0)
    z = torch.randn(2_000_000, generator=generator(0), dtype=torch.float64) * 2.0**0.5
    y = scale * torch.where(z > 0, z, alpha * torch.expm1(z))
    assert (float(y.mean()), float(y.var())) == pytest.approx((0.0, 2.0), abs=0.01)


def test_huge_and_tiny_variances_stay_finite() -> None:
    mean, var = selu_moment_map(torch.zeros(3), torch.tensor([1e-12, 0.0, 1e6]))
    assert torch.isfinite(mean).all() and torch.isfinite(var).all()
    assert float(var[2]) < 1e6  # theorem 2: large variances shrink


def test_a_deep_network_keeps_its_variance_and_relu_of_the_same_weights_loses_it() -> None:
    x = torch.randn(512, 64, generator=generator(1))
    net = SNN(64, 10, width=256, depth=33)
    profile = moment_profile(net, x)
    assert len(profile.tables["layers"]) == 32
    assert 0.7 < profile["last variance"] < 1.4 and abs(profile["last mean"]) < 0.2
    dead = nn.Sequential(*(nn.ReLU() if isinstance(m, nn.SELU) else m for m in net))
    assert moment_profile(dead, x)["last variance"] < 0.01


def test_initial_weights_and_seed() -> None:
    first, again, other = (SNN(64, 10, width=128, depth=3, seed=s) for s in (0, 0, 1))
    weight = first[2].weight
    assert float(weight.detach().var()) == pytest.approx(1 / 128, rel=0.05)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(weight, other[2].weight)
    assert sum(isinstance(m, nn.AlphaDropout) for m in SNN(4, 2, width=4, depth=4, dropout=0.1)) == 3


def test_wrong_uses_teach() -> None:
    with pytest.raises(InputError, match="depth=0"):
        SNN(4, 2, depth=0)
    with pytest.raises(InputError, match=r"fixed_var=-1"):
        selu_constants(-1.0)
    with pytest.raises(InputError, match="negative"):
        selu_moment_map(0.0, -1.0)
    with pytest.raises(InputError, match="Linear holds none of SELU"):
        moment_profile(nn.Linear(2, 2), torch.zeros(1, 2))


@pytest.mark.parametrize(
    ("kind", "norm"), [("selu", None), ("relu", None), ("batch norm", nn.BatchNorm1d), ("layer norm", nn.LayerNorm)]
)
def test_the_claim_trains_side_by_side_what_modules_train_alone(kind: str, norm: type[nn.Module] | None) -> None:
    d_in, d_out, depth, rates = 5, 3, 4, torch.tensor([0.05, 0.2])
    x, y = torch.randn(32, d_in, generator=generator(0)), torch.arange(32) % d_out
    arms = selu_claim.Arms(kind, d_in, d_out, depth, len(rates), seed=1)
    layers: list[nn.Module] = []
    for i, weight in enumerate(selu_claim._first_weights(kind, d_in, d_out, depth, seed=1)):
        linear = nn.Linear(*weight.shape)
        with torch.no_grad():
            linear.weight.copy_(weight.T)
            linear.bias.zero_()
        act = [*([norm(selu_claim.WIDTH)] if norm else []), nn.SELU() if kind == "selu" else nn.ReLU()]
        layers += [linear, *(act if i < depth - 1 else [])]
    alone = nn.Sequential(*layers)
    sgd = torch.optim.SGD(alone.parameters(), lr=float(rates[1]))
    for _ in range(3):
        sgd.zero_grad()
        nn.functional.cross_entropy(alone.train()(x), y).backward()
        sgd.step()
        loss = torch.stack([nn.functional.cross_entropy(logits, y) for logits in arms(x, train=True)]).sum()
        selu_claim._step(arms.weights, torch.autograd.grad(loss, list(arms.weights.values())), rates)
    arms.keep(torch.tensor([False, True]))
    torch.testing.assert_close(arms(x)[0], alone.eval()(x), atol=1e-4, rtol=1e-4)

"""Error split: NumPy's least squares, errors that are wholly linear or wholly not, and pursuit by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interneuron.core.errors import InputError, ShapeError
from interneuron.core.seeds import generator
from interneuron.decompose.dark_matter import error_split, gradient_pursuit, norm_predictability


def rows(n: int = 400, d: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=generator(seed)).double()


def test_against_numpy() -> None:
    x = rows()
    x_hat = 0.7 * x.relu() + 0.1 * x.roll(1, 1)
    split = error_split(x, x_hat, seed=3)
    test = split.test.numpy()
    fit = np.setdiff1d(np.arange(len(x)), test)
    assert len(test) == len(fit) == 200
    e = (x - x_hat).numpy()
    w = np.linalg.lstsq(x.numpy()[fit], e[fit], rcond=None)[0]
    np.testing.assert_allclose(split.weight.numpy(), w, atol=1e-10)
    left = ((e[test] - x.numpy()[test] @ w) ** 2).sum()
    assert split.r2 == pytest.approx(1 - left / ((e[test] - e[test].mean(0)) ** 2).sum(), abs=1e-10)
    variance = ((x.numpy()[test] - x.numpy()[test].mean(0)) ** 2).sum()
    assert split.fvu_nonlinear == pytest.approx(left / variance, abs=1e-10)
    assert split.fvu_linear + split.fvu_nonlinear == pytest.approx((e[test] ** 2).sum() / variance, abs=1e-10)
    assert torch.allclose(split.linear + split.nonlinear, x - x_hat)


def test_a_linear_error_is_linear_and_noise_is_not() -> None:
    x = rows(2000)
    assert error_split(x, 0.5 * x).r2 == pytest.approx(1.0, abs=1e-9)
    noise = rows(2000, seed=1)
    assert abs(error_split(x, x - noise).r2) < 0.05
    half = error_split(x, x - noise - x)
    assert half.fvu_linear == pytest.approx(1.0, abs=0.15)


def test_the_size_of_an_error_can_be_predicted_when_its_direction_cannot() -> None:
    x = rows(4000, 3)
    sign = torch.sign(rows(4000, 1, seed=2))
    v = sign * (3 + x[:, :1]).clamp_min(0).sqrt().expand(-1, 3)
    assert norm_predictability(x, v) > 0.95
    assert error_split(x, x - v).r2 < 0.05


def test_pursuit_finds_a_sparse_code() -> None:
    decoder = torch.eye(5)[:4]
    x = torch.tensor([[3.0, 0.0, 2.0, 0.0, 0.0], [0.0, -1.0, 0.0, 0.5, 0.0]])
    codes = gradient_pursuit(x, decoder, 2)
    assert torch.allclose(codes, torch.tensor([[3.0, 0.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.5]]))
    rng = generator(0)
    rough = torch.nn.functional.normalize(torch.randn(30, 16, generator=rng), dim=1)
    truth = (torch.rand(200, 30, generator=rng) < 0.07) * 1.0
    y = truth @ rough
    errors = [float((y - gradient_pursuit(y, rough, k) @ rough).norm() / y.norm()) for k in (1, 3, 6)]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.2, errors


def test_errors_teach() -> None:
    with pytest.raises(ShapeError, match="expected both"):
        error_split(rows(8), rows(8, 5))
    with pytest.raises(InputError, match="at least 4"):
        error_split(rows(3), rows(3))
    with pytest.raises(InputError, match="k=0"):
        gradient_pursuit(rows(4).float(), torch.eye(6), 0)

"""Ridge and the encoding score against scikit-learn and NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interneuron.core.errors import InputError, ShapeError
from interneuron.parts.ridge import encoding_score, ridge


@pytest.mark.parametrize(("n", "d"), [(40, 6), (20, 50)])
def test_the_map_is_that_of_scikit_learn(n: int, d: int) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(n)
    x, y = rng.standard_normal((n, d)) + 1, rng.standard_normal((n, 3)) - 2
    found = ridge(torch.tensor(x), torch.tensor(y), [3.0])
    reference = linear_model.Ridge(alpha=3.0).fit(x, y)
    np.testing.assert_allclose(found.weight.numpy().T, reference.coef_, atol=1e-9)
    np.testing.assert_allclose(found.predict(torch.tensor(x)).numpy(), reference.predict(x), atol=1e-9)


def test_the_strength_fits_the_noise() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((60, 40)), rng.standard_normal((40, 2))
    exact = ridge(torch.tensor(x), torch.tensor(x @ w))
    noisy = ridge(torch.tensor(x), torch.tensor(x @ w + 20 * rng.standard_normal((60, 2))))
    assert exact.strength < noisy.strength


def test_the_score_is_pearson_over_the_ceiling() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((30, 4)), rng.standard_normal((30, 4))
    wanted = [np.corrcoef(a[:, v], b[:, v])[0, 1] for v in range(4)]
    got = encoding_score(torch.tensor(a), torch.tensor(b))
    np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-12)
    np.testing.assert_allclose(encoding_score(torch.tensor(3 * a + 1), torch.tensor(b)).numpy(), wanted, rtol=1e-12)
    ceiling = torch.tensor([0.5, 1.0, 0.8, 0.9])
    np.testing.assert_allclose(
        encoding_score(torch.tensor(a), torch.tensor(b), ceiling).numpy(), wanted / ceiling.numpy(), rtol=1e-6
    )
    assert encoding_score(torch.zeros(5, 1), torch.rand(5, 1)).tolist() == [0.0]


@pytest.mark.usefixtures("unchecked")
def test_mistakes_are_taught() -> None:
    with pytest.raises(ShapeError, match="one row a sample"):
        ridge(torch.ones(6, 2), torch.ones(5, 2))
    with pytest.raises(InputError, match="at least 5"):
        ridge(torch.ones(3, 2), torch.ones(3, 2))
    with pytest.raises(InputError, match="NaN"):
        ridge(torch.full((6, 2), torch.nan), torch.ones(6, 2))
    with pytest.raises(ShapeError, match="Align the rows"):
        encoding_score(torch.ones(6, 2), torch.ones(6, 3))
    with pytest.raises(ShapeError, match="positive numbers"):
        encoding_score(torch.ones(6, 2), torch.ones(6, 2), torch.zeros(2))

"""Gaussian anomaly detection: distances against NumPy and scikit-learn, what they do not depend on, and thresholds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from sklearn.covariance import LedoitWolf
from torch import Tensor, nn

import interneuron as inn
from interneuron.core.errors import FingerprintMismatch, InputError, ShapeError
from interneuron.core.seeds import generator
from interneuron.measure import GaussianAD
from interneuron.measure.gaussian_ad import ledoit_wolf, mean_activations


def rows(n: int = 60, d: int = 6, seed: int = 0) -> Tensor:
    """Correlated rows whose columns have very different scales."""
    rng = generator(seed)
    mix = torch.randn(d, d, generator=generator(99), dtype=torch.float64)
    return torch.randn(n, d, generator=rng, dtype=torch.float64) * torch.logspace(1, -2, d).double() @ mix + 3.0


@pytest.mark.parametrize(("n", "d"), [(60, 6), (10, 30)])
def test_shrinkage_and_distances_are_those_of_scikit_learn(n: int, d: int) -> None:
    x, new = rows(n, d), rows(5, d, seed=1)
    expected = LedoitWolf().fit(np.asarray(x))
    assert ledoit_wolf(x - x.mean(0)) == pytest.approx(expected.shrinkage_, rel=1e-9)
    scores = GaussianAD().fit_rows({"a": x}).score_rows({"a": new})[:, 0]
    np.testing.assert_allclose(scores, np.asarray(expected.mahalanobis(np.asarray(new))) ** 0.5, rtol=1e-7)


def test_without_shrinkage_distances_do_not_change_under_a_linear_map() -> None:
    x, new = rows(), rows(5, seed=1)
    a = torch.randn(6, 6, generator=generator(7), dtype=torch.float64)
    plain, mapped = (
        GaussianAD(shrinkage=0.0).fit_rows({"a": x @ m}).score_rows({"a": new @ m}) for m in (torch.eye(6).double(), a)
    )
    torch.testing.assert_close(plain, mapped, rtol=1e-6, atol=0)
    shrunk = (GaussianAD().fit_rows({"a": x @ m}).score_rows({"a": new @ m}) for m in (torch.eye(6).double(), a))
    assert not torch.allclose(*shrunk, rtol=1e-3)


def test_leading_components_and_the_others_share_the_squared_distance() -> None:
    x, new = rows(), rows(5, seed=1)
    parts = {
        kind: GaussianAD(reduce=kind, shrinkage=0.0).fit_rows({"a": x})  # type: ignore[arg-type]
        for kind in ("none", "pca", "npca")
    }
    squares = {kind: found.score_rows({"a": new}).square() for kind, found in parts.items()}
    torch.testing.assert_close(squares["pca"] + squares["npca"], squares["none"])
    values = np.linalg.eigvalsh(np.cov(x.numpy().T, bias=True))[::-1]
    k = int((np.cumsum(values) / values.sum() < 0.95).sum()) + 1  # the fewest that explain 95 %
    assert 0 < k < 6
    assert [len(parts[kind].variance["a"]) for kind in ("pca", "npca")] == [k, 6 - k]
    np.testing.assert_allclose(parts["npca"].variance["a"], values[k:], rtol=1e-6)


def test_simple_variants_by_hand() -> None:
    x = torch.tensor([[0.0, 1.0], [2.0, 5.0]]).repeat(5, 1)  # mean (1, 3), variances (1, 4)
    new = {"a": torch.tensor([[4.0, 11.0]])}
    assert GaussianAD(reduce="l2").fit_rows({"a": x}).score_rows(new).item() == pytest.approx((9 + 64) ** 0.5)
    sed = GaussianAD(reduce="sed", shrinkage=0.0).fit_rows({"a": x}).score_rows(new).item()
    assert sed == pytest.approx((9 + 16) ** 0.5)


def test_a_defect_in_a_direction_of_small_variance_is_seen_by_npca_only() -> None:
    x, new = rows(200), rows(50, seed=1)
    direction = torch.linalg.eigh(torch.cov(x.T)).eigenvectors[:, 0]
    spread = torch.linalg.eigvalsh(torch.cov(x.T))[0].sqrt()
    odd = new + 20 * spread * direction
    fits = {kind: GaussianAD(reduce=kind, shrinkage=0.0).fit_rows({"a": x}) for kind in ("pca", "npca")}  # type: ignore[arg-type]
    shift = {
        kind: float(fit.score_rows({"a": odd}).mean() - fit.score_rows({"a": new}).mean()) for kind, fit in fits.items()
    }
    assert shift["npca"] > 1.0
    assert abs(shift["pca"]) < 0.1


def test_thresholds_hold_on_fresh_normal_rows() -> None:
    x, fresh = rows(400), rows(4000, seed=1)
    one = GaussianAD(shrinkage=0.0).fit_rows({"a": x})
    assert one.threshold(0.05, "chi2") == pytest.approx(chi2.ppf(0.95, 6) ** 0.5)
    assert one.false_alarms(0.05)["a"] == pytest.approx(0.05, abs=0.03)
    two = GaussianAD().fit_rows({"a": x[:, :3], "b": x[:, 3:]})
    for found, given in ((one, {"a": fresh}), (two, {"a": fresh[:, :3], "b": fresh[:, 3:]})):
        above = found.score_rows(given).sum(1) > found.threshold(0.1)
        assert float(above.double().mean()) == pytest.approx(0.1, abs=0.035)


def test_held_out_distances_come_from_gaussians_fitted_without_the_row() -> None:
    x = rows(20)
    found = GaussianAD(folds=4).fit_rows({"a": x})
    changed = x.clone()
    changed[3] += 1000.0
    other = GaussianAD(folds=4).fit_rows({"a": changed})
    same = torch.isclose(found.held_out, other.held_out, rtol=1e-9)[:, 0]
    assert int(same.sum()) == 4  # of the five rows of its fold all but itself
    assert found.score_rows({"a": x}).mean() < found.held_out.mean()


def test_a_network_is_read_at_its_blocks() -> None:
    conv = nn.utils.skip_init(nn.Conv2d, 3, 4, 3)
    with torch.no_grad():
        conv.weight.copy_(torch.randn(4, 3, 3, 3, generator=generator(0)))
        conv.bias.zero_()
    net = nn.Sequential(conv)
    model, images = inn.wrap(net.eval()), torch.rand(30, 3, 8, 8, generator=generator(1))
    read = mean_activations(model, images, ["0:out"], batch_size=7)["0:out"]
    torch.testing.assert_close(read, net(images).mean((2, 3)).double().detach(), rtol=1e-5, atol=1e-6)
    found = GaussianAD(sites="0:out").fit(model, images)
    torch.testing.assert_close(found.score(model, images), found.score_rows({"0:out": read})[:, 0])
    report = found.explain(model, images)
    assert len(report.tables["components"]) == 4
    with pytest.raises(FingerprintMismatch):
        found.score(inn.wrap(nn.Sequential(nn.Conv2d(3, 5, 3)).eval()), images)


def test_padding_of_texts_does_not_count() -> None:
    model, sites = inn.load("lm"), ["layers.1.resid_post"]
    texts = ["mia looked .", "mia looked at the lamp in the garden and it was lovely ."]
    both = mean_activations(model, texts, sites)[sites[0]]
    alone = mean_activations(model, texts[:1], sites)[sites[0]]
    torch.testing.assert_close(both[:1], alone, rtol=1e-4, atol=1e-5)


def test_wrong_uses_teach() -> None:
    x = rows()
    found = GaussianAD().fit_rows({"a": x, "b": x})
    with pytest.raises(InputError, match="chi2 holds for a full Gaussian at one site"):
        found.threshold(method="chi2")
    with pytest.raises(InputError, match="needs more than 999 normal inputs"):
        found.threshold(0.001)
    with pytest.raises(ShapeError, match="rows of b"):
        found.score_rows({"a": x})
    with pytest.raises(InputError, match="has no inverse"):
        GaussianAD(shrinkage=0.0).fit_rows({"a": rows(10, 30)})
    with pytest.raises(InputError, match="expected at least 10 for 5 folds"):
        GaussianAD().fit_rows({"a": x[:9]})
    with pytest.raises(InputError, match="no component of a is left"):
        GaussianAD(reduce="npca").fit_rows({"a": x[:, :1]})
    with pytest.raises(InputError, match="expected 0 < var < 1"):
        GaussianAD(var=1.0)

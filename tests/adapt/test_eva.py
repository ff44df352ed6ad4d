"""Explained variance adaptation: directions against full SVDs, ranks by hand, a start that changes nothing."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import interneuron as inn
from interneuron.adapt import EVA, redistribute_ranks
from interneuron.artifacts import load_artifact
from interneuron.artifacts.low_rank_adapter import LowRankAdapter
from interneuron.core.errors import InputError, ShapeError, SiteNotFound
from interneuron.core.seeds import generator
from interneuron.model.model import Model
from interneuron.parts.activation_rows import token_rows
from interneuron.parts.adapter_training import train_adapter
from interneuron.parts.importance import losses
from interneuron.parts.incremental_svd import IncrementalSVD

TEXTS = [
    "mia looked at the lamp .",
    "she felt sad .",
    "the garden was lovely and the lamp was lovely .",
    "he felt happy .",
]
PATH = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def model() -> Model:
    return inn.load("lm")


def rows(n: int = 300, d: int = 24, seed: int = 0) -> Tensor:
    rng = generator(seed)
    scales = 0.8 ** torch.arange(d, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(d, d, generator=rng, dtype=torch.float64))[0]
    drift = torch.linspace(0, 2, n, dtype=torch.float64)[:, None]  # the mean moves from batch to batch
    return (torch.randn(n, d, generator=rng, dtype=torch.float64) * scales) @ turn + drift


def full(x: np.ndarray, center: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Singular values, right vectors and explained ratios of all rows at once."""
    x = x.astype(np.float64) - (x.mean(0, dtype=np.float64) if center else 0)
    _, s, v = np.linalg.svd(x, full_matrices=False)
    return s, v, s**2 / (x**2).sum()


@pytest.mark.parametrize("center", [True, False])
def test_without_truncation_it_is_the_full_svd(center: bool) -> None:
    x = rows()
    svd = IncrementalSVD(5, oversample=24, center=center)
    for batch in x.split([1, 7, 92, 200]):
        svd.update(batch)
    s, v, ratio = full(x.numpy(), center)
    np.testing.assert_allclose(svd.singular_values, s[:5], rtol=1e-10)
    np.testing.assert_allclose(np.abs((svd.components.numpy() * v[:5]).sum(1)), 1.0, atol=1e-10)
    np.testing.assert_allclose(svd.explained_variance_ratio, ratio[:5], rtol=1e-10)


def test_truncated_subspace_and_scikit_learn() -> None:
    decomposition = pytest.importorskip("sklearn.decomposition")
    x = rows()
    svd = IncrementalSVD(6, oversample=4)
    plain = IncrementalSVD(10, oversample=0)
    for batch in x.split(30):
        svd.update(batch)
        plain.update(batch)
    cosines = np.linalg.svd(svd.components.numpy() @ full(x.numpy())[1][:6].T)[1]
    assert cosines.min() > 0.999
    oracle = decomposition.IncrementalPCA(10, batch_size=30).fit(x.numpy())
    cosines = np.abs((plain.components.numpy() * oracle.components_).sum(1))
    np.testing.assert_allclose(cosines, 1.0, atol=1e-8)
    np.testing.assert_allclose(plain.explained_variance_ratio, oracle.explained_variance_ratio_, rtol=1e-8)


def test_ranks_by_hand() -> None:
    xi = [torch.tensor([0.9, 0.05, 0.01, 0.01]), torch.tensor([0.4, 0.3, 0.2, 0.06]), torch.tensor([0.02] * 4)]
    assert redistribute_ranks(xi, budget=6, rho=2.0) == [2, 4, 0]
    assert redistribute_ranks(xi, budget=6, rho=1.0) == [2, 2, 2]
    assert redistribute_ranks(xi, budget=3, rho=2.0) == [1, 2, 0]  # no layer above rho times the mean
    assert redistribute_ranks([torch.full((2,), 0.5)] * 2, budget=2, rho=2.0) == [2, 0]  # ties go to the earlier


def test_directions_are_those_of_all_activations(model: Model) -> None:
    """tau = 1 never stops early; every row of A is a right singular vector of all centred inputs of its layer."""
    adapter = EVA(rank=3, rho=1.0, tau=1.0, batch_size=1, oversample=200).fit(model, TEXTS)
    x = token_rows(model, TEXTS, f"{PATH}:in").numpy()
    _, v, ratio = full(x)
    np.testing.assert_allclose(np.abs((adapter.a[PATH].numpy() * v[:3]).sum(1)), 1.0, atol=1e-5)
    np.testing.assert_allclose(adapter.fitted["explained"][PATH], ratio[:3], rtol=1e-4)
    white = EVA(rank=3, rho=1.0, tau=1.0, oversample=200, whiten=True).fit(model, TEXTS, PATH)
    np.testing.assert_allclose((x @ white.a[PATH].numpy().T).std(0, ddof=1), 1.0, rtol=1e-3)


def test_layers_that_read_one_tensor_have_one_basis(model: Model) -> None:
    a = EVA(rank=2, rho=1.0).fit(model, TEXTS, "model.layers.2.*").a
    query, key, value, up = (a[f"model.layers.2.{n}"] for n in ("self_attn.q_proj", "self_attn.k_proj",
                                                               "self_attn.v_proj", "mlp.up_proj"))  # fmt: skip
    assert torch.equal(query, key) and torch.equal(query, value)
    assert not torch.equal(query, up)


def test_the_start_changes_no_bit_and_spends_the_budget(model: Model) -> None:
    adapter = EVA(rank=2).fit(model, TEXTS)
    assert sum(adapter.ranks.values()) == 2 * 42
    assert 4 >= max(adapter.ranks.values()) > 2
    with torch.no_grad():
        plain = model(TEXTS).logits
        with model.edit(adapter.edit()):
            assert torch.equal(model(TEXTS).logits, plain)


def test_the_edit_is_the_low_rank_sum(model: Model) -> None:
    """Under the edit the model is that with W + scale B A in place of W."""
    start = EVA(rank=2, rho=1.0, alpha=6.0).fit(model, TEXTS, PATH)
    assert start.scale == 3.0
    b = torch.randn(start.b[PATH].shape, generator=generator(3))
    adapter, other = start.replace(b={PATH: b}), inn.load("lm")
    with torch.no_grad():
        other.module.get_submodule(PATH).weight += 3.0 * b @ start.a[PATH]
        with model.edit(adapter.edit()):
            got = model(TEXTS).logits
        real = model.prepare(TEXTS)[1]["attention_mask"].bool()
        torch.testing.assert_close(got[real], other(TEXTS).logits[real], atol=1e-4, rtol=1e-4)


def test_training_lowers_the_loss_and_leaves_the_model(model: Model, tmp_path: Path) -> None:
    start = EVA(rank=2).fit(model, TEXTS, "*.down_proj")
    old = {name: x.clone() for name, x in model.module.state_dict().items()}
    trained = train_adapter(model, start, TEXTS, steps=4, lr=0.02, batch_size=4)
    again = train_adapter(model, start, TEXTS, steps=4, lr=0.02, batch_size=4)
    assert trained.same_bits(again)
    assert all(torch.equal(x, old[name]) for name, x in model.module.state_dict().items())
    assert all(p.grad is None for p in model.module.parameters())
    assert not any(b.any() for b in start.b.values())
    with torch.no_grad():
        before = losses(model, TEXTS).mean()
        with model.edit(trained.edit()):
            assert losses(model, TEXTS).mean() < before - 0.05
    assert load_artifact(trained.save(tmp_path / "adapter")).same_bits(trained)


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")
def test_components_agree_with_peft() -> None:
    from peft.utils.incremental_pca import IncrementalPCA  # pyrefly: ignore[missing-import]

    x = rows().float()
    oracle, svd = IncrementalPCA(n_components=6), IncrementalSVD(6, oversample=0)
    for batch in x.split(50):
        oracle.partial_fit(batch)
        svd.update(batch)
    assert (svd.components.float() * oracle.components_).sum(1).abs().min() > 0.99


def test_wrong_uses_teach(model: Model) -> None:
    with pytest.raises(InputError, match="rho >= 1"):
        EVA(rho=0.5)
    with pytest.raises(SiteNotFound, match="names no linear layer"):
        EVA().fit(model, TEXTS, "*.query")
    with pytest.raises(InputError, match="Give more or longer inputs"):
        EVA(rank=8).fit(model, ["mia looked ."])
    with pytest.raises(InputError, match="expected a list of at least one text"):
        EVA().fit(model, [])
    with pytest.raises(InputError, match="NaN"):
        IncrementalSVD(2).update(torch.full((3, 2), float("nan")))
    with pytest.raises(ShapeError, match=r"expected \[N 4\]"):
        IncrementalSVD(2).update(torch.ones(3, 4)).update(torch.ones(3, 5))
    with pytest.raises(ShapeError, match=r"expected \[r in\] and \[out r\]"):
        LowRankAdapter(a={"x": torch.ones(2, 3)}, b={"x": torch.ones(3, 4)})
    with pytest.raises(InputError, match="train_adapter: 0 inputs"):
        train_adapter(model, EVA(rank=1).fit(model, TEXTS, PATH), [])

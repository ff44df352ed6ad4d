"""Subspace patching: the exact illusion, equation 1 by hand, DAS with a known answer, the rank-one edit, errors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import interneuron as inn
from interneuron.circuit import DAS, SubspacePatch, illusion_test, rank_one_edit
from interneuron.core.errors import InputError, ShapeError, TrainingError
from interneuron.model.model import Model
from interneuron.organisms.toy import planted_circuit

BASE = torch.tensor([[1.0], [2.0], [-0.5]])


@pytest.fixture(scope="module")
def toy() -> Model:
    return inn.wrap(planted_circuit.illusion()[0])


@pytest.fixture(scope="module")
def model() -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=32, hidden_size=16, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, initializer_range=0.4,
        )  # fmt: skip
        return inn.wrap(LlamaForCausalLM(config).eval())


def answer(y: Tensor) -> Tensor:
    return y[:, 0]


def test_the_exact_illusion(toy: Model) -> None:
    truth = planted_circuit.illusion()[1]
    # Source inputs of the opposite sign: a full transfer turns y into -y, which is FLDD 2.
    false = SubspacePatch(basis=truth["false"][:, None], site="read:in", pos=None)
    report = illusion_test(toy, false, BASE, -BASE, answer)
    assert report["fldd"] == pytest.approx(2.0, abs=1e-5)
    assert report["fldd_row"] == pytest.approx(0.0, abs=1e-5)
    assert report["fldd_null"] == pytest.approx(0.0, abs=1e-5)
    assert report["verdict"] == "illusion"
    assert report["row spread on data"] == pytest.approx(0.0, abs=1e-6)
    assert report["row spread after patching"] > 0.5
    real = SubspacePatch(basis=truth["real"][:, None], site="read:in", pos=None)
    report = illusion_test(toy, real, BASE, -BASE, answer)
    assert report["fldd"] == report["fldd_row"] == pytest.approx(2.0, abs=1e-5)
    assert report["verdict"] == "faithful"
    null = SubspacePatch(basis=truth["null"][:, None], site="read:in", pos=None)
    assert illusion_test(toy, null, BASE, -BASE, answer)["verdict"] == "weak"


def test_das_steers_the_toy_as_far_as_any_direction_can(toy: Model) -> None:
    patch = DAS(steps=60, lr=0.1, pos=None, seed=1).fit(
        toy, "read:in", BASE, -BASE, lambda y: y[:, 0] * BASE[:, 0].sign()
    )
    # y changes by -2x(2 v2 + v3)(v1 + v3) with |v| = 1: the optimum lies beyond the real feature.
    v = patch.basis[:, 0].double()
    grid = torch.nn.functional.normalize(
        torch.randn(200_000, 3, generator=torch.Generator().manual_seed(0)).double(), dim=1
    )
    best = ((2 * grid[:, 1] + grid[:, 2]) * (grid[:, 0] + grid[:, 2])).max()
    assert float((2 * v[1] + v[2]) * (v[0] + v[2])) == pytest.approx(float(best), rel=1e-2)


@pytest.mark.parametrize("pos", [None, -1, 1])
def test_patch_by_hand(model: Model, pos: int | None) -> None:
    g = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(16, 3, generator=g)).Q
    rows, other = torch.randint(0, 32, (2, 4, 5), generator=g)
    site = "layers.0.resid_post"
    patch = SubspacePatch(basis=basis, site=site, pos=pos)
    with torch.no_grad():
        h, source = (model.run(x, read=[site]).acts[site] for x in (rows, other))
        with model.edit(patch.edit(source if pos is None else source[:, pos])):
            got = model.run(rows, read=[site]).acts[site]
    wanted = h + (source - h) @ basis @ basis.T
    if pos is not None:
        wanted = torch.where(torch.arange(5)[:, None] == pos % 5, wanted, h)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


def test_das_lowers_its_metric_and_leaves_no_gradient(model: Model) -> None:
    g = torch.Generator().manual_seed(0)
    base, source = torch.randint(0, 32, (2, 8, 5), generator=g)
    patch = DAS(rank=2, steps=30, lr=0.05).fit(model, "layers.0.mlp.hidden", base, source, lambda z: z[:, -1, 3])
    assert patch.fitted["last"] < patch.fitted["first"] - 0.01
    assert all(p.grad is None and p.requires_grad for p in model.module.parameters())
    report = illusion_test(model, patch, base, source, lambda z: z[:, -1, 3])
    assert abs(report["fldd_null"]) < 1e-4  # what lies in the kernel of the output weights reaches nothing
    assert report.plot()["names"][0] == "subspace"


def test_a_patch_is_a_rank_one_edit_of_the_output_weights(model: Model) -> None:
    g = torch.Generator().manual_seed(0)
    layer = model.module.model.layers[0].mlp.down_proj
    v = torch.nn.functional.normalize(torch.randn(40, generator=g), dim=0)
    h, source = torch.randn(2, 40, generator=g)
    patched = h + v * ((source - h) @ v)
    change = rank_one_edit(layer.weight.detach(), v, h, source)
    torch.testing.assert_close(
        (layer.weight.detach() + change) @ h, layer.weight.detach() @ patched, atol=1e-5, rtol=1e-4
    )
    assert int(torch.linalg.matrix_rank(change)) == 1


@pytest.mark.usefixtures("unchecked")
def test_errors_teach(model: Model) -> None:
    with pytest.raises(ShapeError, match="not orthonormal"):
        SubspacePatch(basis=torch.ones(4, 1), site="s")
    with pytest.raises(ShapeError, match="Give one site"):
        SubspacePatch(basis=torch.ones(4), site="s")
    ids = torch.zeros(2, 4, dtype=torch.long)
    with pytest.raises(ShapeError, match="Give aligned pairs"):
        DAS().fit(model, "layers.0.mlp.hidden", ids, ids[:, :3], lambda z: z[:, -1, 0])
    with pytest.raises(TrainingError, match="the metric became nan"):
        DAS(steps=1).fit(model, "layers.0.mlp.hidden", ids, ids, lambda z: z[:, -1, 0] * float("nan"))
    patch = SubspacePatch(basis=torch.eye(16)[:, :1], site="layers.0.resid_post")
    with pytest.raises(InputError, match="not the input of a linear layer"):
        illusion_test(model, patch, ids, ids, lambda z: z[:, -1, 0])
    with pytest.raises(ShapeError, match="expected width 16"):
        patch.coordinates(torch.ones(2, 3))

"""Mesa: copies against a NumPy re-derivation, unbiased rounding, running ranges by hand, what stays exact."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import interneuron as inn
from interneuron.core.errors import InputError, ShapeError
from interneuron.core.seeds import generator
from interneuron.memory import Mesa
from interneuron.memory import mesa as mesa_module
from interneuron.model.model import Model
from interneuron.parts import quantisers
from interneuron.parts.quantisers import Dither, Quantised, dequantise_groups, group_ranges, quantise_groups
from interneuron.parts.saved_tensors import SavedBytes
from interneuron.testing.state import State, snapshot

IDS = torch.randint(5, 1000, (2, 32), generator=generator(1))


@pytest.fixture(scope="module")
def model() -> Model:
    return inn.load("lm")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed))


def reference(x: np.ndarray, bits: int, alpha: np.ndarray, beta: np.ndarray, u: float = 0.5) -> np.ndarray:
    """Equations 2 and 3 in float64."""
    a, b, top = alpha[:, None], beta[:, None], 2**bits - 1
    return np.clip(np.floor((x - b) * top / a + u), 0, top) * a / top + b


def gradients(model: Model, mesa: Mesa | None = None) -> Tensor:
    def loss() -> Tensor:
        logits = model.module(IDS).logits
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())

    if mesa is None:
        value = loss()
    else:
        with mesa:
            value = loss()
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(model.module.parameters()))])


def changes(before: State, model: Model) -> list[str]:
    """What is left behind; the run-time type checks of the tests draw from Python's own generator."""
    return [line for line in before.differences(snapshot(model.module)) if "python rng" not in line]


@pytest.fixture(params=["kernel", "chunks"])
def route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways the copies are computed."""
    if request.param == "chunks":
        monkeypatch.setattr(quantisers, "_kernels", {}.get)
    else:
        pytest.importorskip("numba")
    return request.param


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("shape", [(3, 5, 7), (1, 2, 9001), (40, 4, 300), (1, 1, 1)])
def test_copies_are_the_equations(route: str, bits: int, shape: tuple[int, int, int]) -> None:
    x = draw(*shape) * 3 + 1
    copy = quantise_groups(x, bits=bits)
    alpha, beta = (r.double().numpy() for r in group_ranges(x))
    flat = x.double().numpy()
    np.testing.assert_allclose(alpha, flat.max((0, 2)) - flat.min((0, 2)), rtol=1e-6)
    wanted = reference(flat, bits, np.maximum(alpha, 1e-30), beta)
    step = alpha[:, None] / (2**bits - 1)
    off = np.abs(dequantise_groups(copy).double().numpy() - wanted)
    assert (off <= step * 1.001 + 1e-6).all() and (off > 1e-5).mean() <= 1e-3  # a tie may fall either way
    assert copy.nbytes == -(-x.numel() * bits // 8) + 8 * shape[1]


def test_numbers_outside_the_range_are_clipped(route: str) -> None:
    copy = quantise_groups(torch.tensor([[[-9.0, 0.0, 1.0, 9.0]]]), torch.tensor([2.0]), torch.tensor([-1.0]))
    torch.testing.assert_close(dequantise_groups(copy), torch.tensor([[[-1.0, 0.0, 1.0, 1.0]]]), atol=5e-3, rtol=0)


def test_stochastic_rounding_has_the_mean_x(route: str) -> None:
    x, dither = draw(1, 2, 200), Dither(3)
    trips = torch.stack([dequantise_groups(quantise_groups(x, bits=4, dither=dither)) for _ in range(400)]).double()
    error = trips.std(0) / 400**0.5
    assert float(((trips.mean(0) - x).abs() > 3 * error + 1e-6).double().mean()) <= 0.02
    nearest = dequantise_groups(quantise_groups(x, bits=4)).double()
    assert float(((nearest - x).abs() > 3 * error + 1e-6).double().mean()) > 0.5  # what rounding to the nearest is not


def test_ranges_are_the_ends_of_every_group(route: str) -> None:
    x = torch.cat([draw(3, 2, 70) * 1e3 ** draw(3, 2, 70), draw(3, 2, 70).abs(), -draw(3, 2, 70).abs()], dim=1)
    x[0, 0, 0], x[1, 2, 3], x[2, 4, 69] = -3e37, 0.0, -0.0
    alpha, beta = group_ranges(x)
    torch.testing.assert_close(beta, x.amin((0, 2)), rtol=0, atol=0)
    torch.testing.assert_close(alpha, x.amax((0, 2)) - x.amin((0, 2)), rtol=0, atol=0)


@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.parametrize("dithered", [False, True])
def test_own_ranges_are_those_one_would_give(route: str, bits: int, dithered: bool) -> None:
    """Blocks find their range and their levels in one go."""
    x = draw(1, 300, 100) * 1e3 ** draw(1, 300, 1)
    own, given = (Dither(3) if dithered else None for _ in range(2))
    alpha, beta = group_ranges(x)
    a, b = quantise_groups(x, bits=bits, dither=own), quantise_groups(x, alpha, beta, bits, given)
    torch.testing.assert_close((a.alpha, a.beta), (b.alpha, b.beta), rtol=0, atol=0)
    step = (alpha / (2**bits - 1))[:, None]
    off = (dequantise_groups(a) - dequantise_groups(b)).abs() / step
    assert float(off.max()) < 1.01 and float((off > 0.01).double().mean()) < 1e-3  # the scale is rounded once more


def test_numbers_are_made_once_for_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Quantised] = []

    def count(copy: Quantised, dtype: torch.dtype) -> Tensor:
        made.append(copy)
        return dequantise_groups(copy, dtype)

    monkeypatch.setattr(mesa_module, "dequantise_groups", count)
    heads = nn.ModuleList(nn.Linear(64, 64) for _ in range(3))
    x = draw(64, 64)
    with Mesa(heads) as mesa:
        loss = torch.stack([head(x).sum() for head in heads]).sum()
    first = torch.autograd.grad(loss, list(heads.parameters()), retain_graph=True)
    latest = mesa._latest()
    assert len(made) == 1
    assert latest is not None and latest.real is None  # the graph is kept, its numbers are not
    again = torch.autograd.grad(loss, list(heads.parameters()))
    assert len(made) == 2 and all(map(torch.equal, first, again))


def test_other_types_keep_their_type(route: str) -> None:
    x = draw(2, 3, 50)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        back = dequantise_groups(quantise_groups(x.to(dtype)), dtype)
        assert back.dtype == dtype
        torch.testing.assert_close(back.float(), x, atol=0.06, rtol=0)


def test_the_forward_pass_is_exact_and_the_gradient_close(model: Model) -> None:
    before = snapshot(model.module)
    exact = gradients(model)
    eight, four = (gradients(model, Mesa(model, bits=bits)) for bits in (8, 4))
    near = gradients(model, Mesa(model, groups="blocks", rounding="nearest"))
    assert not changes(before, model)
    with torch.no_grad():
        plain = model.module(IDS).logits
    with Mesa(model):
        assert torch.equal(model.module(IDS).logits, plain)
    error = [float((g - exact).norm() / exact.norm()) for g in (near, eight, four)]
    assert 0 < error[0] < 0.03 and error[0] < error[1] < 0.04 and error[1] < error[2]
    again = gradients(model, Mesa(model))
    assert torch.equal(again, eight) and not torch.equal(again, gradients(model, Mesa(model, seed=1)))


def test_bytes_agree_with_the_meter(model: Model) -> None:
    with SavedBytes(model) as meter:
        value = model.module(IDS).logits.sum()
    mesa = Mesa(model)
    with mesa:
        other = model.module(IDS).logits.sum()
    assert meter.live == meter.peak and 0.95 * meter.live <= mesa.plain.live <= meter.live
    assert mesa.saved.live <= 0.3 * mesa.plain.live
    del value, other
    assert meter.live == mesa.saved.live == mesa.plain.live == 0
    report = mesa.report()
    assert report["kept bytes"] == mesa.saved.peak and report.plot()["kind"] == "bars"


def test_a_tensor_saved_twice_is_copied_once() -> None:
    """x is saved by both products, once as it lies and once transposed; y takes its place in memory later."""
    x, w = draw(64, 64), draw(64, 64, seed=1).requires_grad_()
    with Mesa(nn.Identity()) as mesa:
        a = (x @ w).sum() + (x.T @ w).sum()
    assert mesa.saved.live == 64 * 64 + 8 * 8
    a.backward()
    assert w.grad is not None
    torch.testing.assert_close(w.grad, (x.sum(0) + x.sum(1))[:, None].expand(64, 64), atol=0.6, rtol=0)


def test_freed_memory_is_not_taken_for_the_old_tensor() -> None:
    """Every round allocates where the last one freed; an identity by address would hand out the first copy."""
    w = torch.ones(4096, requires_grad=True)
    with Mesa(nn.Identity(), groups="blocks") as mesa:
        total = torch.zeros(())
        for i in range(20):
            total = total + (torch.full((64, 64), float(i)).flatten()[None] * w).sum()
    total.backward()
    assert w.grad is not None and mesa.saved.live == 0
    torch.testing.assert_close(w.grad, torch.full((4096,), 190.0))


def test_running_ranges_by_hand() -> None:
    layer = nn.Linear(2, 2048, bias=False)
    mesa = Mesa(layer, momentum=0.75)
    for scale in (1.0, 3.0):
        with mesa:
            y = layer(torch.tensor([[0.0, 1.0], [scale, 0.0]]) * torch.ones(1024, 1, 1)).sum()
        y.backward()
    ((alpha, beta),) = mesa._ranges.values()
    torch.testing.assert_close(alpha.max(), torch.tensor(1.0 - 0.25 * (1.0 - 3.0)))
    assert float(beta.abs().max()) == 0


def test_policy_names_operations_and_modules(model: Model) -> None:
    mesa = Mesa(model, policy={"silu": 4, "model.layers.0.*": None, "linear": 8, "*": None})
    gradients(model, mesa)
    plain, kept = mesa.by_op["silu"]
    assert kept < 0.14 * plain
    plain, kept = mesa.by_op["linear"]
    assert 0.3 < kept / plain < 0.6  # one layer of six, and what silu's inputs do not share
    assert mesa.by_op["scaled_dot_product_attention"][0] == mesa.by_op["scaled_dot_product_attention"][1]
    with pytest.raises(InputError, match="'gelu' fits no tensor.*Remove it"):
        gradients(model, Mesa(model, policy={"gelu": 4}))


@pytest.mark.parametrize("groups", ["heads", "blocks"])
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan, -torch.nan])
def test_statistics_and_numbers_that_are_not_finite_stay_exact(groups: str, value: float) -> None:
    norm = nn.LayerNorm(32)
    x = draw(2048, 32)
    x[-1, 3] = value
    with Mesa(norm, groups=groups) as mesa:  # type: ignore[arg-type]
        norm(x.requires_grad_()).sum()
    assert mesa.by_op["layer_norm"][0] == mesa.by_op["layer_norm"][1]


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_regions(reentrant: bool) -> None:
    net = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64))
    x = draw(64, 64).requires_grad_()

    def run(around: Callable[[Tensor], Tensor]) -> Tensor:
        x.grad = None
        around(x).square().sum().backward()  # checkpoints refuse torch.autograd.grad
        assert x.grad is not None
        return x.grad

    plain = run(net)
    with Mesa(net):
        value = run(lambda y: checkpoint(net, y, use_reentrant=reentrant))
    assert float((value - plain).norm() / plain.norm()) < 0.05


def test_hooks_are_gone_after_an_error(model: Model) -> None:
    before = snapshot(model.module)
    mesa = Mesa(model)
    with pytest.raises(RuntimeError, match="stop"), mesa:
        model.module(IDS)
        raise RuntimeError("stop")
    assert not changes(before, model)
    with SavedBytes(model) as meter:
        model.module(IDS)
    assert meter.peak > mesa.saved.peak
    gradients(model, mesa)  # it can be entered again


@pytest.mark.usefixtures("unchecked")
def test_wrong_uses_teach(model: Model) -> None:
    with pytest.raises(InputError, match="bits=3, expected one of"):
        Mesa(model, bits=3)
    with pytest.raises(InputError, match="Did you mean 'heads'"):
        Mesa(model, groups="head")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="expected a Model or an nn.Module"):
        Mesa("gpt2")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="momentum=1.0"):
        Mesa(model, momentum=1.0)
    with pytest.raises(ShapeError, match="outer groups inner"):
        quantise_groups(torch.ones(3, 4))
    with pytest.raises(InputError, match="NaN, infinite or beyond"):
        quantise_groups(torch.tensor([[[0.0, torch.nan]]]))
    mesa = Mesa(model)
    with mesa, pytest.raises(InputError, match="open already"):
        mesa.__enter__()
    assert isinstance(quantise_groups(torch.ones(1, 1, 3)), Quantised)  # one value only: range 0
    torch.testing.assert_close(dequantise_groups(quantise_groups(torch.ones(1, 1, 3))), torch.ones(1, 1, 3))

"""The preselected code is that of the dense product, also on inputs made against its error bound."""

from __future__ import annotations

import math
import time

import pytest
import torch

from interneuron.core.errors import TrainingError
from interneuron.core.seeds import generator
from interneuron.parts.sparse_training import SparseCoding, SparseTrainer

pytest.importorskip("numba")
from interneuron.parts import sparse_preselect
from interneuron.parts.sparse_selection import top_rows

B, D, F, K = 48, 64, 520, 8


def buffer(_: str, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype)


def preselected(x, encoder, bias):
    selection = sparse_preselect.Preselection(K, buffer)
    index, value = torch.full((len(x), K), -1), torch.full((len(x), K), -1.0)
    return selection.top(x, encoder, bias, index, value), index, value


def dense(x, encoder, bias):
    index, value, pre = torch.empty(len(x), K, dtype=torch.long), torch.empty(len(x), K), x @ encoder.T + bias
    top_rows(pre.numpy(), pre.numpy(), K, index.numpy(), value.numpy())
    return index, value


def cases():
    """Inputs, encoder, bias: ordinary ones, and ones made against the bound."""
    rng = generator(0)
    x, w, b = torch.randn(B, D, generator=rng), torch.randn(F, D, generator=rng) / 8, torch.randn(F, generator=rng)
    power = torch.rand(max(B, F), generator=rng) * 2 - 1
    yield "random", (x, w, b * 0.1)
    yield "no bias", (x, w, b * 0)
    yield "bias above the scores", (x, w, b * 30)
    yield "bias that swallows the scores, in pairs", (x, w, b.view(-1, 2)[:, :1].expand(-1, 2).reshape(-1) * 1e6)
    yield "constant rows", (b[:B, None].expand(B, D).contiguous(), w, b * 0.1)
    yield "rows of zeros", (x * (torch.arange(B)[:, None] > 3), w, b * 0.1)
    yield "rows of all sizes", (x * 10 ** (power[:B, None] * 12), w, b * 0.1)
    yield "columns of all sizes", (x * 10 ** (power[:D] * 12), w, b * 0.1)
    yield "features of all sizes", (x, w * 10 ** (power[:F, None] * 6), b * 0.1)
    yield "one large column that cancels", (torch.cat([x[:, :1] * 0 + 10, x[:, 1:]], 1), w, -10 * w[:, 0])
    yield "negative scores", (x, w, b * 0.1 - 50)
    yield "half-way between bfloat16 numbers", ((x * 128).round() / 128 + 2**-9, (w * 256).round() / 256 + 2**-10, b)
    yield "errors of one sign", (1 + 0.0038 * x.abs().clamp(0.9, 1), 1 + 0.0038 * w.abs().clamp(0.9, 1), b * 20)


CASES = dict(cases())


@pytest.mark.parametrize("name", CASES)
def test_the_code_is_that_of_the_dense_product(name):
    x, w, b = CASES[name]
    done, index, value = preselected(x, w, b)
    assert done
    scores = x.double() @ w.double().T + b.double()
    # What float32 itself leaves open: sums of D products, and the sum with the bias.
    blur = D * 2.0**-22 * x.double().norm(dim=1, keepdim=True) * w.double().norm(dim=1) + 2.0**-21 * b.double().abs()
    taken = torch.zeros_like(scores, dtype=torch.bool).scatter(1, index, True)
    assert bool((taken.sum(1) == K).all())
    worst = (scores + blur).masked_fill(~taken, math.inf).min(1).values
    assert bool((worst >= (scores - blur).masked_fill(taken, -math.inf).max(1).values).all())
    assert bool(((value - scores.gather(1, index).relu()).abs() <= blur.gather(1, index)).all())
    wanted, theirs = dense(x, w, b)
    differ = (index.sort(1).values != wanted.sort(1).values).any(1)
    assert torch.allclose(value.sort(1).values, theirs.sort(1).values, rtol=1e-5, atol=float(blur.max()))
    edge = scores.sort(1, descending=True).values[:, K - 1 : K + 1]
    assert bool(((edge[:, 0] - edge[:, 1]) <= 2 * blur.max(1).values)[differ].all())  # only float32's own ties differ


@pytest.mark.parametrize("name", CASES)
def test_the_bound_holds(name):
    """|p + b - s| <= e for every entry, in float64."""
    x, w, b = CASES[name]
    xr, wr = x.bfloat16(), w.bfloat16()
    p = (xr @ wr.T).double()
    x, w, b = x.double(), w.double(), b.double()
    dx, dw = (xr.double() - x).norm(dim=1, keepdim=True), (wr.double() - w).norm(dim=1)
    n = x.norm(dim=1, keepdim=True)
    e = 2.0**-8 * p.abs() + (dx + D * 2.0**-22 * n) * w.norm(dim=1) + (n + dx) * dw + 2.0**-21 * b.abs()
    ratio = float(((p + b - x @ w.T - b).abs() / e.clamp_min(1e-300)).max())
    assert ratio <= 1
    if name == "errors of one sign":
        assert ratio > 0.5  # the case is what it says: little of the bound is to spare


def test_the_approximate_scores_alone_would_choose_otherwise():
    x, w, b = CASES["random"]
    approximate = (x.bfloat16() @ w.bfloat16().T).float() + b
    assert not torch.equal(approximate.topk(K).indices.sort(1).values, dense(x, w, b)[0].sort(1).values)


def test_rows_that_the_bound_cannot_serve_take_the_dense_product():
    x, w, b = (t.clone() for t in CASES["random"])
    x[3, 5], x[7, 0], x[9], x[11] = math.nan, math.inf, 1e20, 1e-20
    done, index, value = preselected(x, w, b)
    wanted, theirs = dense(x, w, b)
    assert done
    for t in range(B):
        assert sorted(index[t].tolist()) == sorted(wanted[t].tolist())
    assert torch.allclose(value.sort(1).values, theirs.sort(1).values, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize(
    "reason", ["equal features", "a column that drowns the scores", "nan weights", "infinite bias", "vanishing feature"]
)
def test_a_batch_without_use_takes_the_dense_product_for_a_while(reason):
    x, w, b = (t.clone() for t in CASES["no bias"])
    if reason == "equal features":
        w[:] = w[0]
    elif reason == "a column that drowns the scores":
        x[:, 0], b = 3e4, -3e4 * w[:, 0]
    elif reason == "nan weights":
        w[2, 2] = math.nan
    elif reason == "infinite bias":
        b[5] = math.inf
    else:
        w[4] = 0
    selection = sparse_preselect.Preselection(K, buffer)
    index, value = torch.empty(B, K, dtype=torch.long), torch.empty(B, K)
    assert not selection.top(x, w, b, index, value)
    good = CASES["random"]
    for _ in range(sparse_preselect.REST):
        assert not selection.top(*good, index, value)
    assert selection.top(*good, index, value)


def test_more_rows_than_a_chunk(monkeypatch):
    monkeypatch.setattr(sparse_preselect, "CHUNK", 20)
    whole = preselected(*CASES["random"])[1:]
    assert torch.equal(whole[0].sort(1).values, dense(*CASES["random"])[0].sort(1).values)


def test_two_threads_choose_the_same():
    one, before = preselected(*CASES["random"]), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        two = preselected(*CASES["random"])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one[1], two[1])
    assert torch.allclose(one[2], two[2], rtol=1e-6)


@pytest.mark.parametrize("aux_k", [0, 6])
def test_training_is_the_same_on_both_paths(aux_k, monkeypatch):
    rng = generator(1)
    batches = [torch.randn(256, D, generator=rng) + 1 for _ in range(6)]
    config = SparseCoding(F, k=K, aux_k=aux_k, dead_after=300)
    runs = []
    for preselects in (True, False):
        monkeypatch.setattr(sparse_preselect, "worthwhile", lambda *_, yes=preselects: yes)
        trainer = SparseTrainer(config, torch.ones(D), 1.0)
        assert (trainer.preselection is not None) == preselects
        runs.append((trainer, [trainer.step(x) for x in batches]))
    (one, log), (other, wanted) = runs
    assert one.preselection.resting == 0
    assert "pre" not in one._buffers
    for mine, theirs in zip(one.parameters, other.parameters, strict=True):
        assert float((mine.grad - theirs.grad).norm() / theirs.grad.norm()) < 1e-3  # after five steps of Adam
    assert torch.equal(one.silent, other.silent)
    for step, reference in zip(log, wanted, strict=True):
        assert step["fvu"] == pytest.approx(reference["fvu"], rel=1e-5)


def test_gradients_of_one_step_equal_the_dense_path(monkeypatch):
    x = torch.randn(256, D, generator=generator(2)) * 3 + 1
    grads = []
    for preselects in (True, False):
        monkeypatch.setattr(sparse_preselect, "worthwhile", lambda *_, yes=preselects: yes)
        trainer = SparseTrainer(SparseCoding(F, k=K), x.mean(0), 3.0)
        trainer.encoder_bias.copy_(torch.randn(F, generator=generator(3)) * 0.1)
        trainer.step(x)
        grads.append([p.grad for p in trainer.parameters])
    for mine, theirs in zip(*grads, strict=True):
        assert float((mine - theirs).norm() / theirs.norm()) < 2e-6


def test_nan_is_an_error_on_this_path_too(monkeypatch):
    monkeypatch.setattr(sparse_preselect, "worthwhile", lambda *_: True)
    x = torch.randn(64, D, generator=generator(0))
    x[3, 3] = math.nan
    with pytest.raises(TrainingError, match="finite"):
        SparseTrainer(SparseCoding(F, k=K), torch.zeros(D), 1.0).step(x)


def test_small_dictionaries_and_large_k_are_left_alone():
    assert not sparse_preselect.worthwhile(64, 256, 4)
    assert not sparse_preselect.worthwhile(512, 4096, 128)


@pytest.mark.parametrize(
    ("native", "seconds", "expected"), [(True, 0.4, True), (True, 2.0, False), (False, 0.4, False)]
)
def test_bfloat16_is_used_only_where_its_products_are_measured_to_be_faster(monkeypatch, native, seconds, expected):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    monkeypatch.setattr(sparse_preselect, "_seconds", lambda x, _: seconds if x.dtype == torch.bfloat16 else 1.0)
    monkeypatch.setattr(sparse_preselect, "_halves_products", sparse_preselect._halves_products.__wrapped__)  # no cache
    assert sparse_preselect.worthwhile(512, 4096, 32) is expected


def test_seconds_of_a_product_are_those_of_a_single_one():
    x = torch.ones(256, 512)
    started = time.perf_counter()
    found = sparse_preselect._seconds(x, x)
    assert 0 < found <= (time.perf_counter() - started) / 5

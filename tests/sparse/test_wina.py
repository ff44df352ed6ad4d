"""WINA: the mask by hand and by brute force, the kernel against the dense product, rotations, allocation, errors."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import interneuron as inn
from interneuron.core.errors import InputError, ShapeError, UnsupportedModel
from interneuron.model.edits import Place
from interneuron.model.model import Model
from interneuron.parts.sparse_inputs import Columns, SparseInput, Sparsify
from interneuron.sparse import WINA, orthogonalize_columns, sparsity_curve, wina_mask

ROWS = torch.randint(0, 64, (6, 12), generator=torch.Generator().manual_seed(0))


def llama(width: int = 32, hidden: int = 48) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=64, hidden_size=width, intermediate_size=hidden, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, initializer_range=0.2, pad_token_id=0,
        )  # fmt: skip
        return inn.wrap(LlamaForCausalLM(config).eval())


def gpt2(width: int = 32) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=64, n_embd=width, n_layer=2, n_head=4, initializer_range=0.2, n_positions=64)
        return inn.wrap(GPT2LMHeadModel(config).eval())


@pytest.fixture(scope="module")
def model() -> Model:
    return llama()


def test_mask_by_hand() -> None:
    x, c = torch.tensor([[3.0, -2.0, 1.0, 0.5]]), torch.tensor([1.0, 1.0, 4.0, 2.0])
    assert wina_mask(x, c, 0.5).tolist() == [[True, False, True, False]]
    assert wina_mask(x, torch.ones(4), 0.5).tolist() == [[True, True, False, False]]


def test_equals_teal_when_norms_are_equal() -> None:
    x = torch.randn(20, 9, generator=torch.Generator().manual_seed(1))
    for p in (0.0, 0.3, 0.65, 1.0):
        assert torch.equal(wina_mask(x, torch.full((9,), 2.5), p), wina_mask(x, torch.ones(9), p))
        assert int(wina_mask(x, torch.ones(9), p).sum(1).max()) == int(np.floor((1 - p) * 9))


def test_best_of_all_masks_when_columns_are_orthogonal() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        w = np.linalg.qr(rng.normal(size=(10, 8)))[0] * rng.exponential(size=8)
        x = rng.normal(size=8)
        mask = wina_mask(torch.tensor(x), torch.tensor(np.linalg.norm(w, axis=0)), 0.5).numpy()
        lost = np.square(w @ (x * ~mask)).sum()
        assert lost == pytest.approx(np.square(x * ~mask * np.linalg.norm(w, axis=0)).sum())  # eq. 3
        errors = [np.square(w @ (x * ~np.isin(np.arange(8), s))).sum() for s in itertools.combinations(range(8), 4)]
        assert lost == pytest.approx(min(errors))


@pytest.mark.parametrize(("out", "width"), [(1100, 1000), (2049, 517), (5000, 801)])
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.35, 0.8])
def test_kernel_equals_the_dense_product(out: int, width: int, kept: float) -> None:
    pytest.importorskip("numba")
    g = torch.Generator().manual_seed(0)
    w, x, b = (torch.randn(*shape, generator=g) for shape in ((out, width), (1, 1, width), (out,)))
    x = x * (torch.rand(width, generator=g) < kept)
    with torch.no_grad():
        wanted = torch.nn.functional.linear(x, w, b)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            got = torch.nn.functional.linear(SparseInput.make(x.clone(), Columns()), w, b)
            torch.set_num_threads(1)
            assert type(got) is Tensor
            assert Columns().product(x, w, b) is not None
            torch.testing.assert_close(got, wanted, atol=2e-5, rtol=1e-4)


def test_kernel_sees_new_weights_and_keeps_nan() -> None:
    pytest.importorskip("numba")
    columns, x = Columns(), torch.zeros(1, 1, 800)
    x[..., 3] = 2.0
    layer = torch.nn.Linear(800, 800, bias=False)
    with torch.no_grad():
        columns.product(x, layer.weight, None)
        layer.weight.add_(1.0)
        got = columns.product(x, layer.weight, None)
        assert got is not None
        torch.testing.assert_close(got, layer(x), atol=1e-5, rtol=1e-5)
        x[..., 5] = float("nan")
        bad = columns.product(x, layer.weight, None)
        assert bad is not None
        assert bad.isnan().all()


def test_where_the_kernel_steps_aside() -> None:
    w, x = torch.randn(800, 800), torch.randn(1, 1, 800)
    columns = Columns()
    with torch.no_grad():
        assert columns.product(x, w, None) is None  # nothing is zero: the dense product is as fast
        assert columns.product(torch.zeros(1, 1, 8), w[:8, :8], None) is None  # too small to matter
        assert columns.product(torch.zeros(1, 1, 800).double(), w.double(), None) is None
    assert columns.product(torch.zeros(1, 1, 800), w.requires_grad_(), None) is None  # gradients are wanted
    whole = Sparsify("s", k=800, kernel="dense").transform(x, Place())
    assert whole is x


def test_a_sparse_input_is_a_plain_tensor_to_everything_else() -> None:
    x = SparseInput.make(torch.tensor([[[0.0, 2.0, 0.0]]]), Columns())
    for result in (x + 1, x.reshape(3), torch.cat([x, x]), x.clone(), x[0], x.sum()):
        assert type(result) is Tensor
    assert (x * 2).tolist() == [[[0.0, 4.0, 0.0]]]
    assert (x.shape, x.dtype) == ((1, 1, 3), torch.float32)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("make", [lambda: llama(768, 1024), lambda: gpt2(768)], ids=["llama", "gpt2"])
def test_decoding_skips_work_and_writes_the_same(make, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    model = make()
    mask = WINA(sparsity=0.65).fit(model)
    with model.edit(mask.edit("dense")):
        wanted = model.generate(ROWS[:1], max_new_tokens=4, do_sample=False)
    served = []
    product = Columns.product

    def spy(self: Columns, *args: object, **kwargs: object) -> Tensor | None:
        y = product(self, *args, **kwargs)  # type: ignore[arg-type]
        served.append(y is not None)
        return y

    monkeypatch.setattr(Columns, "product", spy)
    with model.edit(mask.edit("numba")):
        got = model.generate(ROWS[:1], max_new_tokens=4, do_sample=False)
    assert torch.equal(got, wanted)
    assert sum(served) >= 3 * 4  # three decoded tokens, several matrices each


def test_masked_model_equals_masked_products_by_hand(model: Model) -> None:
    mask = WINA(sparsity=0.5, dense_share=0.0).fit(model)
    layer = model.module.model.layers[0].mlp.down_proj
    seen: dict[str, Tensor] = {}
    hook = layer.register_forward_hook(lambda _m, args, out: seen.update(x=args[0].detach(), y=out.detach()))
    with model.edit(mask.edit()):
        model(ROWS)
    hook.remove()
    zeros = (seen["x"] == 0).sum(-1)
    assert (zeros == 24).all()
    torch.testing.assert_close(seen["y"], seen["x"] @ layer.weight.T)
    assert mask.kept_share == pytest.approx(0.5)


def test_start_of_a_prompt_stays_dense(model: Model) -> None:
    mask = WINA(sparsity=0.9, dense_share=0.25).fit(model)
    with model.edit(mask.edit()):
        sparse = model(ROWS).logits
    plain = model(ROWS).logits
    torch.testing.assert_close(sparse[:, :3], plain[:, :3])
    assert (sparse[:, 3:] - plain[:, 3:]).abs().max() > 0.1


def test_thresholds_are_quantiles(model: Model) -> None:
    mask = WINA(sparsity=0.4, mode="threshold", batch_size=2).fit(model, ROWS)
    site = mask.sites[4]
    acts = model.run(ROWS, read=[site]).acts[site]
    share = float((acts.abs() * mask.norms[site.removesuffix(":in")] > mask.thresholds[4]).float().mean())
    assert share == pytest.approx(0.6, abs=0.005)


@pytest.mark.usefixtures("unchecked")
def test_greedy_reaches_its_target_and_is_no_worse(model: Model) -> None:
    from interneuron.parts.batches import divergences

    greedy = WINA(sparsity=0.5, allocation="greedy", step=0.5, dense_share=0.0).fit(model, ROWS)
    uniform = WINA(sparsity=0.5, dense_share=0.0).fit(model)
    assert greedy.kept_share == pytest.approx(0.5, abs=1e-6)
    assert len(set(greedy.sparsity)) > 2
    costs = divergences(model, ROWS, [m.edit("dense") for m in (greedy, uniform)]).mean(1)
    assert costs[0] < costs[1]


@pytest.mark.parametrize("make", [llama, gpt2])
def test_rotation_keeps_the_outputs_and_makes_columns_orthogonal(make) -> None:
    model = make()
    rotated = orthogonalize_columns(model)
    with torch.no_grad():
        torch.testing.assert_close(rotated(ROWS).logits, model(ROWS).logits, atol=1e-4, rtol=1e-4)
    assert rotated.module is not model.module
    if make is llama:
        for name in ("self_attn.k_proj", "mlp.gate_proj"):
            w = rotated.module.get_submodule(f"model.layers.1.{name}").weight.detach().double()
            gram = w.T @ w
            assert float((gram - gram.diagonal().diag()).abs().max()) < 1e-5 * float(gram.max())
        picked = WINA(norms="orthogonal").fit(rotated).norms
        assert {path.split(".")[-1] for path in picked} == {"k_proj", "gate_proj"}


def test_baselines_and_curve(model: Model) -> None:
    cats = WINA(sparsity=0.5, score="cats", mode="threshold").fit(model, ROWS)
    assert all(site.endswith("act_fn:out") for site in cats.sites)
    report = sparsity_curve(model, ROWS, sparsities=(0.3, 0.6), scores=("wina", "teal", "random"))
    series = report.plot()["series"]
    assert series["wina"][0] < series["wina"][1]
    assert series["wina"][1] < series["random"][1]
    assert WINA(score="random", seed=1).fit(model).same_bits(WINA(score="random", seed=1).fit(model))


@pytest.mark.usefixtures("unchecked")
def test_errors_teach(model: Model) -> None:
    with pytest.raises(InputError, match="sparsity=1.5: expected a share"):
        WINA(sparsity=1.5).fit(model)
    with pytest.raises(InputError, match="corpus: expected a list of at least one text"):
        WINA(mode="threshold").fit(model)
    packed = llama()
    packed.module.model.layers[1].mlp.up_proj.weight = torch.nn.Parameter(
        torch.zeros(48, 32, dtype=torch.uint8), requires_grad=False
    )
    with pytest.raises(UnsupportedModel, match="without quantisation"):
        WINA().fit(packed)
    with pytest.raises(ShapeError, match="one norm per channel"):
        wina_mask(torch.ones(2, 3), torch.ones(2), 0.5)
    with pytest.raises(InputError, match="NaN"):
        wina_mask(torch.tensor([float("nan"), 1.0]), torch.ones(2), 0.5)
    with pytest.raises(UnsupportedModel, match="has 0 activation modules"):
        blank = llama()
        for layer in blank.module.model.layers:
            layer.mlp.act_fn = torch.nn.PReLU()
        WINA(score="cats").fit(blank)

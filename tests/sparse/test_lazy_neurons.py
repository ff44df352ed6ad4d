"""Lazy neurons: shares by hand, the top-k layer and edit, the gradient at initialisation, calibration, errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import interneuron as inn
from interneuron.core.errors import InputError, ShapeError
from interneuron.model.model import Model
from interneuron.parts.density import TopK, activation_density
from interneuron.sparse import calibration_error, density_report, sparsity_gradient, topk_edit

ROWS = torch.randint(0, 64, (6, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model() -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=16, activation_function="relu", n_inner=40
        )
        return inn.wrap(GPT2LMHeadModel(config).eval())


def test_report_by_hand(model: Model) -> None:
    report = density_report(model, ROWS, batch_size=4)
    with torch.no_grad():
        acts = model.run(ROWS, read=["layers.*.mlp.hidden"]).acts
    for layer in range(2):
        on = acts[f"layers.{layer}.mlp.hidden"].flatten(0, 1) > 0
        assert float(report.arrays["density"][layer]) == pytest.approx(float(on.double().mean()))
        assert float(report.arrays["never"][layer]) == pytest.approx(float((~on).all(0).double().mean()))
    torch.testing.assert_close(report.arrays["histogram"].sum(1), torch.ones(2, dtype=torch.float64))
    assert report["density"] == pytest.approx(np.mean(list(activation_density(model, ROWS).values())))
    assert report["FLOPs over dense"] == pytest.approx((1 + report["density"]) / 2)
    assert 0.3 < report["density"] < 0.7  # an untrained network is half active


def test_padding_is_not_counted() -> None:
    model = inn.load("lm-relu")
    texts = ["she felt happy .", "the lamp was lovely today and he looked sad ."]
    both = density_report(model, texts)
    alone = [density_report(model, [text]) for text in texts]
    tokens = [report.fitted["tokens"] for report in alone]
    assert both.fitted["tokens"] == sum(tokens)
    mean = sum(n * r["density"] for n, r in zip(tokens, alone, strict=True)) / sum(tokens)
    assert both["density"] == pytest.approx(mean, abs=1e-4)


def test_top_k_layer() -> None:
    x = torch.tensor([[3.0, -5.0, 1.0, 2.0], [-1.0, -2.0, -3.0, 0.5]], requires_grad=True)
    y = TopK(2)(x)
    assert y.tolist() == [[3.0, 0.0, 0.0, 2.0], [0.0, 0.0, 0.0, 0.5]]
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0]]
    whole = torch.randn(3, 6)
    torch.testing.assert_close(TopK(6, act="gelu")(whole), nn.functional.gelu(whole))
    assert (TopK(2, act="none")(whole) != 0).sum(1).tolist() == [2, 2, 2]


def test_top_k_edit_is_the_top_k_layer(model: Model) -> None:
    with torch.no_grad(), model.edit(topk_edit(model, k=5)):
        edited = model(ROWS).logits
    swapped = inn.wrap(GPT2LMHeadModel(model.module.config).eval())
    swapped.module.load_state_dict(model.module.state_dict())
    for block in swapped.module.transformer.h:
        block.mlp.act = TopK(5)
    with torch.no_grad():
        torch.testing.assert_close(edited, swapped(ROWS).logits, atol=1e-5, rtol=1e-5)
    assert max(activation_density(swapped, ROWS).values()) <= 5 / 40


def test_gradient_on_active_units(model: Model) -> None:
    got = sparsity_gradient(model, ROWS)
    assert all(p.grad is None for p in model.module.parameters())
    with model.read("layers.1.mlp.hidden", grad=True) as acts:
        logits = model(ROWS).logits
    nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ROWS[:, 1:].flatten(), reduction="sum").backward()
    h, g = acts["layers.1.mlp.hidden"].detach(), acts.grad["layers.1.mlp.hidden"]
    model.module.zero_grad()
    assert float(got[1]) == pytest.approx(float(g[h > 0].mean()), rel=1e-5)


def test_gradient_is_positive_for_an_mlp_under_the_softmax() -> None:
    rows = torch.randn(2000, 32, generator=torch.Generator().manual_seed(0)).abs()
    labels = torch.randint(0, 10, (2000,), generator=torch.Generator().manual_seed(1))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(32, 400), nn.ReLU(), nn.Linear(400, 10))
        nn.init.normal_(module[2].weight, std=0.2)
    assert float(sparsity_gradient(inn.wrap(module), rows, labels, sites="1:out")) > 0


@pytest.mark.parametrize("last_norm", [False, True])
def test_a_last_norm_takes_the_sign_of_the_gradient_away(last_norm: bool) -> None:
    config = GPT2Config(
        vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=12, activation_function="relu", n_inner=64,
        tie_word_embeddings=False, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    found = []
    with torch.random.fork_rng():
        for seed in range(24):
            torch.manual_seed(seed)
            module: Any = GPT2LMHeadModel(config).eval()
            for block in module.transformer.h:
                nn.init.normal_(block.mlp.c_fc.weight, std=0.25)
                nn.init.normal_(block.mlp.c_proj.weight, std=0.125)
            nn.init.normal_(module.lm_head.weight, std=0.25)
            if not last_norm:
                module.transformer.ln_f = nn.Identity()
            found.append(sparsity_gradient(inn.wrap(module), ROWS % 40))
    each = torch.stack(found)
    errors = each.mean(0) / (each.std(0) / len(each) ** 0.5)
    assert bool((errors.abs() < 3).all()) if last_norm else bool((errors > 4).all())


def test_calibration_by_hand() -> None:
    logits = torch.log(torch.tensor([[0.8, 0.2], [0.8, 0.2], [0.6, 0.4], [0.3, 0.7]], dtype=torch.float64))
    labels = torch.tensor([0, 1, 0, 1])
    # bins (0.73, 0.8]: two at 0.8, one right; (0.53, 0.6]: one at 0.6, right; (0.67, 0.73]: one at 0.7, right
    assert calibration_error(logits, labels) == pytest.approx((abs(1 - 1.6) + 0.4 + 0.3) / 4)
    assert calibration_error(torch.tensor([[50.0, 0.0]]), torch.tensor([0])) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.usefixtures("unchecked")
def test_errors_teach(model: Model) -> None:
    with pytest.raises(InputError, match=r"TopK\(k=0\)"):
        TopK(0)
    with pytest.raises(InputError, match="Did you mean 'relu'"):
        TopK(3, act="rel")
    with pytest.raises(InputError, match="expected at least 1 unit"):
        topk_edit(model, k=0)
    with pytest.raises(InputError, match="corpus: expected a list"):
        density_report(model, [])
    with pytest.raises(ShapeError, match=r"expected \[N C\] and \[N\]"):
        calibration_error(torch.ones(2, 3), torch.zeros(3, dtype=torch.long))
    with pytest.raises(InputError, match="0 rows"):
        calibration_error(torch.ones(0, 3), torch.zeros(0, dtype=torch.long))

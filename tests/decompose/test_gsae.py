"""Gradient SAE: selection by hand, beta = 0 is TopK bit for bit, gradients of the site equal autograd's."""

from __future__ import annotations

import pytest
import torch

import interneuron as inn
from interneuron.artifacts import Dictionary
from interneuron.core.errors import InputError, ShapeError
from interneuron.core.seeds import generator
from interneuron.decompose.gsae import GradientSAE, encode_with_gradient
from interneuron.parts.activation_rows import token_rows_and_gradients
from interneuron.parts.sparse_training import SparseCoding, train_dictionary

pytest.importorskip("numba")


@pytest.mark.usefixtures("unchecked")
def test_selection_by_hand() -> None:
    eye = torch.eye(3)
    d = Dictionary(
        encoder=eye, decoder=eye, encoder_bias=torch.zeros(3), decoder_bias=torch.zeros(3), activation="topk", k=1
    )
    x, grad = torch.tensor([[3.0, 2.0, -1.0]]), torch.tensor([[0.0, -3.0, 9.0]])
    # h = (0, 3, 9) / sqrt(30); scores 3, 2 (1 + 0.548 beta) and -1
    assert encode_with_gradient(d, x, grad, beta=0.0).tolist() == [[3.0, 0.0, 0.0]]
    assert encode_with_gradient(d, x, grad, beta=0.9).tolist() == [[3.0, 0.0, 0.0]]
    assert encode_with_gradient(d, x, grad, beta=0.93).tolist() == [[0.0, 2.0, 0.0]]
    # the size of the training's gradients and its beta come with the dictionary: scores 3 and 2 (1 + 0.2 * 3)
    trained = d.replace(fitted={"beta": 0.2, "gradient_rms": 1.0})
    assert encode_with_gradient(trained, x, grad).tolist() == [[0.0, 2.0, 0.0]]
    assert encode_with_gradient(trained, x, grad / 10).tolist() == [[3.0, 0.0, 0.0]]
    with pytest.raises(InputError, match="beta is missing"):
        encode_with_gradient(d, x, grad)
    with pytest.raises(ShapeError, match="one shape"):
        encode_with_gradient(d, x, grad[:, :2])
    with pytest.raises(InputError, match="no k"):
        encode_with_gradient(d.replace(activation="relu", k=0), x, grad)


def test_beta_zero_is_topk_and_beta_one_is_not() -> None:
    rng = generator(0)
    x, grad = torch.randn(600, 8, generator=rng), torch.randn(600, 8, generator=rng)
    options = {"expansion": 3, "k": 3, "steps": 20, "batch_size": 64}
    plain = train_dictionary(x, SparseCoding(24, k=3, steps=20, batch_size=64, dead_after=50_000, aux_k=24))
    zero = GradientSAE(beta=0.0, **options).fit_activations(x, grad)
    one = GradientSAE(beta=1.0, **options).fit_activations(x, grad)
    assert all(torch.equal(t, plain.tensors()[name]) for name, t in zero.tensors().items())
    assert not torch.equal(one.decoder, zero.decoder)


def test_trainer_selects_as_the_codes_do() -> None:
    from interneuron.decompose.gsae import _Trainer

    rng = generator(1)
    x, grad = torch.randn(32, 8, generator=rng), torch.randn(32, 8, generator=rng)
    trainer = _Trainer(SparseCoding(24, k=3), torch.zeros(8), 1.0, weight=1.0, size=0.5)
    pre = x @ trainer.encoder.T
    _, index, value = trainer.select(pre.clone(), x, grad)
    dense = torch.zeros(32, 24).scatter(1, index.view(32, 3), value.view(32, 3))
    found = trainer.dictionary(fitted={"gradient_rms": 0.5})
    assert torch.allclose(dense, encode_with_gradient(found, x, grad, beta=1.0), atol=1e-6)
    other = encode_with_gradient(found, x, grad, beta=0.0)
    assert not torch.allclose(dense, other, atol=1e-6)


def test_gradients_at_the_site_equal_autograd() -> None:
    model = inn.load("lm-small")
    ids = torch.tensor([[1, 20, 31, 44, 50], [1, 33, 21, 60, 42]])
    site = "layers.1.resid_post"
    x, grad = token_rows_and_gradients(model, ids, site, skip=1)
    with model.read(site, grad=True) as acts:
        logits = model(ids).logits
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1), reduction="sum"
        )
        (wanted,) = torch.autograd.grad(loss, acts[site])
    assert torch.allclose(grad, wanted[:, 1:].flatten(0, 1), atol=1e-5)
    assert torch.allclose(x, acts[site][:, 1:].flatten(0, 1), atol=1e-6)
    assert all(p.grad is None for p in model.module.parameters())


def test_a_choice_does_not_depend_on_the_other_rows_or_on_the_unit_of_the_loss() -> None:
    rng = generator(2)
    x, grad = torch.randn(400, 8, generator=rng), torch.randn(400, 8, generator=rng)
    options = {"expansion": 3, "k": 3, "beta": 2.0, "steps": 20, "batch_size": 64}
    found = GradientSAE(**options).fit_activations(x, grad)
    codes = encode_with_gradient(found, x, grad)
    assert torch.allclose(codes[:5], encode_with_gradient(found, x[:5], grad[:5]), atol=1e-6)
    bits = GradientSAE(**options).fit_activations(x, grad * 1024)  # a power of two: no rounding
    assert torch.equal(found.decoder, bits.decoder)


def test_errors_teach() -> None:
    x = torch.randn(10, 4, generator=generator(0))
    with pytest.raises(ShapeError, match="Read them together"):
        GradientSAE().fit_activations(x, x[:5])
    with pytest.raises(InputError, match="grad holds NaN"):
        GradientSAE().fit_activations(x, x * float("nan"))

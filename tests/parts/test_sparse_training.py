"""The sparse step's gradients equal autograd's, and training recovers a planted dictionary."""

from __future__ import annotations

import pytest
import torch

from interneuron.core.errors import InputError
from interneuron.core.seeds import generator
from interneuron.parts.sparse_training import SparseCoding, SparseTrainer, train_dictionary

pytest.importorskip("numba")
D, F, B = 16, 40, 64


def reference(trainer: SparseTrainer, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Autograd through the dense form of the same loss."""
    c = trainer.config
    names = ("encoder", "encoder_bias", "decoder", "decoder_bias")
    p = {name: getattr(trainer, name).detach().clone().requires_grad_() for name in names}
    x = x / trainer.rms
    h = (x - p["decoder_bias"]) @ p["encoder"].T + p["encoder_bias"]
    if c.activation == "topk":
        top = h.topk(c.k, dim=1)
        f = torch.zeros_like(h).scatter(1, top.indices, top.values.relu())
    elif c.activation == "batchtopk":
        cut = h.detach().flatten().sort(descending=True).values[B * c.k]
        f = h * (h > cut.clamp(min=0))
    elif c.activation == "jumprelu":
        f = h * (h > trainer.log_threshold.exp())
    else:
        f = h.relu()
    loss = (f @ p["decoder"] + p["decoder_bias"] - x).square().sum(1).mean() + c.l1 * f.sum(1).mean()
    loss.backward()
    grads = {name: tensor.grad for name, tensor in p.items()}
    rows = p["decoder"].detach()
    grads["decoder"] = grads["decoder"] - (grads["decoder"] * rows).sum(1, keepdim=True) * rows
    return grads


@pytest.mark.parametrize(
    "config",
    [
        SparseCoding(F, "topk", k=5),
        SparseCoding(F, "topk", k=30),
        SparseCoding(F, "batchtopk", k=5),
        SparseCoding(F, "relu", l1=0.03),
        SparseCoding(F, "jumprelu", l0=0.01),
    ],
    ids=lambda c: f"{c.activation}-{c.k}",
)
def test_gradients_equal_autograd(config):
    rng = generator(5)
    x = torch.randn(B, D, generator=rng) * 3 + 1
    trainer = SparseTrainer(config, x.mean(0), 3.0)
    trainer.encoder_bias.copy_(torch.randn(F, generator=rng) * 0.1)
    wanted = reference(trainer, x)
    trainer.optimizer.param_groups[0]["lr"] = 0.0
    trainer.step(x)
    for name, grad in wanted.items():
        got = getattr(trainer, name).grad
        assert float((got - grad).norm() / grad.norm()) < 1e-4, name


@pytest.mark.parametrize("activation", ["topk", "batchtopk", "relu", "jumprelu"])
def test_a_planted_dictionary_is_recovered(activation):
    rng = generator(0)
    truth = torch.nn.functional.normalize(torch.randn(32, 24, generator=rng), dim=1)
    codes = torch.rand(8_000, 32, generator=rng) * (torch.rand(8_000, 32, generator=rng) < 3 / 32)
    x = codes @ truth
    extra = {"relu": {"l1": 1.0}, "jumprelu": {"l0": 0.3}}.get(activation, {})
    config = SparseCoding(48, activation, k=4, steps=800, batch_size=256, lr=3e-3, dead_after=30_000, **extra)
    found, log = train_dictionary(x, config, site="layers.0.resid_post")
    quality = found.quality(x[:4000])
    match = (truth @ torch.nn.functional.normalize(found.decoder, dim=1).T).max(1).values
    assert quality["fvu"] < 0.15, (quality, log[-1])
    assert quality["l0"] < 9, quality
    assert float((match > 0.9).float().mean()) > 0.8, match


def test_options_that_would_be_ignored_are_refused():
    with pytest.raises(InputError, match="ignored"):
        SparseCoding(F, "topk", l1=0.1)
    with pytest.raises(InputError, match="k=0"):
        SparseCoding(F, "topk", k=0)


def test_batches_that_end_early_are_an_error():
    with pytest.raises(InputError, match="ended after 2"):
        train_dictionary([torch.randn(8, D), torch.randn(8, D)], SparseCoding(F, k=3, steps=5))

"""Dictionary: encoders of every kind against a float64 re-derivation, and edits that keep the rest."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interneuron.artifacts import load_artifact
from interneuron.artifacts.dictionary import Dictionary
from interneuron.core.errors import InputError, ShapeError
from interneuron.core.seeds import generator

D, F = 6, 20


def make(activation: str, **extra: object) -> Dictionary:
    rng = generator(3)
    parts = {
        "encoder": torch.randn(D, F, generator=rng),
        "decoder": torch.randn(F, D, generator=rng),
        "encoder_bias": torch.randn(F, generator=rng) * 0.1,
        "decoder_bias": torch.randn(D, generator=rng),
    }
    if activation == "jumprelu":
        parts["threshold"] = torch.rand(F, generator=rng)
    if activation == "gated":
        parts["gate_bias"], parts["gate_scale"] = (torch.randn(F, generator=rng) * 0.1 for _ in range(2))
    return Dictionary(**parts, activation=activation, k=4 if activation == "topk" else 0, **extra)


def by_hand(d: Dictionary, x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    n = {name: tensor.double().numpy() for name, tensor in d.tensors().items()}
    v = x.double().numpy() * d.scale - (n["decoder_bias"] if d.center else 0)
    h = v @ n["encoder"]
    if d.activation == "gated":
        f = np.where(h + n["gate_bias"] > 0, np.maximum(h * np.exp(n["gate_scale"]) + n["encoder_bias"], 0), 0)
    else:
        h = h + n["encoder_bias"]
        f = np.maximum(h, 0)
        if d.activation == "jumprelu":
            f = np.where(h > n["threshold"], h, 0)
        if d.activation == "topk":
            for row in f:
                row[np.argsort(row)[: F - d.k]] = 0
    return f, (f @ n["decoder"] + n["decoder_bias"]) / d.scale


@pytest.mark.parametrize("activation", ["relu", "topk", "jumprelu", "gated"])
@pytest.mark.parametrize("options", [{}, {"center": True, "scale": 2.0}])
def test_equals_a_float64_derivation_and_survives_saving(activation, options, tmp_path):
    d = make(activation, **options)
    x = torch.randn(9, D, generator=generator(1))
    features, output = by_hand(d, x)
    np.testing.assert_allclose(d.encode(x).numpy(), features, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(d.reconstruct(x).numpy(), output, rtol=1e-5, atol=1e-5)
    assert load_artifact(d.save(tmp_path / "d")).same_bits(d)


def test_a_transposed_encoder_is_refused():
    d = make("relu")
    with pytest.raises(ShapeError, match="transposed"):
        d.replace(encoder=d.encoder.T.contiguous())


def test_what_an_activation_needs_is_asked_for():
    with pytest.raises(InputError, match="threshold"):
        make("relu").replace(activation="jumprelu")
    with pytest.raises(InputError, match="0 < k"):
        make("relu").replace(activation="topk")


def test_ablating_a_feature_removes_its_contribution_and_nothing_else():
    d = make("relu", site="layers.0.resid_post")
    x = torch.randn(5, D, generator=generator(2))
    f = d.encode(x)
    out = d.ablation([3, 7]).fn(x)
    torch.testing.assert_close(x - out, f[:, [3, 7]] @ d.decoder[[3, 7]])
    silent = int((f <= 0).all(0).nonzero()[0]) if bool((f <= 0).all(0).any()) else None
    if silent is not None:
        assert torch.equal(d.ablation(silent).fn(x), x)


def test_perfect_reconstruction_has_no_unexplained_variance():
    eye = torch.eye(D)
    d = Dictionary(
        encoder=torch.cat([eye, -eye], 1),
        decoder=torch.cat([eye, -eye]),
        encoder_bias=torch.zeros(2 * D),
        decoder_bias=torch.zeros(D),
    )
    quality = d.quality(torch.randn(50, D, generator=generator(0)))
    assert quality["fvu"] < 1e-10
    assert quality["l0"] == D


def test_the_plot_shows_copies_and_orthogonal_features() -> None:
    rows = torch.cat([torch.eye(4)[:3], 2.0 * torch.eye(4)[:1]])  # the last is a longer copy of the first
    made = Dictionary(
        encoder=rows.T.contiguous(), decoder=rows, encoder_bias=torch.zeros(4), decoder_bias=torch.zeros(4)
    )
    (levels,) = made.plot()["series"].values()
    assert (levels[0], levels[-1]) == (1.0, 0.0)
    assert sorted(levels, reverse=True) == levels

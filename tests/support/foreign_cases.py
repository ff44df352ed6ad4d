"""Dictionaries of every kind, trained on nothing but with a known truth, and the readings they must survive."""

from __future__ import annotations

import torch
from torch import Tensor

from interneuron.artifacts import Dictionary
from interneuron.core.seeds import generator

D, F = 12, 24
SITE = "layers.1.resid_post"


def random_dictionary(activation: str = "relu", **changes: object) -> Dictionary:
    """Random weights of unequal decoder norms; for round trips."""
    rng = generator(5)
    decoder = torch.randn(F, D, generator=rng)
    parts = {
        "encoder": decoder.T.contiguous() * 0.8 + 0.2 * torch.randn(D, F, generator=rng),
        "decoder": decoder * (0.5 + torch.rand(F, 1, generator=rng)),
        "encoder_bias": torch.randn(F, generator=rng) * 0.1,
        "decoder_bias": torch.randn(D, generator=rng),
        "site": SITE,
        "activation": activation,
        "k": 4 if activation in ("topk", "abstopk", "groupmax") else 0,
    }
    if activation == "jumprelu":
        parts["threshold"] = torch.rand(F, generator=rng)
    if activation == "gated":
        parts["gate_bias"], parts["gate_scale"] = (torch.randn(F, generator=rng) * 0.1 for _ in range(2))
    return Dictionary(**{**parts, **changes})


def rows(n: int = 40, seed: int = 0) -> Tensor:
    """Rows [n D] to encode."""
    return torch.randn(n, D, generator=generator(seed))


def sparse_world(seed: int = 0, n: int = 300, d: int = D) -> tuple[Dictionary, Tensor]:
    """A dictionary that explains its activations exactly, and those activations [n d].

    x = sum_i a_i s_i q_i + b with orthonormal q, sparse a >= 0 and unequal lengths s; its encoder is q_i / s_i.
    """
    rng = generator(100 + seed)
    q = torch.linalg.qr(torch.randn(d, d, generator=rng))[0]
    length = 0.2 + 3.0 * torch.rand(d, generator=rng)
    bias = 2.0 * torch.randn(d, generator=rng)
    codes = torch.rand(n, d, generator=rng) * (torch.rand(n, d, generator=rng) < 0.25)
    dictionary = Dictionary(
        encoder=(q / length[:, None]).T.contiguous(), decoder=q * length[:, None], encoder_bias=torch.zeros(d),
        decoder_bias=bias, center=True, site=SITE,
    )  # fmt: skip
    return dictionary, codes @ (q * length[:, None]) + bias


def wide(dictionary: Dictionary, extra: int = 6) -> Dictionary:
    """The same map with `extra` features that never fire, so that the encoder is not square."""
    d = dictionary.d_in
    return dictionary.replace(
        encoder=torch.cat([dictionary.encoder, torch.full((d, extra), 0.01)], 1),
        decoder=torch.cat([dictionary.decoder, torch.ones(extra, d) / d**0.5]),
        encoder_bias=torch.cat([dictionary.encoder_bias, torch.full((extra,), -100.0)]),
    )

"""Odd networks are odd, and their first weights neither shrink nor grow what passes."""

from __future__ import annotations

import torch

from interneuron.core.seeds import generator
from interneuron.parts.odd_networks import applied, frozen, linear, odd, odd_mlp, step, trainable, two_ways


def test_an_odd_network_turns_with_its_input_though_its_biases_are_not_zero() -> None:
    rng = generator(3, "odd")
    w = linear("f.0", 6, 16, rng) | linear("f.1", 16, 4, rng)
    w = {name: x + 0.5 if name.endswith("bias") else x for name, x in w.items()}
    x = torch.randn(9, 6, generator=rng)
    assert torch.equal(odd_mlp(w, "f", -x), -odd_mlp(w, "f", x))
    plain = applied(w, "f.1", torch.relu(applied(w, "f.0", x)))
    assert not torch.allclose(applied(w, "f.1", torch.relu(applied(w, "f.0", -x))), -plain)
    assert torch.equal(odd(two_ways(x)), x)


def test_fresh_weights_keep_the_variance_and_learn() -> None:
    rng = generator(4, "odd")
    x = torch.randn(4000, 64, generator=rng)
    w = linear("f", 64, 64, rng)
    assert 0.9 < float(applied(w, "f", x).var()) < 1.1
    optimiser = trainable(torch.optim.SGD, w, lr=0.1)
    losses = []
    for _ in range(2):
        loss = applied(w, "f", x).square().mean()
        losses.append(loss.item())
        step(optimiser, loss)
    assert losses[1] < losses[0]
    assert not any(value.requires_grad for value in frozen(w).values())

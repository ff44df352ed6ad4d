"""`modadd`: addition modulo a prime, learned from a part of the table: the standard case of sudden generalisation.

Truth. A network that generalises computes with waves: unit k answers cos(2 pi f_k (a + b) / p). `fourier_power` gives
each unit's spectrum, `frequencies` the waves in use, and the card the step at which held-out accuracy passed 0.9.

Shapes. pairs Int[p^2 2], one-hot inputs Float[p^2 2p], labels Int[p^2] -> logits Float[p^2 p].
Source. Power et al. 2022 (grokking); Nanda et al. 2023 (Fourier circuits).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from interneuron.core.errors import InputError

from .cache import Trained, cached
from .nets import TinyTransformer, seeded


@dataclass(frozen=True)
class ModAdd:
    """All pairs, their sums, and which of them are for training. `truth["frequencies"]` lists the p // 2 waves."""

    p: int
    pairs: Tensor
    labels: Tensor
    is_train: Tensor
    truth: dict[str, Any]

    @property
    def one_hot(self) -> Tensor:
        """Float[p^2 2p]: both numbers, one-hot, side by side."""
        return F.one_hot(self.pairs, self.p).flatten(1).float()


def make(seed: int, *, p: int = 23, train_share: float = 0.6) -> ModAdd:
    """The full table of sums modulo `p`, split at random."""
    if p < 3 or not 0.0 < train_share <= 1.0:
        raise InputError(f"modadd needs p >= 3 and 0 < train_share <= 1, got p={p}, train_share={train_share}.")
    numbers = torch.arange(p)
    pairs = torch.cartesian_prod(numbers, numbers)
    order = torch.randperm(p * p, generator=torch.Generator().manual_seed(seed))
    is_train = torch.zeros(p * p, dtype=torch.bool)
    is_train[order[: round(train_share * p * p)]] = True
    waves = torch.arange(1, (p - 1) // 2 + 1)
    return ModAdd(p, pairs, pairs.sum(1) % p, is_train, {"frequencies": waves})


class SquareMLP(nn.Module):
    """One hidden layer with the activation x^2, which can multiply two waves exactly."""

    def __init__(self, p: int, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(2 * p, width, bias=False)
        self.out = nn.Linear(width, p, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(self.hidden(x).square())
        return logits


def build(p: int, arch: str, width: int, seed: int) -> nn.Module:
    """The untrained network: `mlp` (one-hot inputs) or `transformer` (tokens a, b, = ; the answer is read at =)."""
    with seeded(seed):
        if arch == "mlp":
            return SquareMLP(p, width)
        if arch == "transformer":
            return TinyTransformer(p + 1, p, 3, d_model=width, n_heads=4, d_mlp=4 * width, norm_out=False)
    raise InputError(f"modadd has no arch {arch!r}; expected 'mlp' or 'transformer'.")


def inputs(data: ModAdd, arch: str) -> Tensor:
    """What the network of that arch takes: one-hot pairs, or tokens Int[p^2 3] ending in the `=` token p."""
    if arch == "mlp":
        return data.one_hot
    return torch.cat([data.pairs, torch.full((len(data.pairs), 1), data.p)], 1)


def answers(model: nn.Module, x: Tensor) -> Tensor:
    """Logits Float[N p] of the sum."""
    out: Tensor = model(x)
    return out[:, -1] if out.dim() == 3 else out


def _train(model: nn.Module, data: ModAdd, arch: str, steps: int, lr: float, weight_decay: float) -> dict[str, Any]:
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay, betas=(0.9, 0.98))
    # the last fifth cools down: full-batch AdamW with strong decay is thrown back now and then, and must not end there
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1.0, 5.0 * (1.0 - step / steps)))
    x, y, held = inputs(data, arch), data.labels, ~data.is_train
    x_train, y_train = x[data.is_train], y[data.is_train]
    grokked = memorised = None
    for step in range(steps):
        scores = answers(model, x_train)
        if arch == "mlp":
            target = F.one_hot(y_train, data.p).float() - 1.0 / data.p
            loss = (scores - target).square().sum(1).mean()
        else:
            loss = F.cross_entropy(scores, y_train)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 20 == 19:
            with torch.no_grad():
                right = answers(model, x).argmax(1) == y
            if memorised is None and bool(right[data.is_train].all()):
                memorised = step + 1
            if grokked is None and bool(held.any()) and float(right[held].float().mean()) >= 0.9:
                grokked = step + 1
    with torch.no_grad():
        right = (answers(model, x).argmax(1) == y).float()
    train = float(right[data.is_train].mean())
    test = float(right[held].mean()) if bool(held.any()) else float("nan")
    return {
        "train_accuracy": train,
        "test_accuracy": test,
        "memorised_at": memorised,
        "grokked_at": grokked,
        "required": "train = 1 and test >= 0.95",
        "passed": train == 1.0 and test >= 0.95,
    }


RECIPES: dict[str, dict[str, Any]] = {
    "mlp": {"p": 23, "train_share": 0.6, "width": 256, "steps": 1500, "lr": 0.01, "decay": 0.3, "seconds": 10},
    "transformer": {"p": 31, "train_share": 0.7, "width": 64, "steps": 1500, "lr": 5e-3, "decay": 1.0, "seconds": 25},
}
"""What each arch is trained with. The transformer finds the waves within 1,000 steps on a table of about 30 x 30."""


def trained(seed: int = 0, *, arch: str = "mlp", p: int | None = None, train_share: float | None = None) -> Trained:
    """A network that has generalised modular addition; `p` and `train_share` default to those of `RECIPES[arch]`.

    >>> organism = trained(seed=0)
    ... organism.card["passed"]  # doctest: +SKIP
    True
    """
    if arch not in RECIPES:
        raise InputError(f"modadd has no arch {arch!r}; expected 'mlp' or 'transformer'.")
    recipe = RECIPES[arch]
    p = recipe["p"] if p is None else p
    train_share = recipe["train_share"] if train_share is None else train_share
    data = make(seed, p=p, train_share=train_share)
    model = build(p, arch, recipe["width"], seed)
    dials = {"seed": seed, "arch": arch, "p": p, "train_share": train_share}

    def train(m: nn.Module) -> dict[str, Any]:
        return _train(m, data, arch, recipe["steps"], recipe["lr"], recipe["decay"])

    return Trained(model, data, cached("modadd", dials, model, train, recipe["seconds"], __name__))


def fourier_power(unit_values: Tensor) -> Tensor:
    """Share of each frequency in functions on Z_p, mean removed: Float[p units] -> Float[p // 2 + 1 units]."""
    spectrum = torch.fft.rfft(unit_values - unit_values.mean(0), dim=0).abs().square()
    return spectrum / spectrum.sum(0).clamp_min(1e-12)

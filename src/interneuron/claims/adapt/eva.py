"""Explained variance adaptation on a style `lm` has never read: stories told with the words of each sentence reversed.

Rank-4 adapters on all linear layers inside the blocks, 30 steps of Adam on 4 texts each, everything but the start the
same. Compared is the loss of each held-out text after 20 % of the steps with that of LoRA (Kaiming-uniform A); the
control is EVA from activations on unrelated data (statements of facts). PiSSA (the start is the principal part of W,
which is taken out of W) and random orthonormal A are shown beside it. Each arm has the learning rate of one grid under
which its loss on other held-out texts is lowest after the last step.

Deviations: the check also asks for `vit` on a new set of textures, which is left out, as is the comparison with peft
where it is not installed; three seeds instead of five. Standard errors are those of the paired differences of the
texts. Gradients are compared with the A of each layer scaled to one Frobenius norm, at uniform ranks (rho = 1).
"""

from __future__ import annotations

import math
from statistics import fmean, stdev

import torch
from torch import Tensor

from interneuron.adapt.eva import EVA
from interneuron.artifacts.low_rank_adapter import LowRankAdapter
from interneuron.claims import Claim, Comparison
from interneuron.core.seeds import generator
from interneuron.loading import load
from interneuron.model.model import Model
from interneuron.organisms.tinyworld import World, knowledge, stories
from interneuron.organisms.tinyworld.document import source
from interneuron.parts.adapter_training import train_adapter
from interneuron.parts.importance import losses
from interneuron.parts.linear_layers import block_linears, weight_of

CLAIM = Claim(
    slug="eva",
    organism="lm",
    paper="converges faster than LoRA and its variants; best average score in language, vision and control",
    better="lower",
    unit="loss after 20 % of the steps, nats/token",
    minutes=3.0,
    ratio=0.97,
    why=(
        "To be read with it: the learning rates lie threefold apart and are chosen by the last loss, which suits "
        "EVA, whose gradients are about four times LoRA's. Tried afterwards: with LoRA's rate from a finer grid, "
        "chosen by the early loss, EVA's loss after 20 % of the steps is 0.94 to 0.97 of LoRA's where at most 0.97 "
        "is asked; its lead at the last step, 2.9 to 3.6 against 4.6 to 5.1 nats, is not in doubt. PiSSA is ahead "
        "of it early under two seeds, and EVA from unrelated text has most of the early gain."
    ),
)

RANK, STEPS, EARLY, BATCH = 4, 30, 6, 4
RATES = (0.005, 0.015, 0.045)
N_TRAIN, N_CHOICE, N_TEST, LONGEST = 64, 16, 32, 30


def claim(seed: int) -> Comparison:
    """Measure early and final losses of six starts."""
    model = load("lm")
    texts = _reversed_stories(seed)
    train, choice, test = texts[:N_TRAIN], texts[N_TRAIN : N_TRAIN + N_CHOICE], texts[-N_TEST:]
    eva, uniform = EVA(RANK).fit(model, train), EVA(RANK, rho=1.0).fit(model, train)
    kaiming = _random(model, uniform, seed, orthonormal=False)
    orthonormal = _random(model, uniform, seed, orthonormal=True)
    pissa = _pissa(model, uniform)
    arms = {
        "EVA": (eva, None),
        "EVA, rho 1": (uniform, None),
        "LoRA": (kaiming, None),
        "random orthonormal": (orthonormal, None),
        "PiSSA": (pissa, pissa.replace(b={path: -b for path, b in pissa.b.items()})),
        "EVA from facts": (EVA(RANK).fit(model, _facts(seed)), None),
    }
    found = {name: _trained(model, *arm, train, choice, test, seed) for name, arm in arms.items()}
    early, final = {k: v[0] for k, v in found.items()}, {k: v[1] for k, v in found.items()}
    ours, base = _slope(model, uniform, train), _slope(model, kaiming, train)
    with torch.no_grad():
        plain = losses(model, test)
        with model.edit(eva.edit()):
            same = torch.equal(losses(model, test), plain)
    return Comparison(
        ours=early["EVA"],
        baseline=early["LoRA"],
        control=early["EVA from facts"],
        gates={
            "final loss is at most 1 standard error above LoRA's": _not_worse(final["EVA"], final["LoRA"]),
            "final loss is at most 1 standard error above that of random orthonormal A": _not_worse(
                final["EVA"], final["random orthonormal"]
            ),
            "gradient norm of B at step 0 is >= 1.3 times LoRA's at equal |A|": ours >= 1.3 * base,
            "outputs at step 0 are those of the model, bit for bit": same,
            "ranks sum to the budget": sum(eva.ranks.values()) == RANK * len(uniform.ranks),
        },
        extra={
            "loss before": float(plain.mean()),
            "gradient norm over LoRA's": ours / base,
            "largest rank": max(eva.ranks.values()),
            **{f"early, {name}": fmean(values) for name, values in early.items()},
            **{f"final, {name}": fmean(values) for name, values in final.items()},
            **{f"lr, {name}": values[2] for name, values in found.items()},
        },
    )


def example(model: Model) -> LowRankAdapter:
    """The start of a small adapter for two stories told backwards."""
    return EVA(rank=2, batch_size=2).fit(model, ["lamp the at looked mia .", "sad felt she ."], layers="*.0.*")


def _trained(
    model: Model,
    start: LowRankAdapter,
    taken: LowRankAdapter | None,
    train: list[str],
    choice: list[str],
    test: list[str],
    seed: int,
) -> tuple[list[float], list[float], float]:
    """Early and final loss of each test text, and the rate; `taken` is an adapter that stays as it is."""
    best, lowest = ([0.0], [0.0], 0.0), math.inf
    for lr in RATES:
        early: list[float] = []

        def look(step: int, adapter: LowRankAdapter, early: list[float] = early) -> None:
            if step == EARLY:
                early.extend(_losses(model, adapter, test))

        with model.edit(*([] if taken is None else [taken.edit()])):
            adapter = train_adapter(
                model, start, train, steps=STEPS, lr=lr, batch_size=BATCH, seed=seed, after_step=look
            )
            chosen = fmean(_losses(model, adapter, choice))
            if chosen < lowest:
                best, lowest = (early, _losses(model, adapter, test), lr), chosen
    return best


def _losses(model: Model, adapter: LowRankAdapter, texts: list[str]) -> list[float]:
    with torch.no_grad(), model.edit(adapter.edit()):
        return losses(model, texts).tolist()


def _not_worse(ours: list[float], other: list[float]) -> bool:
    gaps = [a - b for a, b in zip(ours, other, strict=True)]
    return fmean(gaps) <= stdev(gaps) / len(gaps) ** 0.5


def _slope(model: Model, start: LowRankAdapter, texts: list[str]) -> float:
    """Norm of the gradient in all B, every A scaled to Frobenius norm 1."""
    a = {path: x / x.norm() for path, x in start.a.items()}
    b = {path: x.clone().requires_grad_() for path, x in start.b.items()}
    with torch.enable_grad(), model.edit(start.replace(a=a, b=b).edit()):
        slopes = torch.autograd.grad(losses(model, texts).mean(), list(b.values()))
    return float(torch.stack([slope.norm() for slope in slopes]).norm())


def _random(model: Model, like: LowRankAdapter, seed: int, orthonormal: bool) -> LowRankAdapter:
    """LoRA's own start, uniform in +-1/sqrt(in), or orthonormal rows."""
    rng, a = generator(seed), {}
    for path, x in like.a.items():
        if orthonormal:
            a[path] = torch.linalg.qr(torch.randn(x.T.shape, generator=rng))[0].T.contiguous()
        else:
            a[path] = (2 * torch.rand(x.shape, generator=rng) - 1) / x.shape[1] ** 0.5
    return LowRankAdapter(a=a, b=like.b, scale=like.scale, fingerprint=model.fingerprint)


def _pissa(model: Model, like: LowRankAdapter) -> LowRankAdapter:
    """B A = the principal part of W, its singular values shared evenly."""
    a: dict[str, Tensor] = {}
    b: dict[str, Tensor] = {}
    for path, layer in block_linears(model).items():
        left, values, right = torch.linalg.svd(weight_of(layer).detach(), full_matrices=False)
        root = values[:RANK].sqrt()
        a[path], b[path] = root[:, None] * right[:RANK], left[:, :RANK] * root
    return LowRankAdapter(a=a, b=b, scale=like.scale, fingerprint=model.fingerprint)


def _reversed_stories(seed: int) -> list[str]:
    """Short stories with the words of each sentence in reverse order."""
    truth, texts, i = World(0).truth, [], 0
    while len(texts) < N_TRAIN + N_CHOICE + N_TEST:
        words = stories.document(source(9000 + seed, i), truth).text.split()
        i += 1
        if len(words) <= LONGEST:
            sentences = " ".join(words).removesuffix(" .").split(" . ")
            texts.append(" ".join(" ".join(s.split()[::-1]) + " ." for s in sentences))
    return texts


def _facts(seed: int) -> list[str]:
    truth = World(0).truth
    return [knowledge.facts(source(9000 + seed, i), truth).text for i in range(N_TRAIN)]

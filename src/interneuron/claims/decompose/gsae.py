"""Gradient SAEs on planted features and on `lm`: at equal sparsity the loss survives the splice better than with TopK.

(a) 64 planted directions in 32 dimensions, each on in 4 % of the rows. The check leaves the problem open; it is set so
that what it asks for exists. Half are large (3 times the other half) and lie in 16 dimensions which the classifier
does not read, so that they have no effect at all: a linear reader of 32 small directions of full rank would feel every
large one. The classifier, fitted by logistic regression, names the strongest small feature of a row, or none: with two
classes all gradients lie on one line and cannot tell one direction from another. The rows carry noise 2.5 times as long
as a small feature, for without noise TopK finds small features as well as large ones as soon as k has room for them.
As many features as planted, k their mean number active a row (2.6, so 3), and four such problems a seed. Noise, k and
beta were set on development seeds, where the gradient helps: with noise of 1.5 and less both trainings find the same,
with k below the number of large features that are active the method loses the small ones, which TopK then finds in
part. The share of the large half found is in the numbers. A further training is fed the gradients of other rows.

(b) Mid-layer residual stream of `lm`, 8 features a dimension, k in 4, 8, 16, equal steps. Numbers are the loss
recovered when reconstructions are spliced in, per k, the mean of two trainings from different starts, chosen without
gradients at inference, which know the next token; the same with gradients is reported. The standard error of a gap is
that of its mean over held-out texts. The control feeds gradients of other rows. The effect of a feature is the KL
divergence of the predictions when its decoder row is added in held-out texts, over 64 features drawn among those that
fire, of each training. The same beta, the method's own, serves (a) and (b).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interneuron.artifacts import Dictionary
from interneuron.claims import Claim, Comparison
from interneuron.core.seeds import generator
from interneuron.decompose.gsae import GradientSAE, encode_with_gradient, latent_effect
from interneuron.loading import load
from interneuron.model.model import Model
from interneuron.organisms import tinyworld as tw
from interneuron.parts.activation_rows import corpus_losses, splice, token_rows_and_gradients
from interneuron.parts.sparse_training import SparseCoding, train_dictionary

CLAIM = Claim(
    slug="gsae",
    organism="lm",
    paper="GPT-2 small, layer 7: keeps the loss better than TopK at equal sparsity, fewer inactive features",
    better="higher",
    unit="loss recovered",
    minutes=20,
    why=(
        "On planted features the method finds 0.41 to 0.53 of the small, effective half and TopK 0.10 to 0.13; fed "
        "the gradients of other rows it finds 0.10 to 0.15. On `lm` nothing of it is seen: over 18 pairs of "
        "trainings the loss recovered rises by 0.0001, which is not told from nothing, and by a standard error at "
        "one, none and one of three k where the check wants two; the squared error is 0 to 2 % lower; a feature's "
        "effect is 0.96 to 1.02 times TopK's where 1.1 is wanted; choosing with gradients at inference keeps less "
        "of the loss, not more. What development seeds showed: a row in which an influential small feature takes "
        "the place of a large one leaves the large one in the error, and the squared error then turns the small "
        "feature's direction towards it. A planted dictionary that is right at the start comes apart so where k is "
        "below the number of large features active (mean cosine 0.79 after 400 steps with k = 1 and beta = 1; "
        "TopK's stays at 0.99), and training from random directions loses whatever the gradient points at. The "
        "planted gain is there where noise hides the small features, the gradient tells which of them is present, k "
        "has room for the large ones and beta is small; with less noise both find the same. Tried on `lm` besides, "
        "on one development seed with 1500 steps: beta = 0.1 and 1, gradients of unit length for each token, "
        "gradients only after the first 40 % of the steps; loss recovered and effects stay within 0.003 and 2 % of "
        "TopK's. Tried on other models, one development seed, at the rate at which TopK's squared error is least "
        "(1e-2): `lm-gpt2`, three layers of six, with k = 4, 8, 16 and beta = 0.3, 1, 3: the loss recovered changes "
        "by -0.0004 to 0.0006, by more than a standard error at one k of three; `lm-post`, where 57 % of the "
        "variance lies in directions with a tenth of the influence (`lm` 31 %): 0.0019 at beta = 1, twice its "
        "standard error, less from beta = 3 on; `lm-deep`, seven layers of twelve: nothing. At 3e-3 on `lm-gpt2` "
        "the gradient helps (0.0017, 0.0007, 0.0003), but there TopK is less well trained: at 1e-2 it keeps more "
        "than either at k = 4 and 16. The influence of the features that fire is 0.93 to 1.05 times TopK's at every "
        "beta up to 3. The paper trains far longer, on GPT-2 small."
    ),
)

TOKENS, HELD = 2e5, 1.5e4
KS = (4, 8, 16)
STEPS, BATCH, STARTS = 800, 1024, 2
PROBLEMS, ROWS, ON, LARGE, NOISE, UNREAD = 4, 40_000, 0.04, 3.0, 2.5, 16
ARMS = ("ours", "topk", "shuffled")


def claim(seed: int) -> Comparison:
    """The planted features, then three sparsities on `lm`."""
    found = _found(seed)
    model = load(CLAIM.organism)
    site = f"layers.{model.n_layers // 2}.resid_post"
    x, grad = token_rows_and_gradients(model, _texts(TOKENS, seed), site, 1)
    spliced = _Spliced(model, site, _texts(HELD, 10_000 + seed))
    kept: dict[str, list[Tensor]] = {name: [] for name in (*ARMS, "with gradient")}
    numbers: dict[str, list[float]] = {
        f"{what} {name}": [] for what in ("fvu", "dead", "effect") for name in ("ours", "topk")
    }
    for k in KS:
        trained = [_trained(x, grad, k, seed * STARTS + start) for start in range(STARTS)]
        for name in ARMS:
            kept[name].append(_mean([spliced.recovered(arms[name]) for arms in trained]))
        kept["with gradient"].append(_mean([spliced.recovered(arms["ours"], gradients=True) for arms in trained]))
        for name in ("ours", "topk"):
            quality = [arms[name].quality(spliced.rows) for arms in trained]
            numbers[f"fvu {name}"].append(sum(q["fvu"] for q in quality) / STARTS)
            numbers[f"dead {name}"].append(sum(q["dead"] for q in quality) / STARTS)
            numbers[f"effect {name}"].append(sum(spliced.effect(arms[name], seed) for arms in trained) / STARTS)
    gaps = [ours - topk for ours, topk in zip(kept["ours"], kept["topk"], strict=True)]
    errors = [float(gap.std()) / len(gap) ** 0.5 for gap in gaps]
    higher = sum(float(gap.mean()) >= error for gap, error in zip(gaps, errors, strict=True))
    mean = {name: [float(each.mean()) for each in rows] for name, rows in kept.items()}
    return Comparison(
        ours=mean["ours"],
        baseline=mean["topk"],
        control=mean["shuffled"],
        gates={
            "planted: recovery of the effective half at least 1.5 times TopK's": found["small, ours"]
            >= max(1.5 * found["small, topk"], 1 / 32),  # nothing is not 1.5 times nothing
            "the loss recovered is higher than TopK's by a standard error on at least 2 of 3 k": higher >= 2,
            "squared error is at most 10 % worse": all(
                a <= 1.1 * b for a, b in zip(numbers["fvu ours"], numbers["fvu topk"], strict=True)
            ),
            "mean KL effect of a feature is at least 1.1 times TopK's": sum(numbers["effect ours"])
            >= 1.1 * sum(numbers["effect topk"]),
            "beta = 0 equals TopK bit for bit": _same_at_zero(x[:2000], grad[:2000], seed),
        },
        extra={
            **{f"planted, found of the {name}": value for name, value in found.items()},
            **{f"with gradient at inference, k={k}": v for k, v in zip(KS, mean["with gradient"], strict=True)},
            **{f"standard error of the gap, k={k}": v for k, v in zip(KS, errors, strict=True)},
            **{f"{name}, k={k}": v for name, row in numbers.items() for k, v in zip(KS, row, strict=True)},
        },
    )


def example(model: Model) -> Dictionary:
    """A small dictionary on a few documents."""
    return GradientSAE(2, k=8, steps=30, batch_size=256).fit(model, _texts(1500, 1), "layers.1.resid_post")


def tensors(n: int, width: int, seed: int) -> dict[str, Tensor]:
    """Random rows and gradients."""
    rows = torch.randn(2, n, width, generator=generator(seed))
    return {"x": rows[0], "grad": rows[1]}


def apply(x: Tensor, grad: Tensor) -> Dictionary:
    """Train on rows and gradients that have been read already."""
    return GradientSAE(2, k=2, steps=10, batch_size=8).fit_activations(x, grad)


class _Spliced:
    """What reconstructions at a site leave of the loss on held-out texts, text by text."""

    def __init__(self, model: Model, site: str, texts: list[str]) -> None:
        self.model, self.site, self.texts = model, site, texts
        # Text by text, so that a text's rows are those its splice is given: no padding, the first token among them.
        pairs = [token_rows_and_gradients(model, [text], site, 0) for text in texts]
        self.rows, self.grads = torch.cat([x[1:] for x, _ in pairs]), [grad for _, grad in pairs]
        self.zero = corpus_losses(model, texts, splice(model, site, torch.zeros_like, 1))
        self.span = float((self.zero - corpus_losses(model, texts)).mean())

    def recovered(self, found: Dictionary, gradients: bool = False) -> Tensor:
        """Share of the loss recovered [texts], whose mean is (zero - spliced) / (zero - clean)."""
        if not gradients:
            losses = corpus_losses(self.model, self.texts, splice(self.model, self.site, found.reconstruct, 1))
            return (self.zero - losses) / self.span
        each = []
        for text, grad in zip(self.texts, self.grads, strict=True):

            def rebuild(x: Tensor, grad: Tensor = grad) -> Tensor:
                return found.decode(encode_with_gradient(found, x, grad))

            each.append(corpus_losses(self.model, [text], splice(self.model, self.site, rebuild, 1)))
        return (self.zero - torch.cat(each)) / self.span

    def effect(self, found: Dictionary, seed: int) -> float:
        """Mean effect of 64 features that fire, added in 16 texts of middle length."""
        alive = (found.encode(self.rows) > 0).any(0).nonzero().flatten()
        drawn = alive[torch.randperm(len(alive), generator=generator(seed))[:64]].tolist()
        texts = self.texts[len(self.texts) // 2 :][:16]
        return float(latent_effect(self.model, found.replace(site=self.site), texts, drawn).mean())


@dataclass(frozen=True)
class _Planted:
    """Rows, gradients of the classifier's loss there, and the planted directions."""

    x: Tensor
    grad: Tensor
    large: Tensor
    small: Tensor


def _trained(x: Tensor, grad: Tensor, k: int, seed: int) -> dict[str, Dictionary]:
    options: dict[str, Any] = {
        "expansion": 8,
        "k": k,
        "steps": STEPS,
        "batch_size": BATCH,
        "seed": seed,
        "dead_after": 20_000,
    }
    return _arms(x, grad, seed, options)


def _arms(x: Tensor, grad: Tensor, seed: int, options: dict[str, Any]) -> dict[str, Dictionary]:
    """The method, TopK, and the method with the gradients of other rows, alike in all else."""
    other = grad[torch.randperm(len(grad), generator=generator(seed))]
    return {
        "ours": GradientSAE(**options).fit_activations(x, grad),
        "topk": GradientSAE(beta=0.0, **options).fit_activations(x, grad),
        "shuffled": GradientSAE(**options).fit_activations(x, other),
    }


def _found(seed: int) -> dict[str, float]:
    """Share of the small and of the large directions found (cosine above 0.9), the mean over several problems."""
    shares: dict[str, float] = {}
    for problem in range(seed * PROBLEMS, (seed + 1) * PROBLEMS):
        planted = _planted(problem)
        options: dict[str, Any] = {
            "expansion": 2,
            "k": 3,
            "steps": 3000,
            "batch_size": 512,
            "lr": 2e-3,
            "seed": problem,
        }
        for name, found in _arms(planted.x, planted.grad, problem, options).items():
            rows = torch.nn.functional.normalize(found.decoder, dim=1)
            for half, wanted in (("small", planted.small), ("large", planted.large)):
                share = float(((wanted @ rows.T).amax(1) > 0.9).double().mean())
                shares[f"{half}, {name}"] = shares.get(f"{half}, {name}", 0.0) + share / PROBLEMS
    return shares


def _planted(seed: int) -> _Planted:
    """32 large directions in the classifier's null space, 32 small ones anywhere, noise, and the gradients."""
    rng = generator(seed, "planted features")
    unread, read = torch.linalg.qr(torch.randn(32, 32, generator=rng)).Q.split([UNREAD, 32 - UNREAD], dim=1)
    unit = torch.nn.functional.normalize
    large = unit(torch.randn(32, UNREAD, generator=rng), dim=1) @ unread.T
    small = unit(torch.randn(32, 32, generator=rng), dim=1)
    codes = (torch.rand(ROWS, 64, generator=rng) < ON) * (0.5 + torch.rand(ROWS, 64, generator=rng))
    sizes = torch.tensor([LARGE, 1.0]).repeat_interleave(32)
    x = (codes * sizes) @ torch.cat([large, small]) + NOISE / 32**0.5 * torch.randn(ROWS, 32, generator=rng)
    strongest = codes[:, 32:].max(1)
    labels = torch.where(strongest.values > 0, strongest.indices, 32)
    weight, bias = _classifier(x @ read, labels)
    excess = (x @ read @ weight.T + bias).softmax(1) - torch.nn.functional.one_hot(labels, 33)
    return _Planted(x, excess @ weight @ read.T, large, small)


def _classifier(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logistic regression: weight [33 D] and bias [33]."""
    weight, bias = torch.zeros(33, x.shape[1], requires_grad=True), torch.zeros(33, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(x @ weight.T + bias, labels) + 1e-4 * weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return weight.detach(), bias.detach()


def _mean(rows: list[Tensor]) -> Tensor:
    return torch.stack(rows).mean(0)


def _texts(tokens: float, seed: int) -> list[str]:
    return sorted((doc.text for doc in tw.corpus(tokens, seed=seed)), key=len)


def _same_at_zero(x: Tensor, grad: Tensor, seed: int) -> bool:
    """Whether beta = 0 trains what the plain TopK trainer does."""
    ours = GradientSAE(2, k=4, beta=0.0, steps=5, batch_size=256, seed=seed).fit_activations(x, grad)
    f = ours.n_features
    plain = SparseCoding(f, k=4, lr=1e-3, batch_size=256, steps=5, seed=seed, dead_after=50_000, aux_k=min(512, f))
    rival = train_dictionary(x, plain)
    return all(torch.equal(t, rival.tensors()[name]) for name, t in ours.tensors().items())

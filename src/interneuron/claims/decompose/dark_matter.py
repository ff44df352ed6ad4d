"""Dark matter of SAEs on `lm`: much of the error is linear in the activation, and larger dictionaries keep the rest.

(a) Calibration: inputs are reconstructions plus noise, and what is missed is made of the rarest features and of noise
put on the reconstruction; over a grid of all three the linear part must follow the first two, the nonlinear part the
third. As in the authors' simulation up to half of the features are left out, and both kinds of noise go in five steps
from none to a multiple of the activations' root mean square: 1.5, the smallest of 1, 1.5 and 2 at which the two parts
can be told apart on development seeds. Noise on an input is not linear in it where the activations vary more than the
noise: up to 1 cross-talk was 0.33, in an earlier run up to 0.3 it was 0.48. Cross-talk is the absolute rank correlation
of each part with the other's truth. (b) Mid-layer residual stream, 2, 8 and 32 features a dimension, k = 4 throughout,
100,000 tokens. k is 2.5 % of the width, as in the paper, whose dictionaries have about 100 active features of 3,584
dimensions; an earlier run with k = 16, a tenth of the width, left so small an error at 32d that its vector was less
predictable (R2 0.17) than the check asks. Numbers: by how much the error's linear part (ours) and its nonlinear part
(baseline) fall from the smallest to the largest dictionary, as factors. The control is a reconstruction from principal
components, whose error is wholly linear.
"""

from __future__ import annotations

import torch
from torch import Tensor

from interneuron.artifacts import Dictionary, Report
from interneuron.claims import Claim, Comparison
from interneuron.core.seeds import generator
from interneuron.decompose.dark_matter import dark_matter_report, error_split, gradient_pursuit, norm_predictability
from interneuron.loading import load
from interneuron.model.model import Model
from interneuron.organisms import tinyworld as tw
from interneuron.parts.activation_rows import token_rows
from interneuron.parts.sparse_training import SparseCoding, train_dictionary

CLAIM = Claim(
    slug="dark_matter",
    organism="lm",
    paper="half of the error and over 90 % of its norm are linear in the input; the rest is constant in width",
    better="higher",
    unit="fall from 2d to 32d",
    minutes=3,
    why=(
        "To be read with it: of the norm of the error 51 to 65 % is predictable here, where the paper has over 90 "
        "%, and gradient pursuit does not lower the nonlinear error (1.02 to 1.12 times the encoder's). 300 steps "
        "at a rate of 1e-3 are short. Tried afterwards under one development seed, all gates hold at a rate of 1e-2 "
        "as well, but after 1,000 steps at 3e-3 the error of the largest dictionary is less predictable (R2 0.16) "
        "than the 0.2 of the check, and its nonlinear part falls too (1.6-fold, the linear part 4.9-fold)."
    ),
)

TOKENS, HELD = 1e5, 1e4
K, BATCH, STEPS = 4, 1024, 300
LEVELS = (0.0, 0.375, 0.75, 1.125, 1.5)


def claim(seed: int) -> Comparison:
    """The calibration grid, then three widths on `lm`."""
    model = load(CLAIM.organism)
    site = f"layers.{model.n_layers // 2}.resid_post"
    x, held = (token_rows(model, _texts(n, s), site, 1) for n, s in ((TOKENS, seed), (HELD, 10_000 + seed)))
    saes = {width: _train(x, width * x.shape[1], seed) for width in (2, 8, 32)}
    split = {width: error_split(held, d.reconstruct(held), seed=seed) for width, d in saes.items()}
    norm = {width: norm_predictability(held, held - d.reconstruct(held), seed) for width, d in saes.items()}
    sizes = torch.stack([(held - saes[width].reconstruct(held)).norm(dim=1) for width in (2, 32)])
    correlation = float(torch.corrcoef(sizes)[0, 1])
    fall = {part: getattr(split[2], part) / getattr(split[32], part) for part in ("fvu_linear", "fvu_nonlinear")}
    again = _retrained(x, saes[8], seed)
    harder = again["nonlinear"] >= 1.1 * again["linear"]
    ranks, cross = _calibration(saes[8], held, seed)
    directions = torch.linalg.svd(x - x.mean(0), full_matrices=False)[2][: x.shape[1] // 2]
    flat = error_split(held, (held - x.mean(0)) @ directions.T @ directions + x.mean(0), bias=True, seed=seed)
    pursued = _pursuit_gain(saes[8], held, split[8].fvu_nonlinear, seed)
    return Comparison(
        ours=fall["fvu_linear"],
        baseline=fall["fvu_nonlinear"],
        gates={
            "calibration: both parts follow their truth, Spearman at least 0.9": min(ranks) >= 0.9,
            "calibration: cross-talk at most 0.3": max(cross) <= 0.3,
            "R2 of the error lies between 0.2 and 0.9 at every width": all(0.2 < s.r2 < 0.9 for s in split.values()),
            "R2 of the error's norm is above that of the vector and at least 0.5": all(
                norm[w] > split[w].r2 and norm[w] >= 0.5 for w in norm
            ),
            "error norms of the smallest and the largest dictionary correlate at 0.5 or more": correlation >= 0.5,
            "trained on the nonlinear error, a dictionary has at least 1.1 times the FVU of one on the linear": harder,
            "control: the error of principal components is linear, R2 above 0.99": flat.r2 > 0.99,
        },
        extra={
            **{f"R2, {w}d": s.r2 for w, s in split.items()},
            **{f"norm R2, {w}d": v for w, v in norm.items()},
            **{f"linear FVU, {w}d": s.fvu_linear for w, s in split.items()},
            **{f"nonlinear FVU, {w}d": s.fvu_nonlinear for w, s in split.items()},
            "error correlation": correlation, "R2 of PCA": flat.r2,
            "FVU trained on linear": again["linear"], "FVU trained on nonlinear": again["nonlinear"],
            "calibration, linear": ranks[0], "calibration, nonlinear": ranks[1], "cross-talk": max(cross),
            "nonlinear FVU by pursuit / by encoder": pursued,
        },
    )  # fmt: skip


def example(model: Model) -> Report:
    """Two small dictionaries on a few documents."""
    texts = _texts(2000, 1)
    site = "layers.1.resid_post"
    x = token_rows(model, texts, site, 1)
    configs = [SparseCoding(n, k=4, batch_size=256, steps=20) for n in (64, 128)]
    return dark_matter_report(model, site, [train_dictionary(x, c) for c in configs], texts[:24])


def tensors(n: int, width: int, seed: int) -> dict[str, Tensor]:
    """Rows and a reconstruction of them."""
    x = torch.randn(4 * n, width, generator=generator(seed))
    return {"x": x, "x_hat": 0.8 * x.relu()}


def apply(x: Tensor, x_hat: Tensor) -> dict[str, Tensor]:
    """Split the error."""
    return error_split(x, x_hat).tensors()


def _texts(tokens: float, seed: int) -> list[str]:
    return sorted((doc.text for doc in tw.corpus(tokens, seed=seed)), key=len)


def _train(x: Tensor, n_features: int, seed: int, steps: int = STEPS) -> Dictionary:
    return train_dictionary(x, SparseCoding(n_features, k=K, batch_size=BATCH, steps=steps, seed=seed))


def _retrained(x: Tensor, found: Dictionary, seed: int) -> dict[str, float]:
    """FVU of new dictionaries trained on each part of the error."""
    split = error_split(x, found.reconstruct(x), seed=seed)
    parts = {"linear": split.linear, "nonlinear": split.nonlinear}
    return {name: _train(rows, 4 * x.shape[1], seed, 150).quality(rows[:8000])["fvu"] for name, rows in parts.items()}


def _calibration(found: Dictionary, x: Tensor, seed: int) -> tuple[list[float], list[float]]:
    """Spearman of each estimated part with its truth, and with the other's."""
    from scipy.stats import spearmanr

    rng = generator(seed)
    f = found.encode(x)
    clean = found.decode(f)
    scale = float((clean - clean.mean(0)).square().mean().sqrt())
    counts = (f > 0).sum(0)
    order = counts.argsort()[int((counts == 0).sum()) :]  # from the rarest to the commonest of those that fire
    rows = []
    for cut in (0.0, 0.25, 0.5):
        gone = found.decode(f.clone().index_fill_(1, order[: int(cut * len(order))], 0.0))
        for noise_act in LEVELS:
            inputs = clean + noise_act * scale * torch.randn(x.shape, generator=rng)
            for noise_rec in LEVELS:
                split = error_split(inputs, gone + noise_rec * scale * torch.randn(x.shape, generator=rng), seed=seed)
                truth = float((inputs - gone).square().mean()), (noise_rec * scale) ** 2
                size = float((inputs - inputs.mean(0)).square().mean())  # shares of the variance back to energies
                rows.append((split.fvu_linear * size, split.fvu_nonlinear * size, *truth))
    linear, nonlinear, true_linear, true_nonlinear = (list(column) for column in zip(*rows, strict=True))

    def rank(a: list[float], b: list[float]) -> float:
        return float(spearmanr(a, b).statistic)

    ranks = [rank(linear, true_linear), rank(nonlinear, true_nonlinear)]
    return ranks, [abs(rank(linear, true_nonlinear)), abs(rank(nonlinear, true_linear))]


def _pursuit_gain(found: Dictionary, x: Tensor, nonlinear: float, seed: int) -> float:
    """Nonlinear FVU with codes by pursuit over that with codes by the encoder."""
    part = x[:3000]
    codes = gradient_pursuit(part * found.scale - found.decoder_bias, found.decoder, K)
    return error_split(part, found.decode(codes), seed=seed).fvu_nonlinear / nonlinear

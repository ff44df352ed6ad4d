"""Dark matter of SAEs on `lm`: how much of the error is linear in the activation, and does the rest fall with width?

(a) Calibration: inputs are reconstructions plus noise, and what is missed is made of the rarest features and of noise
put on the reconstruction; over a grid of all three the linear part must follow the first two, the nonlinear part the
third. As in the authors' simulation up to half of the features are left out, and both kinds of noise go in five steps
from none to a multiple of the activations' root mean square: 1.5, the smallest of 1, 1.5 and 2 at which the two parts
can be told apart on development seeds. Noise on an input is not linear in it where the activations vary more than the
noise: up to 1 cross-talk was 0.33, in an earlier run up to 0.3 it was 0.48. Cross-talk is the absolute rank correlation
of each part with the other's truth.

(b) Mid-layer residual stream, 2, 8 and 32 features a dimension, k = 3 throughout. The authors' figures over width take
dictionaries with 60 active features of 3,584 dimensions, which is 2.7 of 160. Trained on 100,000 tokens; all numbers
come from 100,000 tokens of other texts, half of which the linear maps are fitted on (the authors take 150,000 for
each). Early positions are skipped in measuring, as the check and the authors have it (200 of 1,024): here the first 8
tokens of a text, where texts have 35 on average; on a development seed the share of the variance that a dictionary
leaves rises over these (0.017 to 0.055 at 32d) and hardly from there to the 64th (0.064 to 0.074). A run on seeds 6 to
8 skipped the first token alone, by which R2 of the error is about 0.02 lower. By how much the error's linear part
(ours) and its nonlinear part (baseline) fall from the smallest to the largest dictionary, as factors. The control is a
reconstruction from principal components, whose error is wholly linear.

Rate and steps are chosen by the squared error on 20,000 tokens of a development seed that nothing else uses. Share of
the variance left there, and R2 of the error vector on further texts of that seed:

| k, steps | rate | 2d | 8d | 32d |
| --- | --- | --- | --- | --- |
| 4, 1,000 | 1e-3 | 0.137, R2 0.41 | 0.084, 0.24 | 0.071, 0.19 |
| 4, 1,000 | 3e-3 | 0.121, 0.38 | 0.070, 0.21 | 0.056, 0.17 |
| 4, 1,000 | 1e-2 | 0.118, 0.36 | 0.072, 0.22 | 0.064, 0.19 |
| 4, 1,000 | 3e-2 | 0.126, 0.38 | 0.097, 0.29 | 0.123, 0.36 |
| 4, 3,000 | 3e-3 |  |  | 0.047, 0.14 |
| 3, 3,000 | 1e-3 |  | 0.0765, 0.22 | 0.0604, 0.17 |
| 3, 3,000 | 3e-3 (taken) | 0.1243, 0.38 | 0.0766, 0.22 | 0.0597, 0.18 |
| 3, 3,000 | 1e-2 | 0.1256, 0.38 |  |  |

The less a dictionary leaves, the less of it is linear; the largest still gains by more steps. Many of its features fall
silent (two thirds and more at 3e-3); neither drawing them anew sooner (after 20,480 silent rows instead of 200,000)
nor an auxiliary loss for them lowers the error, 0.056 and 0.058 for 0.056 at 1,000 steps. With k = 2 or 1 more of the
error is linear (0.43, 0.30, 0.26 and 0.56, 0.48, 0.45 at 2d, 8d and 32d, on another development seed), but its norm is
foretold no better (0.56, 0.52, 0.49 and 0.55, 0.57, 0.59).

Dictionaries of the error have the width and the k of the one whose error it is (8d), and are trained for 1,000 steps on
the rows the map is fitted on, tested on the others, each at the best of three rates on the development seed: of 1e-3,
3e-3 and 1e-2 the share left was 0.27, 0.23, 0.24 on the linear error, and 0.61, 0.55, 0.54 on the nonlinear error.
"""

from __future__ import annotations

import torch
from torch import Tensor

from interneuron.artifacts import Dictionary, Report
from interneuron.claims import Claim, Comparison
from interneuron.core.seeds import generator
from interneuron.decompose.dark_matter import (
    ErrorSplit,
    dark_matter_report,
    error_split,
    gradient_pursuit,
    norm_predictability,
)
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
    minutes=9,
    why=(
        "Thin at one place: at 32d the vector of the error has an R2 of 0.201, 0.210 and 0.206, to lie above 0.2 "
        "(0.41 to 0.42 at 2d, 0.25 at 8d). A run on seeds 6 to 8, which measured from the second token of a text on "
        "and not from the ninth, had 0.196, 0.180 and 0.186 there and was partly reproduced; all other criteria "
        "held in it too. That skipping raises R2 was known when the number was fixed: on a development seed it is "
        "0.180, 0.198 and 0.219 at 32d with 1, 8 and 16 tokens skipped. Training is not at its very end at 32d, and "
        "more steps would lower R2 further: with k = 4 on a development seed from 0.17 after 1,000 to 0.14 after "
        "3,000. So the smaller an error, the less of it is linear, and the paper's half is seen at 2d only. The "
        "linear part falls 4.0-fold with width, the nonlinear one 1.5-fold, so it is not constant as in the paper. "
        "Of the error's norm 53 to 62 % is predictable, where the paper has over 90 %. A dictionary of the "
        "nonlinear error leaves 2.2 times what one of the linear error leaves. Of the features at 32d, 72 to 73 % "
        "are silent. Gradient pursuit does not lower the nonlinear error (1.02 to 1.04 times the encoder's)."
    ),
)

TOKENS, WIDTHS, MIDDLE = 1e5, (2, 8, 32), 8  # tokens to train on; features a dimension
MEASURED, SKIP = 1.33e5, 8  # tokens to measure on, of which 1e5 remain without the first of each text
K, BATCH, STEPS, RATE = 3, 1024, 3000, 3e-3
ERROR_STEPS, ERROR_RATES = 1000, {"linear": 3e-3, "nonlinear": 1e-2}
ROWS = 10_000  # of calibration and pursuit
LEVELS = (0.0, 0.375, 0.75, 1.125, 1.5)


def claim(seed: int) -> Comparison:
    """Three widths on `lm`, and the calibration grid."""
    model = load(CLAIM.organism)
    site = f"layers.{model.n_layers // 2}.resid_post"
    x = token_rows(model, _texts(TOKENS, seed), site, 1)
    held = token_rows(model, _texts(MEASURED, 10_000 + seed), site, SKIP)
    small, large = min(WIDTHS), max(WIDTHS)
    saes = {width: _train(x, width * x.shape[1], seed, STEPS, RATE) for width in WIDTHS}
    rebuilt, dead = {}, {}
    for width, found in saes.items():
        rebuilt[width], dead[width] = _rebuilt(found, held)
    split = {width: error_split(held, y, seed=seed) for width, y in rebuilt.items()}
    norm = {width: norm_predictability(held, held - y, seed) for width, y in rebuilt.items()}
    correlation = float(torch.corrcoef(torch.stack([(held - rebuilt[w]).norm(dim=1) for w in (small, large)]))[0, 1])
    fall = {part: getattr(split[small], part) / getattr(split[large], part) for part in ("fvu_linear", "fvu_nonlinear")}
    again = _retrained(split[MIDDLE], saes[MIDDLE].n_features, seed)
    harder = again["nonlinear"] >= 1.1 * again["linear"]
    some = held[split[MIDDLE].test[:ROWS]]
    ranks, cross = _calibration(saes[MIDDLE], some, seed)
    directions = torch.linalg.svd(x - x.mean(0), full_matrices=False)[2][: x.shape[1] // 2]
    flat = error_split(held, (held - x.mean(0)) @ directions.T @ directions + x.mean(0), bias=True, seed=seed)
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
            **{f"dead, {w}d": share for w, share in dead.items()},
            "error correlation": correlation, "R2 of PCA": flat.r2,
            "FVU trained on linear": again["linear"], "FVU trained on nonlinear": again["nonlinear"],
            "calibration, linear": ranks[0], "calibration, nonlinear": ranks[1], "cross-talk": max(cross),
            "nonlinear FVU by pursuit / by encoder": _pursuit_gain(saes[MIDDLE], some, seed),
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


def _train(x: Tensor, n_features: int, seed: int, steps: int, rate: float) -> Dictionary:
    config = SparseCoding(n_features, k=K, lr=rate, batch_size=BATCH, steps=steps, seed=seed)
    return train_dictionary(x, config)


@torch.no_grad()
def _rebuilt(found: Dictionary, x: Tensor) -> tuple[Tensor, float]:
    """The reconstruction, and the share of features that no row uses."""
    used, parts = torch.zeros(found.n_features, dtype=torch.bool), []
    for rows in x.split(4096):
        f = found.encode(rows)
        used |= (f > 0).any(0)
        parts.append(found.decode(f))
    return torch.cat(parts), 1 - float(used.float().mean())


def _retrained(split: ErrorSplit, n_features: int, seed: int) -> dict[str, float]:
    """FVU, on the rows kept for measuring, of new dictionaries trained on each part of the error of the others."""
    fit = torch.ones(len(split.linear), dtype=torch.bool).index_fill_(0, split.test, False)
    found = {}
    for name, rate in ERROR_RATES.items():
        rows: Tensor = getattr(split, name)
        new = rows[split.test]
        left = new - _rebuilt(_train(rows[fit], n_features, seed, ERROR_STEPS, rate), new)[0]
        found[name] = float(left.square().sum() / (new - new.mean(0)).square().sum())
    return found


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


def _pursuit_gain(found: Dictionary, x: Tensor, seed: int) -> float:
    """Nonlinear FVU with codes by pursuit over that with codes by the encoder."""
    codes = gradient_pursuit(x * found.scale - found.decoder_bias, found.decoder, K)
    ways = (found.decode(codes), _rebuilt(found, x)[0])
    pursued, encoded = (error_split(x, y, seed=seed).fvu_nonlinear for y in ways)
    return pursued / encoded

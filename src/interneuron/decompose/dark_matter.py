"""Dark matter of sparse autoencoders: which part of what a dictionary misses is a linear function of the input.

Paper: Engels, Riggs, Tegmark: Decomposing The Dark Matter of Sparse Autoencoders (2024),
    https://arxiv.org/abs/2410.14670

Idea: the error of a dictionary is not noise. A good part of it, and nearly all of its size, can be predicted from the
    activation by a linear map; that part shrinks in larger dictionaries. What remains is the nonlinear error.

Equations:
    (1)  e = x - y(x),  W = argmin |e - x W|^2 on half of the rows;  R2 of e on the other half
    (2)  linear error x W,  nonlinear error n = e - x W
    (3)  FVU = |e|^2 / |x - mean x|^2,  nonlinear FVU = 1 - R2(x; y + x W),  linear FVU = FVU - nonlinear FVU
    (4)  norm test: R2 of |e|^2 regressed on x with intercept
    (5)  gradient pursuit: add argmax_j d_j . r; move the active codes along c = D_S r by <D_S' c, r> / |D_S' c|^2, >= 0

Shapes: x, y, e [N D], W [D D], D (decoder) [F D], codes [N F].

Cost: one least-squares problem, O(N D^2), in float64; pursuit O(N F D) per active feature.

Departures: W has an intercept when `bias` is set, the original has none. Rows are split by a seed. Scores R2 weigh all
    coordinates together (the sum of squares over D), so a coordinate of large variance counts for more. Pursuit takes
    one line step per added feature, then clamps at 0.

Use:
    model = inn.load("lm")
    x = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    print(inn.decompose.error_split(x, x.relu()).r2, inn.decompose.norm_predictability(x, x - x.relu()))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interneuron.artifacts import Artifact, Dictionary, Report, plots
from interneuron.core.cards import Card
from interneuron.core.errors import InputError, ShapeError
from interneuron.core.seeds import generator
from interneuron.model.model import Model
from interneuron.parts.activation_rows import corpus_losses, place, splice, token_rows

CARD = Card(
    id=141,
    slug="dark_matter",
    family="decompose",
    kind="metric",
    exports=("error_split", "ErrorSplit", "norm_predictability", "gradient_pursuit", "dark_matter_report"),
    paper="Decomposing The Dark Matter of Sparse Autoencoders",
    authors="Engels, Joshua and Riggs, Logan and Tegmark, Max",
    year=2024,
    link="https://arxiv.org/abs/2410.14670",
    purpose="How much of what a sparse dictionary misses is linear in the activation, and what the rest costs",
    claim="Half of the error, over 90 % of its norm are linearly predictable; the rest hardly falls with width",
)


class ErrorSplit(Artifact):
    """The error of a reconstruction in its linear and its nonlinear part (eq. 1 to 3).

    weight  [D D]           bias  [D], 0 unless asked for
    linear, nonlinear  [N D] for all rows          test  [M] the rows kept out of the fit, on which numbers are taken
    r2                      of the error vector    fvu_total, fvu_linear, fvu_nonlinear
    """

    weight: Tensor
    bias: Tensor
    linear: Tensor
    nonlinear: Tensor
    test: Tensor
    r2: float
    fvu_total: float
    fvu_linear: float
    fvu_nonlinear: float

    def plot(self) -> plots.Plot:
        """Both parts as shares of the variance."""
        return plots.bars(
            "What the dictionary misses",
            ["linear", "nonlinear"],
            [self.fvu_linear, self.fvu_nonlinear],
            y_label="share of the variance",
        )


def error_split(x: Float[Tensor, "N D"], x_hat: Float[Tensor, "M E"], bias: bool = False, seed: int = 0) -> ErrorSplit:
    """Split x - x_hat into what is linear in x and the rest; fitted on half of the rows, measured on the other half.

    Raises:
        ShapeError: x and x_hat are not matrices of one shape.
        InputError: fewer than 4 rows, NaN, or rows that are all the same.
    """
    _check(x, x_hat, "x_hat")
    rows, error = x.double(), x.double() - x_hat.double()
    fit, test = _halves(len(x), seed)
    design = _design(rows, bias)
    weight = _solve(design[fit], error[fit])
    linear = design @ weight
    nonlinear = error - linear
    variance = (rows[test] - rows[test].mean(0)).square().sum()
    if not float(variance) > 0:
        raise InputError(f"the {len(test)} rows kept for measuring are all the same. Give activations that differ")
    centred = (error[test] - error[test].mean(0)).square().sum()
    dtype = torch.promote_types(x.dtype, torch.float32)
    total, rest = (float(part[test].square().sum() / variance) for part in (error, nonlinear))
    return ErrorSplit(
        weight=weight[: x.shape[1]].to(dtype),
        bias=(weight[-1] if bias else torch.zeros(x.shape[1], dtype=torch.float64)).to(dtype),
        linear=linear.to(dtype),
        nonlinear=nonlinear.to(dtype),
        test=test,
        r2=1 - float(nonlinear[test].square().sum() / centred.clamp_min(1e-300)) if float(centred) else 1.0,
        fvu_total=total,
        fvu_linear=total - rest,
        fvu_nonlinear=rest,
        slug=CARD.slug,
    )


def norm_predictability(x: Float[Tensor, "N D"], v: Float[Tensor, "M E"], seed: int = 0) -> float:
    """R2, on held-out rows, of |v|^2 regressed on x with an intercept (eq. 4).

    Raises ShapeError and InputError as `error_split`.
    """
    _check(x, v, "v")
    design, size = _design(x.double(), True), v.double().square().sum(1, keepdim=True)
    fit, test = _halves(len(x), seed)
    left = (size[test] - design[test] @ _solve(design[fit], size[fit])).square().sum()
    total = (size[test] - size[test].mean()).square().sum()
    return 1 - float(left / total) if float(total) else 1.0


def gradient_pursuit(x: Float[Tensor, "N D"], decoder: Float[Tensor, "F E"], k: int) -> Float[Tensor, "N F"]:
    """Non-negative codes of k features a row, for a dictionary of unit rows: a better encoder at inference (eq. 5).

    x is what the decoder is to reproduce: activations less the decoder bias, in the units of the decoder.
    Raises ShapeError when widths differ, InputError for k out of range.
    """
    if x.ndim != 2 or decoder.ndim != 2 or x.shape[1] != decoder.shape[1]:
        raise ShapeError(f"x {list(x.shape)} and decoder {list(decoder.shape)}: expected [N D] and [F D].")
    if not 0 < k <= len(decoder):
        raise InputError(f"k={k}: expected 1 to {len(decoder)} features.")
    codes, active = torch.zeros(len(x), len(decoder)), torch.zeros(len(x), len(decoder), dtype=torch.bool)
    rows, x = decoder.float(), x.float()
    residual = x
    for _ in range(k):
        slope = residual @ rows.T
        best = slope.masked_fill(active, -torch.inf).argmax(1, keepdim=True)
        active.scatter_(1, best, True)
        move = slope * active
        along = move @ rows
        step = (along * residual).sum(1, keepdim=True) / along.square().sum(1, keepdim=True).clamp_min(1e-12)
        codes = (codes + step * move).clamp_min(0)
        residual = x - codes @ rows
    return codes


def dark_matter_report(
    model: Model, site: str, dictionaries: Sequence[Dictionary], corpus: Any, skip: int = 1, seed: int = 0
) -> Report:
    """Error split, norm test and downstream cost of several dictionaries of one site, from small to large.

    Numbers per dictionary in the table "dictionaries": features, fvu, its linear and nonlinear part, r2 of the error,
    R2 of its norm, the loss with y, y + x W and y + n spliced in; `error_correlation` compares |e| of the first and
    the last.

    Raises InputError for no dictionaries, and what `error_split` raises.
    """
    if not dictionaries:
        raise InputError("dark_matter_report() was given no dictionaries. Train two or more of different widths.")
    name = place(model, site)
    x = token_rows(model, corpus, name, skip)
    table, norms = [], []
    for found in dictionaries:
        with torch.no_grad():
            y = found.reconstruct(x)
        split = error_split(x, y, seed=seed)
        norms.append((x - y).norm(dim=1))
        row: dict[str, float] = {"features": found.n_features, "fvu": split.fvu_total, "linear": split.fvu_linear}
        row |= {"nonlinear": split.fvu_nonlinear, "r2": split.r2, "norm_r2": norm_predictability(x, x - y, seed)}
        for label, rebuild in _rebuilds(found, split).items():
            row[f"loss_{label}"] = float(corpus_losses(model, corpus, splice(model, name, rebuild, skip)).mean())
        table.append(row)
    curves = {part: [row[part] for row in table] for part in ("linear", "nonlinear")}
    return Report(
        title="Dark matter of sparse autoencoders",
        slug=CARD.slug,
        site=name,
        fingerprint=model.fingerprint,
        numbers={
            "loss_clean": float(corpus_losses(model, corpus).mean()),
            "error_correlation": float(torch.corrcoef(torch.stack([norms[0], norms[-1]]))[0, 1]),
        },
        tables={"dictionaries": table},
        plots={
            "widths": plots.lines(
                "What dictionaries miss, by width",
                [float(row["features"]) for row in table],
                curves,
                x_label="features",
                y_label="share of the variance",
            )
        },
    )


def _rebuilds(found: Dictionary, split: ErrorSplit) -> dict[str, Any]:
    """y, y without the nonlinear error (y + x W), and y without the linear one (y + n = x - x W)."""

    def with_linear(x: Tensor) -> Tensor:
        return found.reconstruct(x) + x @ split.weight + split.bias

    return {
        "dictionary": found.reconstruct,
        "with_linear": with_linear,
        "with_nonlinear": lambda x: x - x @ split.weight - split.bias,
    }


def _halves(n: int, seed: int) -> tuple[Tensor, Tensor]:
    order = torch.randperm(n, generator=generator(seed))
    return order[: n // 2], order[n // 2 :]


def _design(x: Tensor, bias: bool) -> Tensor:
    return torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1) if bias else x


def _solve(a: Tensor, b: Tensor) -> Tensor:
    """Least squares of the smallest norm, also where a is rank deficient."""
    return torch.linalg.lstsq(a, b, driver="gelsd").solution


def _check(x: Tensor, other: Tensor, name: str) -> None:
    if x.ndim != 2 or x.shape != other.shape:
        raise ShapeError(f"x {list(x.shape)} and {name} {list(other.shape)}: expected both [N D]. Use the same rows.")
    if len(x) < 4:
        raise InputError(f"{len(x)} rows: expected at least 4, half to fit and half to measure. Read more tokens")
    if not bool(torch.isfinite(x).all()) or not bool(torch.isfinite(other).all()):
        raise InputError(f"x or {name} holds NaN or infinity. Drop those rows, or look at the model")

"""Massive activations over training: the largest value of every layer, its growth law, and what decides its parameters.

Paper: Gallego-Feliciano, McClendon, Morinelli, Zervoudakis, Saravanos: Hidden Dynamics of Massive Activations in
    Transformer Training (2025), https://arxiv.org/abs/2508.03616

Idea: the largest activation of a layer, measured in medians, emerges during training along a smooth curve of five
    parameters: a logarithm that a slow exponential may bend down again, over a floor. The parameters follow from the
    architecture, so that how massive the activations of a model will be can be told before training.

Equations:
    (1)  rho_l(t) = max |h| / median |h|                      stream after layer l at training step t
    (2)  f(t) = A exp(-lam tau) log(tau) + K,   tau = gamma t + t0,   lam, gamma >= 0, t0 > 0;   t in units of the last
    (3)  peak at tau log(tau) = 1 / lam;   tau = exp(W(1 / lam)), W: Lambert's function
    (4)  AIC = n log(SSE / n) + 2 p
    (5)  rivals: a + b log(t) with p = 2, and a + b (1 - exp(-c t)) with p = 3
    (6)  for relative errors: residuals weighted by 1 / f(t), f the fit with equal weights

Shapes: steps [N], ratios [N] of one layer or [N L].

Cost: a forward pass per checkpoint; some 50 ms per fitted curve.

Departures: the form of eq. 2 is recalled, not checked against the paper [inferred]. A and K enter linearly and are
    solved exactly for every (lam, gamma, t0); these three are started at the 20 best points of a grid [inferred]. Where
    lam is near 0, t0 trades against K and A: K is kept between half the smallest ratio seen and twice the largest, as a
    curve that still rises has not reached it, and a ridge of 0.001 on A picks the smaller amplitude [inferred]. The
    predictor is a random forest.

Use:
    model = inn.load("lm-small")
    report = inn.measure.massive_activations(model, ["she felt happy .", "the lamp was lovely today ."])
    law = inn.measure.fit_growth_law([1, 2, 4, 8, 16, 32, 64], [5.0, 9.0, 30.0, 60.0, 70.0, 55.0, 40.0])
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from interneuron.artifacts import Report, plots
from interneuron.core.cards import Card
from interneuron.core.errors import InputError, ShapeError, need
from interneuron.core.seeds import numpy_rng
from interneuron.model.model import Model
from interneuron.parts.massive_activations import streams

CARD = Card(
    id=64,
    slug="massive_activation_dynamics",
    family="measure",
    kind="metric",
    exports=("fit_growth_law", "GrowthLaw", "massive_activations", "massive_dynamics", "GrowthLawPredictor"),
    paper="Hidden Dynamics of Massive Activations in Transformer Training",
    authors="Gallego-Feliciano, Jorge and McClendon, Aaron and Morinelli, Juan and Zervoudakis, S. and Saravanos, A.",
    year=2025,
    link="https://arxiv.org/abs/2508.03616",
    purpose="Follow the largest activations of every layer through training and predict how massive they become",
    claim="A five-parameter law fits their emergence in Pythia; its steady state follows from the architecture",
    needs=("sklearn",),
)

PARAMETERS = ("A", "lam", "gamma", "t0", "K")
N_STARTS = 20
RIDGE = 1e-3
SMALLEST = 0.02  # of the largest ratio: what a weight of eq. 6 divides by at least
LOW, HIGH = np.log([1e-3, 0.1, 0.05]), np.log([10.0, 300.0, 20.0])  # lam, gamma, t0
Row = Mapping[str, float]
Array = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class GrowthLaw:
    """A fitted curve (eq. 2); `scale` is the last step, in whose units gamma counts.

    peak    step of the largest value, None where the curve has no peak within training
    aic     eq. 4, and `rivals` the AIC of the curves of eq. 5
    """

    A: float
    lam: float
    gamma: float
    t0: float
    K: float
    r2: float
    aic: float
    peak: float | None
    scale: float
    rivals: dict[str, float]

    def __call__(self, steps: Sequence[float]) -> list[float]:
        """The value of the law at training steps."""
        theta = np.log([self.lam, self.gamma, self.t0])
        t = np.asarray(steps, dtype=float) / self.scale
        return [float(v) for v in self.A * _basis(theta, t) + self.K]

    @property
    def shape(self) -> str:
        """`early peak` where the curve rises and falls within training, `log growth` elsewhere."""
        return "log growth" if self.peak is None else "early peak"


def fit_growth_law(steps: Sequence[float], ratios: Sequence[float], relative: bool = False) -> GrowthLaw:
    """Fit eq. 2 to the ratios of one layer at increasing training steps.

    relative  the ratios err by a share of their size, not all alike: eq. 6, in R2 and AIC and for the rivals too

    Raises:
        ShapeError: not one ratio per step, or fewer than six.
        InputError: steps that do not increase from above 0, or ratios that are not finite or all alike.
    """
    if len(steps) != len(ratios) or len(steps) < 6:
        raise ShapeError(f"{len(steps)} steps and {len(ratios)} ratios: expected six pairs or more. Give one per step")
    t, y = np.asarray(steps, dtype=float), np.asarray(ratios, dtype=float)
    if not (np.isfinite(t).all() and t[0] > 0 and (np.diff(t) > 0).all()):
        raise InputError("steps: expected finite numbers that increase from above 0. Sort them and leave step 0 out")
    if not np.isfinite(y).all() or not np.ptp(y):
        raise InputError("ratios: expected finite numbers that are not all alike. Look at the checkpoints")
    scale, top = float(t[-1]), float(np.abs(y).max())
    t, y = t / scale, y / top
    w = np.ones_like(y)
    theta, amplitude, floor, fitted = _search(t, y, w)
    if relative:
        w = 1 / np.maximum(fitted, SMALLEST)
        w /= math.sqrt(_squares(w) / len(w))
        theta, amplitude, floor, fitted = _search(t, y, w)
    lam, gamma, t0 = map(float, np.exp(theta))
    rest = _squares(w * (y - fitted))
    return GrowthLaw(
        A=amplitude * top,
        lam=lam,
        gamma=gamma,
        t0=t0,
        K=floor * top,
        r2=1 - rest / _squares(w * (y - np.average(y, weights=w**2))),
        aic=_aic(rest, len(y), len(PARAMETERS)),
        peak=_peak(amplitude, lam, gamma, t0, scale),
        scale=scale,
        rivals={"log": _log_line(t, y, w), "saturating": _saturating(t, y, w)},
    )


def massive_activations(model: Model, inputs: Any, k: int = 3, batch_size: int = 64) -> Report:
    """Return the ratio of eq. 1 and the k largest activations of every layer, with their token and channel.

    inputs  texts, or token ids [N T] without padding; tokens are counted through all of them
    """
    if k < 1:
        raise InputError(f"k={k}: expected at least one activation per layer. Choose e.g. k=3")
    rows: list[dict[str, Any]] = []
    ratios: list[float] = []
    for layer, h in enumerate(streams(model, inputs, batch_size)[1:]):
        size = h.abs()
        median = float(size.median())
        ratios.append(float(size.max()) / median)
        top = size.flatten().topk(min(k, size.numel())).indices.tolist()
        rows += [
            {
                "layer": layer,
                "rank": rank,
                "value": float(h.flatten()[i]),
                "over median": abs(float(h.flatten()[i])) / median,
                "token": i // h.shape[1],
                "channel": i % h.shape[1],
            }
            for rank, i in enumerate(top, 1)
        ]
    names = [str(i) for i in range(len(ratios))]
    title = "Largest over median activation"
    return Report(
        title=title,
        slug=CARD.slug,
        numbers={"largest ratio": max(ratios), "layer": ratios.index(max(ratios))},
        tables={"largest": rows, "layers": [{"layer": i, "ratio": ratio} for i, ratio in enumerate(ratios)]},
        plots={"ratio": plots.bars(title, names, ratios, x_label="layer", y_label="ratio")},
        fingerprint=model.fingerprint,
    )


def massive_dynamics(steps: Sequence[float], ratios: Sequence[Sequence[float]]) -> Report:
    """Fit the growth law of every layer to ratios [N L] measured at N checkpoints, and tell early peaks from growth.

    Table `layers`: the five parameters, r2, peak, shape and the AIC of the law and of its rivals.
    """
    table = np.asarray(ratios, dtype=float)
    if table.ndim != 2 or len(table) != len(steps):
        raise ShapeError(
            f"ratios {list(table.shape)} for {len(steps)} steps: expected one row per step. Transpose them"
        )
    laws = [fit_growth_law(steps, column) for column in table.T.tolist()]
    rows = [{"layer": i, **_as_row(law)} for i, law in enumerate(laws)]
    series = {f"layer {i}": column for i, column in enumerate(table.T.tolist())}
    fitted = {f"layer {i}, law": law(steps) for i, law in enumerate(laws)}
    r2 = [law.r2 for law in laws]
    plot = plots.lines(
        "Largest over median activation", list(steps), {**series, **fitted}, x_label="step", y_label="ratio"
    )
    return Report(
        title="Massive activations over training",
        slug=CARD.slug,
        numbers={
            "median r2": float(np.median(r2)),
            "early peaks": sum(law.shape == "early peak" for law in laws),
            "best by AIC": sum(law.aic < min(law.rivals.values()) for law in laws),
        },
        tables={"layers": rows},
        plots={"curves": plot},
    )


@dataclasses.dataclass(frozen=True)
class GrowthLawPredictor:
    """Random forests from the architecture of (model, layer) pairs to the parameters of their growth laws.

    seed     of the forests          n_trees  in each
    """

    seed: int = 0
    n_trees: int = 100
    forests: dict[str, Any] = dataclasses.field(default_factory=dict, repr=False)
    features: tuple[str, ...] = ()

    def fit(self, architectures: Sequence[Row], parameters: Sequence[Row]) -> GrowthLawPredictor:
        """Return the predictor fitted to one row of features and one of parameters per (model, layer).

        Rows are mappings of one set of names, or data frames of these columns.
        """
        (names, x), (targets, y) = _table("architectures", architectures), _table("parameters", parameters)
        if len(x) != len(y):
            raise ShapeError(f"{len(x)} architectures and {len(y)} rows of parameters: expected as many. Pair them")
        ensemble = need("sklearn.ensemble", extra="learn")
        forests = {
            name: ensemble.RandomForestRegressor(self.n_trees, random_state=self.seed).fit(x, y[:, i])
            for i, name in enumerate(targets)
        }
        return dataclasses.replace(self, forests=forests, features=names)

    def predict(self, architectures: Sequence[Row]) -> list[dict[str, float]]:
        """The parameters of each row of features."""
        if not self.forests:
            raise InputError("GrowthLawPredictor.predict() before fit(): expected fitted forests. Call fit first")
        names, x = _table("architectures", architectures)
        if names != self.features:
            raise InputError(
                f"architectures have {names}, fitted were {self.features}. Give the same features in order"
            )
        found = {name: forest.predict(x) for name, forest in self.forests.items()}
        return [{name: float(values[i]) for name, values in found.items()} for i in range(len(x))]

    def partial_dependence(self, architectures: Sequence[Row], feature: str, values: Sequence[float]) -> Report:
        """Mean prediction over the given rows when one feature is set to each value."""
        if feature not in self.features:
            raise InputError(
                f"feature={feature!r} was not fitted, expected one of {', '.join(self.features)}. Choose one"
            )
        rows = _table("architectures", architectures)[1]
        changed = [[dict(zip(self.features, row, strict=True)) | {feature: v} for row in rows.tolist()] for v in values]
        means = [
            {name: float(np.mean([row[name] for row in self.predict(part)])) for name in self.forests}
            for part in changed
        ]
        series = {name: [mean[name] for mean in means] for name in self.forests}
        title = f"Parameters of the growth law by {feature}"
        table = [{feature: v, **mean} for v, mean in zip(values, means, strict=True)]
        plot = plots.lines(title, list(values), series, x_label=feature)
        return Report(title=title, slug=CARD.slug, tables={"dependence": table}, plots={"dependence": plot})

    def cross_validate(
        self, architectures: Sequence[Row], parameters: Sequence[Row], models: Sequence[str], permute: bool = False
    ) -> dict[str, float]:
        """R2 of each parameter when every model is predicted from the others; `permute` shuffles the features' rows."""
        if len(set(models)) < 2 or len(models) != len(architectures):
            raise ShapeError(f"{len(models)} names of {len(set(models))} models: expected one per row, of two or more")
        names, x = _table("architectures", architectures)
        if permute:
            x = x[numpy_rng(self.seed, "permute").permutation(len(x))]
        rows = [dict(zip(names, row, strict=True)) for row in x.tolist()]
        told: list[dict[str, float]] = [{} for _ in rows]
        for name in dict.fromkeys(models):
            kept = [i for i, other in enumerate(models) if other != name]
            left = [i for i, other in enumerate(models) if other == name]
            fitted = self.fit([rows[i] for i in kept], [parameters[i] for i in kept])
            for i, row in zip(left, fitted.predict([rows[i] for i in left]), strict=True):
                told[i] = row
        targets, y = _table("parameters", parameters)
        wrong = [[row[name] for name in targets] for row in told] - y
        rest, spread = np.square(wrong).sum(0), np.square(y - y.mean(0)).sum(0)
        return {name: float(1 - a / b) for name, a, b in zip(targets, rest, spread, strict=True)}


def _basis(theta: Array, t: Array) -> Array:
    """exp(-lam tau) log(tau) of eq. 2 for parameters [... 3] and times [N], as [... N]."""
    lam, gamma, t0 = np.moveaxis(np.exp(theta), -1, 0)[..., None]
    tau = gamma * t + t0
    return np.exp(-lam * tau) * np.log(tau)


def _linear(g: Array, y: Array, w: Array) -> tuple[Array, Array]:
    """A and K that fit y [N] best on each basis [G N], K within bounds, with a ridge on A in units of the basis."""
    v = w**2
    mean = np.average(g, axis=1, weights=v)[:, None]
    spread = np.square(g - mean) @ v
    amplitude = ((g - mean) @ (v * (y - np.average(y, weights=v)))) / (spread + RIDGE**2)
    floor = np.average(y, weights=v) - amplitude * mean[:, 0]
    bounded = np.clip(floor, y.min() / 2, 2 * y.max())
    moved = (g @ (v * y) - bounded * (g @ v)) / (np.square(g) @ v + RIDGE**2)
    return np.where(bounded == floor, amplitude, moved), bounded


def _search(t: Array, y: Array, w: Array) -> tuple[Array, float, float, Array]:
    """log(lam, gamma, t0), A, K and the values of the best fit: 20 best points of a grid, each followed to its minimum.

    w  weight of each residual
    """
    from scipy.optimize import least_squares

    axes = [np.linspace(low, high, 14) for low, high in zip(LOW, HIGH, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    basis = _basis(grid, t)
    amplitude, floor = _linear(basis, y, w)
    rest = np.square(w * (amplitude[:, None] * basis + floor[:, None] - y)).sum(1)

    def wrong(theta: Array) -> Array:
        g = _basis(theta, t)[None]
        a, k = _linear(g, y, w)
        return np.append(w * (a * g[0] + k - y), RIDGE * a)

    ends = [least_squares(wrong, grid[i], bounds=(LOW, HIGH), max_nfev=60) for i in np.argsort(rest)[:N_STARTS]]
    theta = min(ends, key=lambda end: float(end.cost)).x
    g = _basis(theta, t)
    a, k = (float(x[0]) for x in _linear(g[None], y, w))
    return theta, a, k, a * g + k


def _peak(amplitude: float, lam: float, gamma: float, t0: float, scale: float) -> float | None:
    """The step of eq. 3, when it lies within training."""
    from scipy.special import lambertw

    step = (math.exp(float(lambertw(1 / lam).real)) - t0) / gamma
    return step * scale if amplitude > 0 and 0 < step < 1 else None


def _log_line(t: Array, y: Array, w: Array) -> float:
    """AIC of a + b log(t)."""
    line = np.polyval(np.polyfit(np.log(t), y, 1, w=w), np.log(t))
    return _aic(_squares(w * (y - line)), len(y), 2)


def _saturating(t: Array, y: Array, w: Array) -> float:
    """AIC of a + b (1 - exp(-c t)): a and b are linear, c is searched."""
    from scipy.optimize import minimize_scalar

    def rest(log_c: float) -> float:
        g = 1 - np.exp(-math.exp(log_c) * t)
        columns = np.stack([w, w * g], 1)
        return _squares(w * y - columns @ np.linalg.lstsq(columns, w * y, rcond=None)[0])

    grid = np.linspace(math.log(0.1), math.log(300.0), 40)
    start = float(min(grid, key=rest))
    best = minimize_scalar(rest, bounds=(start - 0.3, start + 0.3), method="bounded")
    return _aic(float(best.fun), len(y), 3)


def _aic(rest: float, n: int, p: int) -> float:
    """eq. 4"""
    return n * math.log(max(rest, 1e-30) / n) + 2 * p


def _squares(x: Array) -> float:
    return float(np.square(x).sum())


def _as_row(law: GrowthLaw) -> dict[str, Any]:
    numbers = {name: getattr(law, name) for name in (*PARAMETERS, "r2", "peak", "shape", "aic")}
    return numbers | {f"aic, {name}": value for name, value in law.rivals.items()}


def _table(what: str, rows: Any) -> tuple[tuple[str, ...], Array]:
    """Column names and values of a data frame or of mappings with the same names."""
    records: list[Mapping[str, float]] = rows.to_dict("records") if hasattr(rows, "to_dict") else list(rows)
    if not records:
        raise InputError(f"{what}: no rows, expected one per model and layer. Give some")
    names = tuple(records[0])
    if any(set(row) != set(names) for row in records):
        raise InputError(f"{what}: rows differ in their names, expected {', '.join(names)} in each. Complete them")
    return names, np.array([[float(row[name]) for name in names] for row in records])

"""Gaussian anomaly detection: how unusual an input is, by the activations of a frozen network on normal inputs.

Paper: Rippel, Mertens, Merhof: Modeling the Distribution of Normal Data in Pre-Trained Deep Features for Anomaly
    Detection (2020), https://arxiv.org/abs/2005.14140

Idea: the averaged activations of a trained network on normal inputs are nearly Gaussian, so the Mahalanobis distance
    to them scores what is abnormal. The directions in which normal inputs hardly vary carry most of the signal.

Equations:
    (1)  f_s = mean of the activation of site s over places or tokens, [D]
    (2)  Sigma = (1 - delta) S + delta tr(S)/D I,  S = sum_i (f_i - mu)(f_i - mu)'/N
         delta = min(1, b / d),  d = |S - tr(S)/D I|^2,  b = sum_i |(f_i - mu)(f_i - mu)' - S|^2 / N^2   Ledoit, Wolf
    (3)  m_s = sqrt((f - mu)' Sigma^-1 (f - mu)) = |W (f - mu)|,   W = Lambda^-1/2 V',  Sigma = V Lambda V'
    (4)  score = sum_s m_s
    (5)  pca: the leading rows of V' that hold `var` of the variance; npca: the others; Sigma fitted again there
    (6)  threshold of one site: sqrt(quantile of chi^2 with R degrees of freedom at 1 - fpr)

Shapes: f [N D] of each site, W [R D] with R <= D, scores [N], scores by site [N S].

Cost: one forward pass per input; O(N D^2 + D^3) per site and fold.

Departures: the quantile of eq. 6 is wrong for a sum over sites. There the threshold is a quantile of the scores of
    normal inputs that their Gaussian had not seen: `folds` times it is fitted without a part of them, so none is spent
    on the threshold [inferred]. `sed` takes the diagonal of the shrunk Sigma, so channels that never vary among
    the normal inputs count and divide by no zero [inferred]. The one-class SVM, a rival, is left to scikit-learn.
    Augmentation is the caller's: pass altered copies along.

Use:
    model = inn.load("cnn")
    normal = inn.measure.GaussianAD().fit(model, torch.rand(40, 3, 32, 32))
    print(normal.score(model, torch.zeros(2, 3, 32, 32)) > normal.threshold(fpr=0.05))
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interneuron.artifacts import Artifact, Report, plots
from interneuron.core.cards import Card
from interneuron.core.errors import InputError, ShapeError
from interneuron.core.seeds import generator
from interneuron.model.model import Model
from interneuron.parts.batches import batches

CARD = Card(
    id=23,
    slug="gaussian_ad",
    family="measure",
    kind="fitter",
    exports=("GaussianAD", "NormalGaussians"),
    paper="Modeling the Distribution of Normal Data in Pre-Trained Deep Features for Anomaly Detection",
    authors="Rippel, Oliver and Mertens, Patrick and Merhof, Dorit",
    year=2020,
    link="https://arxiv.org/abs/2005.14140",
    purpose="Score how abnormal an input is from activations alone, fitted on normal inputs, and say which directions",
    claim="AUROC 95.8 on MVTec AD; the components of smallest variance tell normal from abnormal",
)

Rows = dict[str, Float[Tensor, "N _"]]


class NormalGaussians(Artifact):
    """One Gaussian per site, fitted on normal inputs.

    mean        site -> [D]
    whitening   site -> [R D]; rows are components, from the largest variance to the smallest
    variance    site -> [R], shrunk variance along each row (of each channel for sed; ones for l2)
    held_out    [N S], distance of every normal input under Gaussians fitted without it
    """

    mean: dict[str, Tensor]
    whitening: dict[str, Tensor]
    variance: dict[str, Tensor]
    held_out: Tensor

    def validate(self) -> None:
        """Maps of the same sites, and shapes that fit together."""
        for name in self.sites:
            shapes = [list(x[name].shape) if name in x else [] for x in (self.mean, self.whitening, self.variance)]
            if shapes[1] != shapes[2] + shapes[0] or len(shapes[1]) != 2:
                raise ShapeError(f"{name}: mean, whitening, variance are {shapes}, expected [D], [R D], [R]. Fit again")
        if self.held_out.ndim != 2 or self.held_out.shape[1] != len(self.sites):
            raise ShapeError(f"held_out {list(self.held_out.shape)}, expected [N {len(self.sites)}]. Fit again")

    def score(self, model: Model, inputs: Any) -> Float[Tensor, " N"]:
        """How abnormal each input is: the sum over sites of its distances (eq. 4).

        An input that makes the network give NaN scores NaN. Raises FingerprintMismatch for another model, InputError
        for no inputs.
        """
        return self.score_per_site(model, inputs).sum(1)

    def score_per_site(self, model: Model, inputs: Any) -> Float[Tensor, "N S"]:
        """Distance of each input at each site (eq. 3). Raises as `score`."""
        return self.score_rows(self._rows(model, inputs))

    def score_rows(self, rows: Rows) -> Float[Tensor, "N S"]:
        """Distances of averaged activations read elsewhere, site -> [N D].

        Raises ShapeError when a site is missing or has another width.
        """
        return torch.stack([z.norm(dim=1) for z in self.components_of(rows).values()], 1)

    def components_of(self, rows: Rows) -> Rows:
        """W (f - mu) of each site, [N R]: the coordinates whose squares add up to the squared distance."""
        found = {}
        for name in self.sites:
            x, mean = rows.get(name), self.mean[name]
            if x is None or x.ndim != 2 or x.shape[1] != len(mean):
                got = "nothing" if x is None else list(x.shape)
                raise ShapeError(
                    f"rows of {name}: expected [N {len(mean)}], got {got}. Read the sites it was fitted on"
                )
            found[name] = (x.to(mean) - mean) @ self.whitening[name].T
        return found

    def threshold(self, fpr: float = 0.05, method: Literal["empirical", "chi2"] = "empirical") -> float:
        """The score that a share `fpr` of normal inputs exceeds.

        empirical  by the held-out distances of the normal inputs
        chi2       from the Gaussian alone; for one site, without sed or l2 (eq. 6)

        Raises:
            InputError: fpr outside (0, 1), too small for the number of normal inputs, or chi2 where it does not hold.
        """
        if not 0 < fpr < 1 or method not in ("empirical", "chi2"):
            raise InputError(f"threshold(fpr={fpr}, method={method!r}): expected 0 < fpr < 1, 'empirical' or 'chi2'")
        if method == "chi2":
            if len(self.sites) != 1 or self.fitted.get("reduce") in ("sed", "l2"):
                raise InputError(
                    f"chi2 holds for a full Gaussian at one site, this has {len(self.sites)} with "
                    f"reduce={self.fitted.get('reduce')!r}. Use method='empirical'"
                )
            return _chi2_distance(len(self.variance[self.sites[0]]), fpr)
        scores = self.held_out.sum(1).sort().values
        # with one more normal input, each of N + 1 ranks is equally likely: the k-th score is exceeded with
        # probability 1 - k / (N + 1)
        rank = math.ceil((1 - fpr) * (len(scores) + 1))
        if rank > len(scores):
            raise InputError(f"fpr={fpr} needs more than {math.ceil(1 / fpr) - 1} normal inputs, got {len(scores)}")
        return float(scores[rank - 1])

    def false_alarms(self, fpr: float = 0.05) -> dict[str, float]:
        """Share of held-out normal inputs beyond the chi^2 quantile at each site; `fpr` where they are Gaussian."""
        limits = [_chi2_distance(len(self.variance[name]), fpr) for name in self.sites]
        share = (self.held_out > self.held_out.new_tensor(limits)).double().mean(0)
        return dict(zip(self.sites, share.tolist(), strict=True))

    def explain(self, model: Model, inputs: Any) -> Report:
        """Which principal components the inputs are abnormal in.

        Table "components": site, component, its variance, and the mean square of the inputs along it in units of that
        variance; about 1 for normal inputs. The picture shows the site of the largest distance.
        """
        squares = {name: z.square().mean(0) for name, z in self.components_of(self._rows(model, inputs)).items()}
        table = [
            {"site": s, "component": i, "variance": v, "mean square": q}
            for s in self.sites
            for i, (v, q) in enumerate(zip(self.variance[s].tolist(), squares[s].tolist(), strict=True))
        ]
        top = max(self.sites, key=lambda name: float(squares[name].mean()))
        low = squares[top][len(squares[top]) // 2 :].sum() / squares[top].sum()
        title = f"Where the inputs are abnormal at {top}"
        series = {"inputs": squares[top].tolist(), "expected of normal": [1.0] * len(squares[top])}
        axes = {"x_label": "component, from the largest variance", "y_label": "mean square"}
        return Report(
            slug=CARD.slug,
            title=title,
            site=self.site,
            fingerprint=self.fingerprint,
            numbers={"site": top, "share of the low-variance half": float(low)},
            tables={"components": table},
            plots={"components": plots.lines(title, range(len(squares[top])), series, **axes)},
        )

    def plot(self) -> plots.Plot:
        """How far from Gaussian the normal inputs are: actual false alarms at a nominal 5 % of each site."""
        rates = self.false_alarms(0.05)
        title = "False alarms at a nominal 5 %, by site"
        return plots.bars(title, list(rates), list(rates.values()), y_label="share of held-out normal inputs")

    def _rows(self, model: Model, inputs: Any) -> Rows:
        self.check_model(model)
        return mean_activations(model, inputs, self.sites, int(self.fitted["batch_size"]))


@dataclass(frozen=True)
class GaussianAD:
    """Gaussians of averaged activations.

    sites       one address, a glob, or several
    reduce      none: the full Gaussian; pca, npca: leading components or their complement (eq. 5);
                sed: variances only, no correlations; l2: plain distance to the mean
    var         share of the variance that pca keeps and npca drops
    shrinkage   delta of eq. 2; None estimates it
    folds       parts in which normal inputs are held out for the threshold
    seed        of the parts
    """

    sites: str | tuple[str, ...] = "conv.*.out"
    reduce: Literal["none", "pca", "npca", "sed", "l2"] = "none"
    var: float = 0.95
    shrinkage: float | None = None
    folds: int = 5
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.reduce not in ("none", "pca", "npca", "sed", "l2"):
            raise InputError(f"GaussianAD: reduce={self.reduce!r}, expected none, pca, npca, sed or l2")
        if not 0 < self.var < 1 or not 0 <= (self.shrinkage or 0) <= 1 or self.folds < 2 or self.batch_size < 1:
            raise InputError(f"{self}: expected 0 < var < 1, 0 <= shrinkage <= 1, folds >= 2 and batch_size >= 1")

    def fit(self, model: Model, inputs: Any) -> NormalGaussians:
        """Fit on normal inputs: images [N ...], texts, or token ids [N T].

        Raises:
            SiteNotFound: no site of that name.
            InputError: fewer than two inputs per fold, NaN, or a covariance that has no inverse.
        """
        asked = (self.sites,) if isinstance(self.sites, str) else self.sites
        names = list(dict.fromkeys(site.name for pattern in asked for site in model.sites(pattern)))
        rows = mean_activations(model, inputs, names, self.batch_size)
        return self.fit_rows(rows).replace(fingerprint=model.fingerprint)

    def fit_rows(self, rows: Rows) -> NormalGaussians:
        """Fit on averaged activations read elsewhere, site -> [N D]. Raises InputError as `fit`, and ShapeError."""
        sizes = {len(x) if x.ndim == 2 else -1 for x in rows.values()}
        n = sizes.pop() if len(sizes) == 1 else -1
        if n < 0:
            shapes = {name: list(x.shape) for name, x in rows.items()}
            raise ShapeError(
                f"rows are {shapes}, expected [N D] with one N for every site. Give the same inputs to all"
            )
        if n < 2 * self.folds:
            raise InputError(f"{n} normal inputs, expected at least {2 * self.folds} for {self.folds} folds. Give more")
        for name, x in rows.items():
            if not bool(torch.isfinite(x).all()):
                raise InputError(f"activations of {name} hold NaN or infinity. Drop those inputs, or look at the model")
        part = torch.randperm(n, generator=generator(self.seed)) % self.folds
        found = {name: self._gaussian(name, x.detach().cpu().double()) for name, x in rows.items()}
        return NormalGaussians(
            mean={name: g[0] for name, g in found.items()},
            whitening={name: g[1] for name, g in found.items()},
            variance={name: g[2] for name, g in found.items()},
            held_out=torch.stack(
                [self._held_out(name, x.detach().cpu().double(), part) for name, x in rows.items()], 1
            ),
            site=tuple(rows),
            slug=CARD.slug,
            fitted={**asdict(self), "n": n},
        )

    def _held_out(self, name: str, x: Float[Tensor, "N D"], part: Tensor) -> Float[Tensor, " N"]:
        found = torch.zeros(len(x), dtype=torch.float64)
        for fold in range(self.folds):
            mean, whitening, _ = self._gaussian(name, x[part != fold])
            found[part == fold] = ((x[part == fold] - mean) @ whitening.T).norm(dim=1)
        return found

    def _gaussian(self, name: str, x: Float[Tensor, "N D"]) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, W and the variances of its rows."""
        mean, eye = x.mean(0), torch.eye(x.shape[1], dtype=torch.float64)
        centred = x - mean
        if self.reduce == "l2":
            return mean, eye, torch.ones(len(mean), dtype=torch.float64)
        sample = centred.T @ centred / len(x)
        if self.reduce == "sed":
            rows, variance = eye, self._shrunk(centred).diagonal()
        else:
            # shrinking and refitting keep the eigenvectors of S, so one decomposition serves all variants
            values, vectors = torch.linalg.eigh(sample)
            rows = vectors.flip(1).T[self._kept(name, values.flip(0).clamp_min(0))]
            variance = self._shrunk(centred @ rows.T).diagonal()
        if not float(variance.min()) > 1e-12 * float(variance.max()):
            raise InputError(
                f"the covariance of {name} ({len(x)} inputs, {len(variance)} dimensions) has no inverse. "
                "Give more inputs that differ, or leave shrinkage at None"
            )
        return mean, rows / variance.sqrt()[:, None], variance.clone()

    def _kept(self, name: str, values: Float[Tensor, " D"]) -> Bool[Tensor, " D"]:
        """Which components stay (eq. 5), given their variances in falling order."""
        if self.reduce == "none":
            return torch.ones(len(values), dtype=torch.bool)
        before = (values.cumsum(0) - values) / values.sum().clamp_min(1e-300)
        leading = before < self.var
        if self.reduce == "pca":
            return leading
        if bool(leading.all()):
            raise InputError(f"npca: no component of {name} is left beyond var={self.var} of the variance. Lower var")
        return ~leading

    def _shrunk(self, centred: Float[Tensor, "N D"]) -> Float[Tensor, "D D"]:
        sample = centred.T @ centred / len(centred)
        delta = ledoit_wolf(centred) if self.shrinkage is None else self.shrinkage
        return (1 - delta) * sample + delta * sample.diagonal().mean() * torch.eye(len(sample), dtype=sample.dtype)


def ledoit_wolf(centred: Float[Tensor, "N D"]) -> float:
    """The share delta of the scaled identity that brings the covariance of centred rows nearest to the true one."""
    n, d = centred.shape
    sample = centred.T @ centred / n
    spread = (sample.square().sum() - sample.trace().square() / d).item()
    error = ((centred.square().sum(1).square().mean() - sample.square().sum()) / n).item()
    return 1.0 if error >= spread else max(error, 0.0) / spread


@torch.no_grad()
def mean_activations(model: Model, inputs: Any, sites: Any, batch_size: int = 64) -> Rows:
    """Activations of each site averaged over places (images) or real tokens (texts), site -> [N D], float64 on the CPU.

    Raises:
        InputError: no inputs, or a site that gives no vector per input.
    """
    found: dict[str, list[Tensor]] = {name: [] for name in sites}
    tokens = {name: model.site(name).axes[:2] == ("batch", "pos") for name in found}
    for arguments, mask in _batches(model, inputs, batch_size):
        acts = model.run(arguments, read=list(found)).acts
        for name, parts in found.items():
            parts.append(_average(name, acts[name].cpu().double(), mask, tokens[name]))
    return {name: torch.cat(parts) for name, parts in found.items()}


def _batches(model: Model, inputs: Any, batch_size: int) -> Iterator[tuple[Any, Tensor | None]]:
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        yield from batches(model, inputs, batch_size)
        return
    if not len(inputs):
        raise InputError(f"inputs {list(inputs.shape)}: no input, expected at least one. Give images [N ...]")
    for part in inputs.split(batch_size):
        yield part, None


def _average(name: str, x: Tensor, mask: Tensor | None, tokens: bool) -> Float[Tensor, "B D"]:
    """Eq. 1: maps [B D H W] over places, tokens [B T ...] over the real ones, vectors [B D] as they are."""
    if mask is not None and x.ndim >= 3 and x.shape[:2] == mask.shape:
        weight = mask.cpu().to(x)[..., None]
        return (x.flatten(2) * weight).sum(1) / weight.sum(1)
    if mask is None and (tokens or x.ndim == 3):
        return x.flatten(2).mean(1)
    if mask is None and x.ndim == 4:
        return x.mean((2, 3))
    if x.ndim == 2:
        return x
    raise InputError(f"{name} is {list(x.shape)}, expected maps, vectors or one vector per token. Choose another site")


def _chi2_distance(dims: int, fpr: float) -> float:
    from scipy.stats import chi2

    return float(math.sqrt(chi2.ppf(1 - fpr, dims)))

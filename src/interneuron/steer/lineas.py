"""LinEAS: affine maps at all layers, learned together, that give one set of inputs the activations of another.

Paper: Rodriguez, Klein, Gualdoni, Maiorca, Blaas, Zappella, Cuturi, Suau: LinEAS: End-to-end Learning of Activation
    Steering with a Distributional Loss (2025), https://arxiv.org/abs/2503.10679.

Idea: maps fitted layer by layer do not know of each other, and a vector only moves the mean. Here all maps are learned
    end to end, by the distance between the distributions of steered source activations and of target activations at
    every site, coordinate by coordinate. A few dozen unpaired texts on each side suffice, and a sparse penalty chooses
    the coordinates that matter.

Equations:
    (1)  T_s(h) = w_s * h + b_s                                  w = 1, b = 0 at the start; every token; model frozen
    (2)  W2^2(x, y) = int_0^1 (F_x^-1(q) - F_y^-1(q))^2 dq       of the two samples of one coordinate
    (3)  loss = sum_s 1/D sum_j W2^2(xi_s[:, j], eta_s[:, j])    xi: steered source, mean over tokens; eta: target
    (4)  R = l1 sum_s (|w_s - 1|_1 + |b_s|_1) + group sum_s sqrt(D) (|w_s - 1|_2 + |b_s|_2)
    (5)  step: gradient of (3), then the proximal map of lr R: soft-threshold each number, then each vector
         with momentum: v <- prox(v - lr slope + momentum (v - v of the step before))
    (6)  h <- (1 - alpha) h + alpha T(h)                         `AffineMaps.edit(alpha)`
    (7)  Linear-AcT: w, b = least squares of sorted target on sorted source, one site after the other

Shapes: w, b [D] at each of S sites; pooled activations [N D]; `sorted_w2` [N D], [M D] -> [D].

Cost: one forward and backward pass over a batch of source texts per step up to the last site; LinearAcT one forward
    pass per site. Memory 2 S D numbers and the activations of one batch.

Departures: groups of unequal size are compared by their exact quantile functions, where the paper resamples. The
    weights of the penalty are options, and the step falls linearly to zero [both inferred]. Momentum is an option, off
    as given: shifts of all sites act on each other, some combinations hardly change the loss, and plain steps need
    hundreds to settle them; it enters before the proximal map, so that the penalty keeps its weight. So is a second
    fit, `refit` steps without the penalty for the coordinates it has kept: the penalty chooses them, but also takes its
    weight off every number (the relaxed lasso of Meinshausen, 2007). Sites are all norms of the layers
    (`layers.*.norm*`), with those behind attention and feed-forward in models that have them.

Use:
    model = inn.load("lm")
    maps = inn.steer.LinEAS(steps=20).fit(model, ["she felt sad ."] * 4, ["she felt happy .", "he felt glad ."])
    with model.edit(maps.edit(alpha=0.5)): model.generate("mia looked", max_new_tokens=8)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from interneuron.artifacts import Artifact, plots
from interneuron.core.cards import Card
from interneuron.core.errors import InputError, ShapeError
from interneuron.core.progress import track
from interneuron.core.seeds import generator
from interneuron.model.edits import Edits, Transport
from interneuron.model.model import Model

CARD = Card(
    id=178,
    slug="lineas",
    family="steer",
    kind="fitter",
    exports=("LinEAS", "LinearAcT", "AffineMaps", "sorted_w2"),
    paper="LinEAS: End-to-end Learning of Activation Steering with a Distributional Loss",
    authors="Rodriguez, Pau and Klein, Michal and Gualdoni, Eleonora and Maiorca, Valentino and Blaas, Arno and "
    "Zappella, Luca and Cuturi, Marco and Suau, Xavier",
    year=2025,
    link="https://arxiv.org/abs/2503.10679",
    purpose="Steering maps from a few unpaired texts: affine maps at all layers, learned together, sparse if wanted",
    claim="With 32 sentences on each side it cuts toxicity more than layer-wise maps, at a small cost in perplexity",
)


Maps = tuple[dict[str, Tensor], dict[str, Tensor]]
OPTIMIZERS: dict[str, Any] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}


class AffineMaps(Artifact):
    """One map h -> scale * h + shift at each of several sites.

    scale, shift  by site, each [D]
    """

    scale: dict[str, Tensor]
    shift: dict[str, Tensor]

    def validate(self) -> None:
        """The same sites in both, one vector each, finite numbers."""
        for name in self.scale.keys() | self.shift.keys():
            a, b = self.scale.get(name), self.shift.get(name)
            if a is None or b is None or a.shape != b.shape or a.dim() != 1:
                got = [None if t is None else list(t.shape) for t in (a, b)]
                raise ShapeError(f"AffineMaps at {name}: scale and shift are {got}, expected two [D]. Give both")
            if not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
                raise InputError(f"AffineMaps at {name}: NaN or infinity, expected finite numbers. Lower lr")

    def edit(self, alpha: float = 1.0) -> Edits:
        """All maps at strength `alpha`, between none (0) and full (1): eq. 6."""
        return alpha * Edits(Transport(name, self.scale[name], self.shift[name]) for name in self.scale)

    def support(self) -> dict[str, Tensor]:
        """The coordinates that a map changes, by site: Int[n]."""
        return {name: kept.nonzero()[:, 0] for name, kept in _kept(self.scale, self.shift).items()}

    @property
    def kept(self) -> float:
        """Share of all coordinates that are changed."""
        return sum(map(len, self.support().values())) / sum(len(v) for v in self.scale.values())

    def permuted(self, seed: int) -> AffineMaps:
        """The control: the same numbers at every site, given to other coordinates."""
        g = generator(seed)
        orders = {name: torch.randperm(len(v), generator=g) for name, v in self.scale.items()}
        return self.replace(
            scale={name: v[orders[name]] for name, v in self.scale.items()},
            shift={name: v[orders[name]] for name, v in self.shift.items()},
            fitted={"control": "the same maps on permuted coordinates", "seed": seed, "of": self.slug},
        )

    def plot(self) -> dict[str, Any]:
        """How far the maps reach at every site: root mean square of scale - 1 and of shift."""
        sizes = {
            "scale - 1": [float((v - 1).square().mean().sqrt()) for v in self.scale.values()],
            "shift": [float(v.square().mean().sqrt()) for v in self.shift.values()],
        }
        plot = plots.lines(
            "What the maps change", list(range(len(self.scale))), sizes, x_label="site", y_label="root mean square"
        )
        return plot | {"ticks": [name.removeprefix("layers.") for name in self.scale]}


def sorted_w2(a: Float[Tensor, "N D"], b: Float[Tensor, "M D"]) -> Float[Tensor, " D"]:
    """Squared 2-Wasserstein distance of two samples, coordinate by coordinate: eq. 2, exact for N != M as well.

    >>> sorted_w2(torch.tensor([[0.0], [2.0]]), torch.tensor([[3.0], [1.0]])).tolist()
    [1.0]

    Raises:
        ShapeError: not two matrices of one width with rows.
        InputError: NaN or infinity.
    """
    _check(a, b)
    x, y, weights = _quantiles(a, b)
    return torch.einsum("N,ND->D", weights, (x - y) ** 2)


@dataclass(frozen=True)
class LinEAS:
    """Affine maps learned end to end.

    sites       where to put a map (names or globs)     l1, group    weights of the sparse penalty (eq. 4)
    lr, steps   of proximal gradient descent            batch_size   source texts per step, drawn with `seed`
    optimizer   "sgd" as for language models in the paper, or "adam", its choice for images, which needs fewer steps
    momentum    of "sgd", 0 to below 1: share of the step before that is taken again (eq. 5)
    refit       further steps from w = 1, b = 0 that learn the kept coordinates alone, without the penalty
    """

    sites: str | Sequence[str] = "layers.*.norm*"
    l1: float = 0.0
    group: float = 0.0
    lr: float = 0.1
    steps: int = 1000
    batch_size: int = 32
    optimizer: Literal["sgd", "adam"] = "sgd"
    seed: int = 0
    momentum: float = 0.0
    refit: int = 0

    def fit(self, model: Model, source: Sequence[str], target: Sequence[str]) -> AffineMaps:
        """Return the maps that give the texts `source` the activations of the texts `target`; they need not be pairs.

        Raises:
            InputError: fewer than two texts in a group, an option out of range, or a loss that is not finite.
            SiteNotFound: `sites` names none of the model's.
        """
        self._check()
        names = _names(model, self.sites)
        texts, goal = _texts("source", source), pooled(model, _texts("target", target), names)
        maps, losses = self._descend(model, texts, goal)
        if self.refit:
            free = replace(self, l1=0.0, group=0.0, steps=self.refit)
            maps, more = free._descend(model, texts, goal, _kept(*maps))
            losses += more
        fitted = {**asdict(self), "sites": list(names), "n_source": len(texts), "n_target": len(target)}
        fitted |= {"first loss": losses[0], "last loss": losses[-1]}
        return _maps(*maps, fitted, model)

    def _descend(
        self, model: Model, texts: list[str], goal: dict[str, Tensor], kept: dict[str, Tensor] | None = None
    ) -> tuple[Maps, list[float]]:
        """Scales and shifts by eq. 5, with the loss of every step; `kept` names the coordinates that may change."""
        names = list(goal)
        scale = {n: torch.ones(v.shape[1], device=model.device, requires_grad=True) for n, v in goal.items()}
        shift = {n: torch.zeros(v.shape[1], device=model.device, requires_grad=True) for n, v in goal.items()}
        numbers, draw, losses = [*scale.values(), *shift.values()], generator(self.seed), []
        allowed = None if kept is None else 2 * [kept[n].to(model.device) for n in names]
        optimizer = OPTIMIZERS[self.optimizer](numbers, lr=self.lr)
        before = [value.detach().clone() for value in numbers]
        for step in track(range(self.steps), label="LinEAS", unit="step"):
            batch = [texts[i] for i in torch.randperm(len(texts), generator=draw)[: self.batch_size].tolist()]
            maps = Edits(Transport(n, scale[n], shift[n]) for n in names)
            with torch.enable_grad():
                now = _pooled(model, batch, names, maps)
                loss = torch.stack([sorted_w2(now[n], goal[n]).mean() for n in names]).sum()  # eq. 3
            losses.append(float(loss.detach()))
            slopes = torch.autograd.grad(loss, numbers)
            if not all(bool(torch.isfinite(slope).all()) for slope in slopes):
                raise InputError(f"LinEAS: the loss is {losses[-1]:.3g} after {step + 1} steps. Lower lr={self.lr}")
            for i, (value, slope) in enumerate(zip(numbers, slopes, strict=True)):
                value.grad = slope if allowed is None else slope * allowed[i]
            lr = optimizer.param_groups[0]["lr"] = self.lr * (1 - step / self.steps)
            here = [value.detach().clone() for value in numbers]
            optimizer.step()
            with torch.no_grad():
                for value, is_at, was_at in zip(numbers, here, before, strict=True):
                    value.add_(is_at - was_at, alpha=self.momentum)
                self._shrink(scale, shift, lr)
            before = here
        return (scale, shift), losses

    def _check(self) -> None:
        if self.refit < 0 or (self.refit and self.l1 == self.group == 0):
            raise InputError(
                f"LinEAS: refit={self.refit} with l1={self.l1} and group={self.group}; expected steps >= 0, and 0 "
                "without a penalty, which is what chooses. Change one"
            )
        if min(self.l1, self.group) < 0 or self.lr <= 0 or self.steps < 1 or self.optimizer not in OPTIMIZERS:
            raise InputError(
                f"LinEAS: l1={self.l1}, group={self.group}, lr={self.lr}, steps={self.steps}, "
                f"optimizer={self.optimizer!r}; expected penalties >= 0, lr > 0, steps >= 1, sgd or adam. Change them"
            )
        if not 0 <= self.momentum < 1 or (self.momentum and self.optimizer != "sgd"):
            raise InputError(
                f"LinEAS: momentum={self.momentum} with optimizer={self.optimizer!r}; expected 0 <= momentum < 1, and "
                "0 for adam, which has its own. Change it"
            )

    def _shrink(self, scale: dict[str, Tensor], shift: dict[str, Tensor], lr: float) -> None:
        """Eq. 5, the proximal map of the penalty around w = 1, b = 0."""
        if self.l1 == self.group == 0:
            return
        for values, rest in ((scale, 1.0), (shift, 0.0)):
            for value in values.values():
                value.copy_(rest + shrink(value - rest, lr * self.l1, lr * self.group))


@dataclass(frozen=True)
class LinearAcT:
    """The layer-wise baseline: every map is the least-squares line of sorted targets on sorted sources (eq. 7)."""

    sites: str | Sequence[str] = "layers.*.norm*"

    def fit(self, model: Model, source: Sequence[str], target: Sequence[str]) -> AffineMaps:
        """Return maps fitted one site after the other, each on activations that the earlier maps have changed.

        Raises:
            InputError: fewer than two texts in a group.
            SiteNotFound: `sites` names none of the model's.
        """
        names = _names(model, self.sites)
        texts, goal = _texts("source", source), pooled(model, _texts("target", target), names)
        scale: dict[str, Tensor] = {}
        shift: dict[str, Tensor] = {}
        for name in names:
            earlier = Edits(Transport(n, scale[n], shift[n]) for n in scale)
            with torch.no_grad():
                now = _pooled(model, texts, [name], earlier)[name]
            scale[name], shift[name] = least_squares_map(now, goal[name])
        return _maps(scale, shift, {"sites": list(names), "n_source": len(texts), "n_target": len(target)}, model)


def least_squares_map(
    source: Float[Tensor, "N D"], target: Float[Tensor, "M D"]
) -> tuple[Float[Tensor, " D"], Float[Tensor, " D"]]:
    """Scale and shift by coordinate that bring sorted sources nearest to sorted targets; scale 1 for a constant."""
    _check(source, target)
    x, y, weights = _quantiles(source.double(), target.double())
    mean_x, mean_y = (torch.einsum("N,ND->D", weights, v) for v in (x, y))
    variance = torch.einsum("N,ND->D", weights, (x - mean_x) ** 2)
    covariance = torch.einsum("N,ND->D", weights, (x - mean_x) * (y - mean_y))
    scale = torch.where(variance > 0, covariance / variance.clamp_min(1e-30), 1.0)
    return scale.to(source.dtype), (mean_y - scale * mean_x).to(source.dtype)


def shrink(value: Float[Tensor, " D"], l1: float, group: float) -> Float[Tensor, " D"]:
    """Soft-threshold every number by `l1`, then the whole vector by `group` sqrt(D)."""
    value = value.sign() * (value.abs() - l1).clamp_min(0)
    length = value.norm()
    return value * (1 - group * len(value) ** 0.5 / length.clamp_min(1e-30)).clamp_min(0)


def pooled(model: Model, texts: Sequence[str], sites: Sequence[str], edit: Any = None) -> dict[str, Tensor]:
    """Mean over tokens of the activation of each text at each site, by site [N D], without gradients."""
    with torch.no_grad():
        return _pooled(model, texts, sites, edit)


def _pooled(model: Model, texts: Sequence[str], sites: Sequence[str], edit: Any) -> dict[str, Tensor]:
    _, inputs = model.prepare(list(texts))
    acts = model.run(inputs, read=list(sites), edit=[] if edit is None else list(edit)).acts
    mask = inputs.get("attention_mask")
    out = {}
    for site in sites:
        x = acts[site].float()
        real = torch.ones_like(x[..., 0]) if mask is None else mask.to(x)
        out[site] = torch.einsum("BT,BTD->BD", real / real.sum(1, keepdim=True), x)
    return out


def _quantiles(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The quantile functions of both samples [Q D] on the steps where both are constant, and the steps' widths [Q]."""
    n, m = len(a), len(b)
    edges = sorted({i * m for i in range(n + 1)} | {j * n for j in range(m + 1)})  # in units of 1 / (n m)
    starts = torch.tensor(edges[:-1], device=a.device)
    widths = torch.tensor(edges, device=a.device).diff().to(a.dtype) / (n * m)
    return a.sort(dim=0).values[starts // m], b.sort(dim=0).values[starts // n], widths


def _check(a: Tensor, b: Tensor) -> None:
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[1] or not len(a) or not len(b):
        raise ShapeError(
            f"samples of shapes {list(a.shape)} and {list(b.shape)}, expected [N D] and [M D] with N, M >= 1. "
            "Read both at the same site"
        )
    if not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise InputError("a sample holds NaN or infinity: expected finite activations. Look at the model or lower lr")


def _kept(scale: dict[str, Tensor], shift: dict[str, Tensor]) -> dict[str, Tensor]:
    """Which coordinates the maps change, by site: Bool[D]."""
    return {n: (scale[n].detach() != 1) | (shift[n].detach() != 0) for n in scale}


def _names(model: Model, sites: str | Sequence[str]) -> list[str]:
    patterns = [sites] if isinstance(sites, str) else list(sites)
    return list(dict.fromkeys(site.name for pattern in patterns for site in model.sites(pattern)))


def _texts(name: str, texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str) or len(texts) < 2:
        raise InputError(f"{name}: expected a list of at least two texts, got {texts!r}. Pass a list of texts")
    return list(texts)


def _maps(scale: dict[str, Tensor], shift: dict[str, Tensor], fitted: dict[str, Any], model: Model) -> AffineMaps:
    return AffineMaps(
        scale={n: v.detach().clone() for n, v in scale.items()},
        shift={n: v.detach().clone() for n, v in shift.items()},
        site=tuple(scale),
        slug=CARD.slug,
        fitted=fitted,
        fingerprint=model.fingerprint,
    )

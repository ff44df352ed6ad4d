"""WINA: the linear layers of a language model read only the input channels that matter for this token, untrained.

Paper: Chen, Ma, Ren, Zhang, Pan, Xu, Zhang: WINA: Weight Informed Neuron Activation for Accelerating Large Language
    Model Inference (2025), https://arxiv.org/abs/2505.19427. The baselines are TEAL (magnitude alone,
    https://arxiv.org/abs/2408.14690) and CATS (threshold on the gate, https://arxiv.org/abs/2404.08763).

Idea: a channel of the input of a linear layer can be skipped when its contribution is small, and that is its magnitude
    times the length of the weight column it multiplies. When the columns are orthogonal this choice is optimal.

Equations:
    (1)  s_j = |x_j| c_j,  c_j = ||W[:, j]||_2        TEAL: c_j = 1;  CATS: |act(gate)_j| inside a gated MLP
    (2)  y = W (g * x),  g_j = 1 for the K = floor((1 - p) D) largest s_j, or where s_j > t with t the p-quantile of s
    (3)  for orthogonal columns  ||W (x - g * x)||^2 = sum over dropped j of x_j^2 c_j^2
    (4)  W x = (W V) (V' x) for an orthogonal V; with W = U S V', the columns of W V are orthogonal, their norms S

Shapes: x [... D], c [D], W [out D], V [D D].

Cost: fitting reads the weights once; thresholds and allocation need forward passes on the corpus. Decoding one token
    reads the share 1 - p of the weights, which takes numba, float32 and the CPU; the transposed copies of the weights
    that this needs live as long as the edit. Prompts and batches run the dense product of the masked input.

Departures: the rotation of eq. 4 is put behind the norm whose output feeds q, k, v or gate, up (`orthogonalize_columns`
    returns a rotated copy of the model), where the paper rotates the residual stream and its shortcuts: the products
    and the extra D x D product per sublayer are the same, and norms with or without gains and biases are served
    [inferred]. The rotation is that of k_proj and gate_proj, or of all weights that read the norm where a model has no
    such matrix. With norms="orthogonal" other matrices take c = 1, as the authors' code does after the rotation. Greedy
    allocation drops an equal number of weights per step [inferred from TEAL]. CATS-style masks cut the activation by
    quantile, so that up and down work on the kept units only; nothing is retrained. Random masks drop the same random
    channels for every token.

Use:
    model = inn.load("lm")
    mask = inn.sparse.WINA(sparsity=0.5).fit(model)
    with model.edit(mask.edit()): model.generate("mia looked", max_new_tokens=8)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from interneuron.artifacts import Artifact, Report, plots
from interneuron.core.cards import Card
from interneuron.core.errors import InputError, SelfCheckFailed, ShapeError, UnsupportedModel
from interneuron.core.progress import track
from interneuron.core.seeds import generator
from interneuron.model.edits import Edit, Edits, Scale
from interneuron.model.load import wrap
from interneuron.model.model import Model
from interneuron.parts.batches import batches, check_corpus, divergences
from interneuron.parts.linear_layers import (
    activation_sites,
    block_linears,
    column_norms,
    has_orthogonal_columns,
    layer_path,
    norm_readers,
    set_weight,
    weight_of,
)
from interneuron.parts.sparse_inputs import Kernel, Sparsify, keep_largest

CARD = Card(
    id=1,
    slug="wina",
    family="sparse",
    kind="fitter",
    exports=("WINA", "SparseMask", "wina_mask", "orthogonalize_columns", "sparsity_curve"),
    paper="WINA: Weight Informed Neuron Activation for Accelerating Large Language Model Inference",
    authors="Chen, Sihan and Ma, Dan and Ren, Jilin and Zhang, Dongming and Pan, Colin and Xu, Ningxin and Zhang, Zhi",
    year=2025,
    link="https://arxiv.org/abs/2505.19427",
    purpose="Faster decoding without training: skip input channels of linear layers, by magnitude times column norm",
    needs=("numba",),
    claim="Up to 2.94 % higher mean accuracy than TEAL at equal sparsity (25-65 %) on 7-14B models",
)

Score = Literal["wina", "teal", "cats", "random"]


def wina_mask(x: Float[Tensor, "*N D"], col_norm: Float[Tensor, " D"], sparsity: float) -> Bool[Tensor, "*N D"]:
    """Return which channels of each row are kept: the floor((1 - sparsity) D) of largest |x_j| c_j (eq. 1 and 2).

    Raises:
        InputError: sparsity outside 0..1, or NaN or infinity in x or the norms.
        ShapeError: the norms are not one per channel.
    """
    if x.dim() == 0 or col_norm.shape != x.shape[-1:]:
        raise ShapeError(f"col_norm has shape {list(col_norm.shape)} for x {list(x.shape)}. Give one norm per channel")
    if not (torch.isfinite(x).all() and torch.isfinite(col_norm).all()):
        raise InputError("wina_mask: x or col_norm holds NaN or infinity, expected finite numbers. Look where they end")
    return keep_largest(x.abs() * col_norm.to(x), _kept(x.shape[-1], sparsity))


class SparseMask(Artifact):
    """Which channels the linear layers of a model read: one row per site.

    site        inputs of the linear layers (or, for CATS, the activations)
    norms       c of eq. 1 by layer; empty for c = 1         chosen   0 or 1 per channel by layer, for random masks
    sparsity    share of the channels dropped, by site       weights  weights that each site decides on
    thresholds  t of eq. 2 by site, or () in top-k mode      dense_share  share of a prompt left whole
    """

    norms: dict[str, Tensor]
    chosen: dict[str, Tensor]
    sparsity: tuple[float, ...]
    weights: tuple[int, ...]
    widths: tuple[int, ...]
    thresholds: tuple[float, ...] = ()
    dense_share: float = 0.01

    def validate(self) -> None:
        """One entry per site, and shares from 0 to 1."""
        rows = [self.sparsity, self.weights, self.widths, *([self.thresholds] if self.thresholds else [])]
        if any(len(row) != len(self.sites) for row in rows):
            raise ShapeError(f"SparseMask: {[len(row) for row in rows]} entries for {len(self.sites)} sites. Fit again")
        for p in self.sparsity:
            _kept(1, p)

    @property
    def kept_share(self) -> float:
        """Share of the weights of these layers that one token reads."""
        return sum((1 - p) * w for p, w in zip(self.sparsity, self.weights, strict=True)) / max(sum(self.weights), 1)

    def edit(self, kernel: Kernel = "auto") -> Edits:
        """The edits that mask the inputs; keep them over calls, they hold the transposed weights.

        kernel  "auto": decoding skips the dropped weights where that is faster; "dense": masks alone
        """
        edits: list[Edit] = []
        for i, site in enumerate(self.sites):
            if _key(site) in self.chosen:
                edits.append(Scale(site, self.chosen[_key(site)]))
            elif self.thresholds:
                rule: dict[str, Any] = {"threshold": self.thresholds[i]}
                edits.append(self._sparsify(site, kernel, rule))
            else:
                edits.append(self._sparsify(site, kernel, {"k": _kept(self.widths[i], self.sparsity[i])}))
        return Edits(edits)

    def _sparsify(self, site: str, kernel: Kernel, rule: dict[str, Any]) -> Sparsify:
        return Sparsify(site, norm=self.norms.get(_key(site)), dense_share=self.dense_share, kernel=kernel, **rule)

    def plot(self) -> dict[str, Any]:
        """Share of channels dropped, by site."""
        names = [site.rpartition(":")[0].partition("layers.")[2] or site for site in self.sites]
        return plots.bars("Channels dropped", names, list(self.sparsity), y_label="sparsity")


@dataclass(frozen=True)
class WINA:
    """Training-free sparsity of all linear layers inside the blocks.

    sparsity     share p of the input channels dropped
    score        "wina" (eq. 1), or a baseline: "teal", "cats" (MLP only), "random"
    norms        "all": c of every matrix; "orthogonal": c = 1 where columns are not orthogonal, which eq. 3 leaves open
    mode         "topk": exactly K channels per token; "threshold": one comparison, calibrated on the corpus
    allocation   "uniform", or "greedy": matrices that hurt the output of their block less are cut more
    dense_share  share of a prompt, from its start, that is left whole
    step         of the greedy allocation, in sparsity
    """

    sparsity: float = 0.5
    score: Score = "wina"
    norms: Literal["all", "orthogonal"] = "all"
    mode: Literal["topk", "threshold"] = "topk"
    allocation: Literal["uniform", "greedy"] = "uniform"
    dense_share: float = 0.01
    step: float = 0.05
    batch_size: int = 16
    seed: int = 0

    def fit(self, model: Model, corpus: Any = None) -> SparseMask:
        """Return the mask for a model.

        corpus  texts or token ids [N T]; needed for thresholds and allocation. Where it is given, `fitted` holds the KL
                divergence from the dense model on every fourth row, which nothing was fitted on (on all of fewer than
                eight rows), beside that of a random mask of the same sparsity

        Raises:
            InputError: an option out of range, or no corpus where one is needed.
            UnsupportedModel: no linear layers inside the blocks, or no activation module for "cats".
        """
        _kept(1, self.sparsity)
        if self.mode == "threshold" or self.allocation == "greedy":
            check_corpus(corpus)
        if self.score == "cats" and self.allocation == "greedy":
            raise InputError("WINA(score='cats', allocation='greedy'): greedy needs the matrices. Use 'uniform'")
        mask = self._cats(model) if self.score == "cats" else self._linears(model)
        fitted: dict[str, Any] = asdict(self)
        if corpus is not None:
            check_corpus(corpus)
            held, used = corpus[::4], _without_fourths(corpus)
            if len(corpus) < 8:
                held = used = corpus
            if self.allocation == "greedy":
                mask = mask.replace(sparsity=self._greedy(model, used, mask))
            if self.mode == "threshold" and self.score != "random":
                mask = mask.replace(thresholds=self._thresholds(model, used, mask))
            control = replace(self, score="random", mode="topk", allocation="uniform").fit(model)
            costs = divergences(model, held, [mask.edit("dense"), control.edit()], self.batch_size).mean(1).tolist()
            fitted |= {"KL": costs[0], "KL of a random mask": costs[1]}
        return mask.replace(slug=CARD.slug, fitted=fitted, fingerprint=model.fingerprint)

    def _linears(self, model: Model) -> SparseMask:
        layers = block_linears(model)
        norms = {}
        if self.score == "wina":
            fits = {p: m for p, m in layers.items() if self.norms == "all" or has_orthogonal_columns(weight_of(m))}
            norms = {path: column_norms(layer) for path, layer in fits.items()}
        chosen = {}
        if self.score == "random":
            for i, (path, layer) in enumerate(layers.items()):
                width = weight_of(layer).shape[1]
                scores = torch.rand(width, generator=generator(self.seed + 1000 * i))
                chosen[path] = keep_largest(scores, _kept(width, self.sparsity)).float()
        return SparseMask(
            site=tuple(f"{path}:in" for path in layers),
            norms=norms,
            chosen=chosen,
            sparsity=(self.sparsity,) * len(layers),
            weights=tuple(weight_of(layer).numel() for layer in layers.values()),
            widths=tuple(weight_of(layer).shape[1] for layer in layers.values()),
            dense_share=self.dense_share,
        )

    def _cats(self, model: Model) -> SparseMask:
        linears, sites = block_linears(model), activation_sites(model)
        downs = [model.site(f"layers.{i}.mlp.hidden").path.partition(":")[0] for i in range(model.n_layers)]
        return SparseMask(
            site=tuple(sites),
            norms={},
            chosen={},
            sparsity=(self.sparsity,) * len(sites),
            weights=tuple(2 * weight_of(linears[down]).numel() for down in downs),
            widths=tuple(weight_of(linears[down]).shape[1] for down in downs),
            dense_share=self.dense_share,
        )

    @torch.no_grad()
    def _thresholds(self, model: Model, corpus: Any, mask: SparseMask) -> tuple[float, ...]:
        """The p-quantile over the corpus of the scores of each site, on the dense model (eq. 2)."""
        rows: dict[str, list[Tensor]] = {site: [] for site in mask.sites}
        for inputs, real in batches(model, corpus, self.batch_size):
            acts = model.run(inputs, read=list(mask.sites)).acts
            for site in mask.sites:
                scores = acts[site].abs()[real].float()
                rows[site].append(scores * mask.norms[_key(site)].to(scores) if _key(site) in mask.norms else scores)
        quantile = zip(mask.sites, mask.sparsity, strict=True)
        return tuple(_quantile(torch.cat(rows[site]).flatten(), p) for site, p in quantile)

    def _greedy(self, model: Model, corpus: Any, mask: SparseMask) -> tuple[float, ...]:
        """Per block, raise by one step the matrix whose cut hurts the block's output least, until p is reached."""
        p = dict.fromkeys(mask.sites, 0.0)
        size = dict(zip(mask.sites, mask.weights, strict=True))
        inputs = next(batches(model, corpus, self.batch_size))[0]
        for layer in track(range(model.n_layers), label="allocation", unit="layer"):
            end = f"layers.{layer}.resid_post"
            root = layer_path(model, layer)
            own = [site for site in mask.sites if site.startswith(root + ".")]
            whole = sum(size[s] for s in own)
            steps = {s: self.step * whole / (len(own) * size[s]) for s in own}
            wanted = _run(model, inputs, end, None)
            while sum(p[s] * size[s] for s in own) < self.sparsity * whole - 1e-9:
                left = self.sparsity * whole - sum(p[s] * size[s] for s in own)
                trials = {}
                for s in own:
                    if p[s] < 1:
                        trials[s] = min(p[s] + min(steps[s], left / size[s]), 1.0)
                errors = {}
                for s, value in trials.items():
                    cut = tuple({**p, s: value}[site] for site in mask.sites)
                    edits = Edits(e for e in mask.replace(sparsity=cut).edit("dense") if e.site in own)
                    errors[s] = float((_run(model, inputs, end, edits) - wanted).square().mean())
                best = min(errors, key=lambda name: errors[name])
                p[best] = trials[best]
        return tuple(p.values())


def orthogonalize_columns(model: Model) -> Model:
    """Return a copy of the model in which the columns of k and gate are orthogonal; its outputs are the same (eq. 4).

    Behind every norm that feeds linear layers stands a rotation V, and those layers hold W V.

    Raises:
        UnsupportedModel: no norm of a block feeds linear layers alone.
        SelfCheckFailed: the outputs of the copy differ by more than 1e-3 of their size.
    """
    made = wrap(copy.deepcopy(model.module), model.tokenizer, model.processor)
    probe = torch.arange(1, 9, device=model.device)[None]
    layers, groups = block_linears(made), norm_readers(made, probe)
    if not groups:
        raise UnsupportedModel(
            f"{type(model.module).__name__}: no norm of a block feeds linear layers, so there is nothing to rotate"
        )
    with torch.no_grad():
        before = model(probe).logits
        for norm, (readers, reference) in groups.items():
            stacked = torch.cat([weight_of(layers[path]).double() for path in reference])
            v = torch.linalg.svd(stacked, full_matrices=True).Vh.T
            for path in readers:
                set_weight(layers[path], weight_of(layers[path]).double() @ v)
            parent, _, name = norm.rpartition(".")
            module = made.module.get_submodule(norm)
            setattr(made.module.get_submodule(parent), name, RotatedNorm(module, v))
        gap = float((made(probe).logits - before).abs().max() / before.abs().max())
    if not gap <= 1e-3:
        raise SelfCheckFailed(
            f"{type(model.module).__name__}: after the rotation its logits differ by {gap:.1e} of their size, expected "
            "rounding. Something else reads the output of a norm; this model cannot be rotated so"
        )
    return made


class RotatedNorm(nn.Module):
    """A norm followed by an orthogonal map: x -> norm(x) V."""

    def __init__(self, norm: nn.Module, v: Tensor) -> None:
        super().__init__()
        self.norm = norm
        like = next(norm.parameters(), v)
        self.register_buffer("v", v.to(device=like.device, dtype=like.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """The rotated output of the norm."""
        return self.norm(x) @ self.v


def sparsity_curve(
    model: Model,
    corpus: Any,
    sparsities: Sequence[float] = (0.25, 0.4, 0.5, 0.65),
    scores: Sequence[Score] = ("wina", "teal", "random"),
    batch_size: int = 16,
    seed: int = 0,
) -> Report:
    """What sparsity costs: KL between the dense and the sparse model, in nats per token, for each way of scoring."""
    series: dict[str, list[float]] = {score: [] for score in scores}
    rows = []
    tries = [(p, score, WINA(sparsity=p, score=score, seed=seed).fit(model)) for p in sparsities for score in scores]
    costs = divergences(model, corpus, [mask.edit("dense") for *_, mask in tries], batch_size).mean(1).tolist()
    for (p, score, mask), kl in zip(tries, costs, strict=True):
        series[score].append(kl)
        rows.append({"sparsity": p, "score": score, "weights read": mask.kept_share, "KL": kl})
    plot = plots.lines("What sparsity costs", list(sparsities), series, x_label="sparsity", y_label="KL (nats)")
    return Report(
        title="Quality under input sparsity", slug=CARD.slug, tables={"curve": rows}, plots={"curve": plot},
        fingerprint=model.fingerprint, fitted={"scores": list(scores), "seed": seed},
    )  # fmt: skip


def _without_fourths(corpus: Any) -> Any:
    rows = [i for i in range(len(corpus)) if i % 4]
    return corpus[rows] if isinstance(corpus, Tensor) else [corpus[i] for i in rows]


def _key(site: str) -> str:
    return site.partition(":")[0]


def _kept(width: int, sparsity: float) -> int:
    if not 0 <= sparsity <= 1:
        raise InputError(f"sparsity={sparsity}: expected a share from 0 (dense) to 1 (nothing left). Choose e.g. 0.5")
    return math.floor((1 - sparsity) * width + 1e-9)


def _quantile(values: Tensor, p: float) -> float:
    if p <= 0:
        return -1.0  # no score is below it
    return float(values.kthvalue(min(max(round(p * len(values)), 1), len(values))).values)


def _run(model: Model, inputs: Any, site: str, edits: Any) -> Tensor:
    with torch.no_grad():
        return model.run(inputs, read=[site], edit=edits).acts[site].double()

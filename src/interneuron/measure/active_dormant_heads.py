"""Active-dormant heads: which attention heads rest on the first token, for which inputs, and what that does to it.

Paper: Guo, Pai, Bai, Jiao, Jordan, Mei: Active-Dormant Attention Heads: Mechanistically Demystifying Extreme-Token
    Phenomena in LLMs (2024), https://arxiv.org/abs/2410.13835

Idea: a head that has nothing to do must put its attention somewhere, so it parks it on the first token and learns a
    small value there. The logit of the sink grows while that value shrinks, each making the other cheaper. The same
    head may work in one domain and rest in another.

Equations:
    (1)  sink(queries) = mean over queries of A[t, 0]         dormant: plain queries, active: triggers
    (2)  value drain   = mean ||v_0|| / mean_{t > 0} ||v_t||
    (3)  residual peak = mean ||h_0|| / median_{t > 0} ||h_t||    after each layer
    (4)  Dlogit = mean over plain queries of s[t, 0] - mean_{0 < j <= t} s[t, j]      s: scores before the softmax
    (5)  Dlogit(step) = slope log(step) + intercept              the growth law
    (6)  active-dormant: sink differs between two domains by 0.3 or more
    (7)  ReLU attention: A[t, j] = max(s[t, j], 0) / (t + 1)      the remedy: weights need not add up to one

Shapes: patterns [B H T T], values [B T H K], streams [B T D], triggers Bool[N T].

Cost: one forward pass with explicit attention per batch; `head_dormancy` adds 2 passes per domain and head it ablates.

Departures: the first `skip` queries are left out, as they attend to the first token for want of others [inferred]. Each
    head that is ablated has a control: another head of the model, drawn at random. Swapping domains is done by parking
    the head where it works, or where it rests [inferred].

Use:
    model = inn.load("lm")
    report = inn.measure.head_dormancy(model, {"story": ["she felt happy ."], "list": ["cup , lamp , coin ."]})
    rest = model.run("she felt happy .", edit=inn.measure.park_head(model, layer=1, head=0)).output
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from interneuron.artifacts import Report, plots
from interneuron.core.cards import Card
from interneuron.core.errors import InputError, ShapeError, UnsupportedModel
from interneuron.core.seeds import generator
from interneuron.model.edits import Ablate, Apply, Edit
from interneuron.model.model import Model
from interneuron.parts.batches import batches
from interneuron.parts.likelihood import text_losses, window_losses

CARD = Card(
    id=208,
    slug="active_dormant_heads",
    family="measure",
    kind="metric",
    exports=("head_dormancy", "extreme_token_report", "park_head", "fit_log_growth", "use_relu_attention"),
    paper="Active-Dormant Attention Heads: Mechanistically Demystifying Extreme-Token Phenomena in LLMs",
    authors="Guo, Tianyu and Pai, Druv and Bai, Yu and Jiao, Jiantao and Jordan, Michael and Mei, Song",
    year=2024,
    link="https://arxiv.org/abs/2410.13835",
    purpose="Find attention sinks, drained values and residual peaks, and heads that work in one domain only",
    claim="Small transformers show all extreme-token phenomena; ReLU attention and SGD mitigate them; LLMs do alike",
)

RELU_ATTENTION = "interneuron_relu"
Attention = Literal["softmax", "relu"]


def extreme_token_report(
    model: Model,
    inputs: Any,
    is_trigger: Bool[Tensor, "N T"] | None = None,
    skip: int = 4,
    attention: Attention = "softmax",
    batch_size: int = 32,
) -> Report:
    """Return sinks, drained values and logit gaps of every head and the residual peak of every layer (eq. 1 to 4).

    inputs      texts, or token ids [N T] without padding
    is_trigger  where the heads have work to do; without it every query counts as dormant
    skip        queries left out at the beginning
    attention   "relu" for a model under `use_relu_attention`, whose weights are computed from queries and keys

    Numbers: those of the head with the largest sink_dormant, and the largest residual peak. Tables: heads, layers.

    Raises:
        InputError: no text is longer than `skip`, or an unknown attention.
        ShapeError: triggers not of the shape of the token ids.
    """
    if attention not in ("softmax", "relu"):
        raise InputError(f"attention={attention!r} is unknown, expected 'softmax' or 'relu'. Choose one")
    layers = [_Layer() for _ in range(model.n_layers)]
    norms: list[tuple[list[Tensor], list[Tensor]]] = [([], []) for _ in layers]
    for named, real, trigger in _with_triggers(model, inputs, is_trigger, batch_size):
        plain, active = _queries(real, trigger, skip)
        for i, layer in enumerate(layers):
            acts = _read(model, named, i, attention)
            layer.add(acts, real, plain, active)
            length = acts["h"].norm(dim=-1)
            norms[i][0].append(length[:, 0])
            norms[i][1].append(length[:, 1:][real[:, 1:]])
    if not layers[0].n_plain:
        raise InputError(f"no query is left after the first {skip}. Give longer texts, or a smaller skip=")
    peaks = [float(torch.cat(first).mean() / torch.cat(rest).median()) for first, rest in norms]
    heads = [{"layer": i, "head": h, **row} for i, layer in enumerate(layers) for h, row in enumerate(layer.rows())]
    best = max(heads, key=lambda row: row["sink_dormant"])
    table = [[row["sink_dormant"] for row in heads if row["layer"] == i] for i in range(len(layers))]
    numbers: dict[str, Any] = {**best, "resid_peak": max(peaks)}
    return Report(
        title="Extreme tokens",
        slug=CARD.slug,
        numbers=numbers,
        tables={"heads": heads, "layers": [{"layer": i, "resid_peak": peak} for i, peak in enumerate(peaks)]},
        plots={
            "sink": _heatmap("Attention on the first token", table),
            "peak": plots.bars("Residual peak", [str(i) for i in range(len(peaks))], peaks, x_label="layer"),
        },
        fingerprint=model.fingerprint,
    )


def head_dormancy(
    model: Model,
    domains: Mapping[str, Any],
    threshold: float = 0.3,
    k: int = 3,
    skip: int = 4,
    batch_size: int = 32,
    seed: int = 0,
) -> Report:
    """Return the sink of every head in every domain, the heads that switch (eq. 6), and what they are worth.

    domains    name -> texts, or token ids [N T] without padding; at least two
    threshold  difference of the sink between two domains from which a head counts as active-dormant
    k          so many of these heads, of largest difference, are ablated, each beside a random other head

    Arrays: sink [L H domains]. Tables: heads, ablation (loss change by domain, with the control's).

    Raises:
        InputError: fewer than two domains, or one without a text longer than `skip`.
    """
    if len(domains) < 2:
        raise InputError(f"head_dormancy() was given {len(domains)} domains: expected two or more. Add another")
    names = list(domains)
    sink = torch.stack([_sinks(model, name, domains[name], skip, batch_size) for name in names], dim=-1)
    gap = sink.amax(-1) - sink.amin(-1)
    n_heads = sink.shape[1]
    heads: list[dict[str, Any]] = [
        {
            "layer": i,
            "head": h,
            **{name: float(sink[i, h, d]) for d, name in enumerate(names)},
            "difference": float(gap[i, h]),
            "active_dormant": float(gap[i, h]) >= threshold,
        }
        for i in range(len(sink))
        for h in range(n_heads)
    ]
    found = sorted((row for row in heads if row["active_dormant"]), key=lambda row: -row["difference"])
    ablation = _ablations(model, domains, found[:k], (len(sink), n_heads), batch_size, seed)
    top = max(heads, key=lambda row: row["difference"])
    paid = sink[top["layer"], top["head"]]
    return Report(
        title="Heads that work in one domain and rest in another",
        slug=CARD.slug,
        numbers={
            "n active-dormant": len(found),
            "largest difference": top["difference"],
            "layer": top["layer"],
            "head": top["head"],
            "active in": names[int(paid.argmin())],
            "dormant in": names[int(paid.argmax())],
        },
        tables={"heads": heads, "ablation": ablation},
        arrays={"sink": sink},
        plots={"difference": _heatmap("Difference of attention on the first token", gap.tolist())},
        fingerprint=model.fingerprint,
        fitted={"domains": names, "threshold": threshold},
    )


def park_head(model: Model, layer: int, head: int, rows: Bool[Tensor, "B T"] | None = None) -> Edit:
    """Return the edit that puts all attention of a head on the first token, at the queries where `rows` is true.

    A dormant head can be parked for good at no cost; an active one loses its work (without `rows`: all of it).
    """
    name = f"layers.{layer}.attn.pattern"
    model.site(name)

    def parked(pattern: Tensor) -> Tensor:
        first = torch.zeros_like(pattern)
        first[..., 0] = 1.0
        if rows is None:
            return first
        if rows.shape[0] != pattern.shape[0] or rows.shape[1] != pattern.shape[-2]:
            raise ShapeError(f"park_head: rows are {list(rows.shape)}, the batch {list(pattern.shape)}. Match them")
        return torch.where(rows.to(pattern.device)[:, None, :, None], first, pattern)

    return Apply(name, parked).at(head=head)


def fit_log_growth(steps: Sequence[float], values: Sequence[float]) -> dict[str, float]:
    """Return slope, intercept and r2 of the least-squares line of `values` over log(step) (eq. 5).

    Raises:
        ShapeError: not one value per step, or fewer than three.
        InputError: a step that is not positive, or values that are all alike.
    """
    if len(steps) != len(values) or len(steps) < 3:
        raise ShapeError(
            f"{len(steps)} steps and {len(values)} values: expected three pairs or more. Give one per step"
        )
    if min(steps) <= 0:
        raise InputError(f"steps: {min(steps)} is not positive, and has no logarithm. Leave step 0 out")
    x = torch.tensor([math.log(step) for step in steps], dtype=torch.float64)
    y = torch.tensor(list(values), dtype=torch.float64)
    across, up = x - x.mean(), y - y.mean()
    if not bool(across.square().sum()) or not bool(up.square().sum()):
        raise InputError("steps or values are all alike, so there is no line. Give a curve that changes")
    slope = float(across @ up / across.square().sum())
    left = up - slope * across
    r2 = 1 - float(left.square().sum() / up.square().sum())
    return {"slope": slope, "intercept": float(y.mean() - slope * x.mean()), "r2": r2}


def use_relu_attention(module: nn.Module) -> nn.Module:
    """Let a Hugging Face decoder compute ReLU attention (eq. 7) from now on, and return it; train it from scratch so.

    Raises:
        UnsupportedModel: a module that does not choose its attention by transformers' interface.
    """
    config: Any = getattr(module, "config", None)
    if not hasattr(config, "_attn_implementation") or not hasattr(module, "set_attn_implementation"):
        raise UnsupportedModel(
            f"{type(module).__name__} does not choose its attention by name: expected a transformers model. Build the "
            "attention of eq. 7 into its own code"
        )
    from transformers import AttentionInterface

    AttentionInterface.register(RELU_ATTENTION, _relu_attention)
    config._attn_implementation = RELU_ATTENTION
    return module


def _relu_attention(
    module: Any, q: Tensor, k: Tensor, v: Tensor, attention_mask: Any = None, scaling: Any = None, **_: Any
) -> tuple[Tensor, Tensor]:
    """eq. 7 for heads first, [B H T K]; padding on the right changes nothing before it."""
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    weights = _relu_weights((q @ k.mT) * (q.shape[-1] ** -0.5 if scaling is None else scaling))
    return (weights @ v).transpose(1, 2), weights


def _relu_weights(scores: Float[Tensor, "B H T T"]) -> Float[Tensor, "B H T T"]:
    """eq. 7"""
    n = torch.arange(1, scores.shape[-1] + 1, device=scores.device, dtype=scores.dtype)
    return scores.relu().tril() / n[:, None]


class _Layer:
    """Sums over batches of what the heads of one layer do."""

    def __init__(self) -> None:
        self.n_plain = self.n_active = self.n_rest = self.n_rows = 0
        self.sums: dict[str, Tensor] = {}

    def add(self, acts: dict[str, Tensor], real: Tensor, plain: Tensor, active: Tensor) -> None:
        """Add a batch: pattern and scores [B H T T], v [B T H K], masks Bool[B T]."""
        to_first = acts["pattern"][..., 0].transpose(1, 2)  # [B T H]
        length = acts["v"].norm(dim=-1)
        causal = torch.ones_like(acts["scores"][0, 0], dtype=torch.bool).tril()
        causal[:, 0] = False
        n = causal.sum(-1).clamp_min(1)
        scores = acts["scores"].float().masked_fill(~causal, 0.0).sum(-1) / n
        gap = (acts["scores"][..., 0] - scores).transpose(1, 2)  # eq. 4
        rest = real.clone()
        rest[:, 0] = False
        for name, value, mask in (
            ("dormant", to_first, plain),
            ("active", to_first, active),
            ("gap", gap, plain),
            ("rest", length, rest),
        ):
            self._add(name, value[mask].double().sum(0))
        self._add("first", length[:, 0].double().sum(0))
        self.n_plain += int(plain.sum())
        self.n_active += int(active.sum())
        self.n_rest += int(rest.sum())
        self.n_rows += len(real)

    def _add(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums[name] + value if name in self.sums else value

    def rows(self) -> list[dict[str, Any]]:
        """The numbers of every head."""
        first, rest = self.sums["first"] / self.n_rows, self.sums["rest"] / self.n_rest
        n_heads = len(self.sums["dormant"])
        rest, first = (x.repeat_interleave(n_heads // len(x)) for x in (rest, first))  # shared keys and values
        return [
            {
                "sink_dormant": float(self.sums["dormant"][h] / self.n_plain),
                "sink_active": float(self.sums["active"][h] / self.n_active) if self.n_active else None,
                "value_ratio": float(first[h] / rest[h]),
                "value_first": float(first[h]),
                "delta_logit": float(self.sums["gap"][h] / self.n_plain),
            }
            for h in range(n_heads)
        ]


@torch.no_grad()
def _read(model: Model, named: dict[str, Any], layer: int, attention: Attention) -> dict[str, Tensor]:
    """Pattern and scores [B H T T], v [B T H K] and the stream h [B T D] of one layer."""
    at = f"layers.{layer}."
    parts = ("scores", "pattern") if attention == "softmax" else ("q", "k")
    acts = model.run(named, read=[f"{at}resid_post", f"{at}attn.v", *(f"{at}attn.{part}" for part in parts)]).acts
    found = {"h": acts[f"{at}resid_post"].float(), "v": acts[f"{at}attn.v"].float()}
    if attention == "softmax":
        return found | {part: acts[f"{at}attn.{part}"].float() for part in parts}
    q, k = (acts[f"{at}attn.{part}"].float().transpose(1, 2) for part in parts)
    scores = q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).mT * q.shape[-1] ** -0.5
    return found | {"scores": scores, "pattern": _relu_weights(scores)}


@torch.no_grad()
def _sinks(model: Model, domain: str, inputs: Any, skip: int, batch_size: int) -> Float[Tensor, "L H"]:
    """eq. 1 over all queries of a domain."""
    total: Any = 0
    count = 0
    sites = [f"layers.{i}.attn.pattern" for i in range(model.n_layers)]
    for named, real in batches(model, inputs, batch_size):
        plain, _ = _queries(real, torch.zeros_like(real), skip)
        acts = model.run(named, read=sites).acts
        rows = [acts[site][..., 0].float().transpose(1, 2)[plain].double().sum(0) for site in sites]
        total, count = total + torch.stack(rows), count + int(plain.sum())
    if not count:
        raise InputError(f"domain {domain!r}: no query is left after the first {skip}. Give longer texts")
    return (total / count).float()


def _ablations(
    model: Model, domains: Mapping[str, Any], heads: Any, shape: tuple[int, int], batch_size: int, seed: int
) -> list[dict[str, Any]]:
    """Loss change by domain when a head, or a random other one, gives nothing."""
    rng = generator(seed)
    chosen = {(row["layer"], row["head"]) for row in heads}
    others = [(i, h) for i in range(shape[0]) for h in range(shape[1]) if (i, h) not in chosen]
    rows = []
    for row in heads:
        control = others[int(torch.randint(len(others), (1,), generator=rng))] if others else None
        for name, inputs in domains.items():
            base = _loss(model, inputs, None, batch_size)
            change = _loss(model, inputs, _silent(row["layer"], row["head"]), batch_size) - base
            other = None if control is None else _loss(model, inputs, _silent(*control), batch_size) - base
            rows.append(
                {"layer": row["layer"], "head": row["head"], "domain": name, "sink": row[name]}
                | {"loss change": change, "control's": other}
            )
    return rows


def _silent(layer: int, head: int) -> Edit:
    return Ablate(f"layers.{layer}.attn.z").at(head=head)


def _loss(model: Model, inputs: Any, edit: Any, batch_size: int) -> float:
    losses = window_losses if isinstance(inputs, Tensor) else text_losses
    return float(losses(model, inputs, edit, batch_size=batch_size).mean())


def _with_triggers(
    model: Model, inputs: Any, is_trigger: Tensor | None, batch_size: int
) -> Iterator[tuple[dict[str, Any], Tensor, Tensor]]:
    start = 0
    shape = None if is_trigger is None else tuple(is_trigger.shape)
    if shape is not None and (not isinstance(inputs, Tensor) or tuple(inputs.shape) != shape):
        got = list(inputs.shape) if isinstance(inputs, Tensor) else f"{len(inputs)} texts"
        raise ShapeError(f"is_trigger is {list(shape)}, the inputs {got}: expected token ids of that shape. Tokenise")
    for named, real in batches(model, inputs, batch_size):
        part = None if is_trigger is None else is_trigger[start : start + len(real)]
        yield named, real, torch.zeros_like(real) if part is None else part.to(real.device)
        start += len(real)


def _queries(real: Tensor, trigger: Tensor, skip: int) -> tuple[Tensor, Tensor]:
    """Plain and trigger queries, the first `skip` of each row left out."""
    kept = real.clone()
    kept[:, :skip] = False
    return kept & ~trigger, kept & trigger


def _heatmap(title: str, table: Any) -> plots.Plot:
    rows, columns = ([str(i) for i in range(n)] for n in (len(table), len(table[0])))
    return plots.heatmap(title, table, rows, columns, x_label="head", y_label="layer")

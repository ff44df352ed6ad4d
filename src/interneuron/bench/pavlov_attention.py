"""Pavlovian attention: how many associations a head can hold, by the laws of an associative memory.

Paper: Qiao: Understanding Transformers through the Lens of Pavlovian Conditioning (2025),
    https://arxiv.org/abs/2508.08289.

Idea: linear attention writes value v (the unconditional stimulus) under key k (the conditional one) into a matrix and
    reads it with a query q (the test stimulus): conditioning by Hebb's rule. The crosstalk between keys then limits how
    many associations a head can hold, and rules that correct their own error (Rescorla and Wagner's) hold more when
    keys resemble each other, and show the behaviour of animals: extinction, blocking, overshadowing.

Equations:
    (1)  S <- S + v k^T                    hebb;     r = S q,  so r_t = sum_{i<=t} (k_i . q_t) v_i
    (2)  S <- lambda S + v k^T             decay
    (3)  S <- S + eta (v - S k) k^T        delta (Rescorla-Wagner)
    (4)  SNR = K / (N - 1)                 N random unit keys read one by one with Hebb's rule
    (5)  eps_H = eps sqrt((1 - rho)/H + rho),   P_ok = (1 - eps_H)^L

Shapes: k, q [B T K], v [B T V], S [B V K]; K the width of a head, N associations, H redundant heads, L layers.

Cost: hebb O(B T K V) in one product; decay and delta one product per written token. `head_capacity` runs one forward
    pass and O(N^2 K) per head.

Departures: sources differ on the order of the capacity, so both criteria are here: the mean cosine of reading and value
    stays >= 0.7 (O(K); the constant is ours), and the worst crosstalk max_j sum_{i!=j} |k_i . k_j| stays < 1
    (O(sqrt K)). Equation 5 is [inferred]; `redundancy` simulates its first half. Oja's rule is left out. Keys of a real
    head are scaled to unit length before they are written, as the theory has it.

Use:
    model = inn.load("lm")
    report = inn.bench.head_capacity(model, "the lamp was in the garden and mia looked at the lamp .")
    print(report.tables["heads"][0])
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from interneuron.artifacts import Report, plots
from interneuron.core.cards import Card
from interneuron.core.errors import InputError, ShapeError
from interneuron.core.seeds import generator
from interneuron.model.model import Model

CARD = Card(
    id=131,
    slug="pavlov_attention",
    family="bench",
    kind="metric",
    exports=(
        "head_capacity",
        "AssociativeMemory",
        "capacity_curve",
        "conditioning_suite",
        "error_propagation",
        "redundancy",
    ),
    paper="Understanding Transformers through the Lens of Pavlovian Conditioning",
    authors="Qiao, Mu",
    year=2025,
    link="https://arxiv.org/abs/2508.08289",
    purpose="How many associations an attention head can hold, and which learning rule would hold more",
    claim="A head stores O(d_k) associations before interference; depth, width and redundancy trade off",
)

Rule = Literal["hebb", "decay", "delta"]
Criterion = Literal["cosine", "worst"]
RULES = ("hebb", "decay", "delta")
MIN_COSINE = 0.7
MAX_CROSSTALK = 1.0


class AssociativeMemory:
    """A matrix that learns pairs of key and value, one batch of independent memories at a time.

    rule    hebb (eq. 1), decay (eq. 2) or delta (eq. 3)
    eta     step of the delta rule; stable below 2 / |k|^2
    decay   factor lambda of the decay rule
    """

    def __init__(self, d_k: int, d_v: int, rule: Rule = "hebb", eta: float = 1.0, decay: float = 1.0) -> None:
        if rule not in RULES:
            raise InputError(f"AssociativeMemory: rule={rule!r}, expected one of {', '.join(RULES)}")
        if d_k < 1 or d_v < 1:
            raise InputError(f"AssociativeMemory: widths d_k={d_k}, d_v={d_v}, expected both >= 1")
        self.d_k, self.d_v, self.rule, self.eta, self.decay = d_k, d_v, rule, eta, decay
        self.state: Tensor | None = None

    def write(self, k: Float[Tensor, "B T K"], v: Float[Tensor, "B T V"]) -> AssociativeMemory:
        """Learn T pairs in their order and return the memory itself.

        Raises:
            ShapeError: keys and values are not [B T d_k] and [B T d_v] of one B and T.
        """
        if (
            k.dim() != 3
            or v.dim() != 3
            or k.shape[:2] != v.shape[:2]
            or (k.shape[2], v.shape[2])
            != (
                self.d_k,
                self.d_v,
            )
        ):
            raise ShapeError(
                f"keys {list(k.shape)} and values {list(v.shape)}, expected [B T {self.d_k}] and [B T {self.d_v}] with "
                "one B and T. Split heads into the batch first"
            )
        state = torch.zeros(len(k), self.d_v, self.d_k, dtype=k.dtype, device=k.device)
        if self.state is not None:
            if self.state.shape != state.shape:
                raise ShapeError(f"a batch of {len(k)} written to {len(self.state)} memories. Use a new memory")
            state = self.state
        if self.rule == "hebb":
            self.state = state + torch.einsum("btv,btk->bvk", v, k)  # eq. 1
            return self
        for t in range(k.shape[1]):
            key, value = k[:, t], v[:, t]
            if self.rule == "decay":
                state = self.decay * state + value[:, :, None] * key[:, None, :]  # eq. 2
            else:
                error = value - torch.einsum("bvk,bk->bv", state, key)
                state = state + self.eta * error[:, :, None] * key[:, None, :]  # eq. 3
        self.state = state
        return self

    def read(self, q: Float[Tensor, "B T K"]) -> Float[Tensor, "B T V"]:
        """Return what the queries recall; zeros before anything was written."""
        if q.dim() != 3 or q.shape[2] != self.d_k:
            raise ShapeError(f"queries {list(q.shape)}, expected [B T {self.d_k}]")
        if self.state is None:
            return q.new_zeros(*q.shape[:2], self.d_v)
        return torch.einsum("bvk,btk->btv", self.state, q)


def capacity_curve(
    d_k: int,
    rule: Rule = "hebb",
    criterion: Criterion = "cosine",
    correlation: float = 0.0,
    passes: int = 1,
    n_draws: int = 4,
    seed: int = 0,
) -> Report:
    """Return fidelity against the number N of associations, and the largest N that meets the criterion.

    Keys are random unit vectors; `correlation` is the share of variance they have in common. N grows by a tenth at a
    time until the criterion is missed; `capacity` lies between the last N that met it and the next, by linear
    interpolation. Numbers: capacity. Arrays: N, score.

    Raises:
        InputError: a criterion, width, correlation or count that makes no sense.
    """
    if criterion not in ("cosine", "worst"):
        raise InputError(f"capacity_curve: criterion={criterion!r}, expected 'cosine' or 'worst'")
    if not 0 <= correlation < 1 or passes < 1 or n_draws < 1 or d_k < 1:
        raise InputError(
            f"capacity_curve: d_k={d_k}, correlation={correlation}, passes={passes}, n_draws={n_draws}; expected "
            "0 <= correlation < 1 and the others >= 1"
        )
    rng = generator(seed)
    counts: list[int] = []
    scores: list[float] = []
    n, capacity = 2, math.nan
    while math.isnan(capacity):
        keys, values = _pairs(n, d_k, correlation, n_draws, rng)
        met, score = _fidelity(keys, values, rule, criterion, passes)
        counts.append(n)
        scores.append(score)
        if not met:
            capacity = _crossing(counts, scores, MIN_COSINE if criterion == "cosine" else MAX_CROSSTALK)
        n = max(n + 1, round(1.1 * n))
    title = f"Associations held by a memory of key width {d_k} ({rule})"
    return Report(
        slug=CARD.slug,
        title=title,
        numbers={"capacity": capacity, "d_k": d_k, "rule": rule, "criterion": criterion},
        arrays={"N": torch.tensor(counts), "score": torch.tensor(scores)},
        plots={"curve": plots.lines(title, counts, {criterion: scores}, x_label="associations", y_label=criterion)},
    )


def snr(d_k: int, n: int, n_draws: int = 64, seed: int = 0) -> float:
    """Return signal over crosstalk power of Hebb's rule with n random unit keys; eq. 4 says d_k / (n - 1)."""
    keys, values = _pairs(n, d_k, 0.0, n_draws, generator(seed))
    crosstalk = AssociativeMemory(d_k, d_k).write(keys, values).read(keys) - values
    return float(values.square().sum() / crosstalk.square().sum())


def conditioning_suite(rule: Rule, trials: int = 30, eta: float = 0.3, decay: float = 0.9) -> Report:
    """Return how a rule behaves in the classical experiments: response to a stimulus, trial by trial.

    Two stimuli A and B are orthogonal unit keys, X is shared; the unconditional stimulus is 1 or 0. Numbers:
    `acquisition` (A -> 1), `extinction` (then A -> 0, as a share), `blocking` (response to B after A then AB, over that
    after AB alone), `overshadowing` (A after AB over A after A), `discrimination` (AX -> 1, BX -> 0: AX minus BX).
    """
    a, b, x = torch.eye(3)

    def train(plan: list[tuple[Tensor, float]], test: Tensor) -> tuple[float, list[float]]:
        memory, curve = AssociativeMemory(3, 1, rule, eta, decay), []
        for key, value in plan:
            memory.write(key[None, None], torch.full((1, 1, 1), value))
            curve.append(float(memory.read(test[None, None])))
        return curve[-1], curve

    acquired, rise = train([(a, 1.0)] * trials, a)
    left, fall = train([(a, 1.0)] * trials + [(a, 0.0)] * trials, a)
    blocked, _ = train([(a, 1.0)] * trials + [(a + b, 1.0)] * trials, b)
    alone, _ = train([(a + b, 1.0)] * trials, b)
    shaded, _ = train([(a + b, 1.0)] * trials, a)
    both = [(a + x, 1.0), (b + x, 0.0)] * trials
    told = train(both, a + x)[0] - train(both, b + x)[0]
    title = f"Acquisition and extinction ({rule})"
    return Report(
        slug=CARD.slug,
        title=f"Classical conditioning with the rule {rule}",
        numbers={
            "acquisition": acquired,
            "extinction": left / acquired,
            "blocking": blocked / alone,
            "overshadowing": shaded / acquired,
            "discrimination": told,
        },
        plots={
            "curve": plots.lines(
                title, range(1, len(fall) + 1), {"response to A": fall}, x_label="trial", y_label="response"
            )
        },
        arrays={"acquisition": torch.tensor(rise), "extinction": torch.tensor(fall)},
    )


def error_propagation(eps: float, depth: int, n_heads: int = 1, rho: float = 0.0) -> float:
    """Return the probability that a chain of `depth` layers makes no error (eq. 5).

    eps      error of one head; rho the correlation of the errors of the n_heads redundant heads of a layer
    """
    if not 0 <= eps <= 1 or depth < 0 or n_heads < 1 or not 0 <= rho <= 1:
        raise InputError(
            f"error_propagation: eps={eps}, depth={depth}, n_heads={n_heads}, rho={rho}; expected eps and rho in "
            "[0, 1], depth >= 0, n_heads >= 1"
        )
    return float((1 - eps * math.sqrt((1 - rho) / n_heads + rho)) ** depth)


def redundancy(eps: float, n_heads: int, rho: float, n_draws: int = 20_000, seed: int = 0) -> float:
    """Return the error left by averaging n_heads heads whose errors of size eps correlate by rho, by simulation."""
    rng = generator(seed)
    shared = torch.randn(n_draws, 1, generator=rng, dtype=torch.float64)
    own = torch.randn(n_draws, n_heads, generator=rng, dtype=torch.float64)
    return float((eps * (math.sqrt(rho) * shared + math.sqrt(1 - rho) * own)).mean(1).square().mean().sqrt())


def head_capacity(model: Model, inputs: Any, seed: int = 0) -> Report:
    """Return, for every head with keys and values, how many of its own associations it could hold.

    Table `heads`: layer, head, `d_eff` (participation ratio of its unit keys), `capacity` (associations a linear
    read-out recalls with mean cosine >= 0.7, drawn at random from the tokens), `n_tokens` (how many there were; a
    capacity equal to it is a lower bound).

    Raises:
        InputError: fewer than three tokens, or no layer of the model has keys and values.
    """
    sites = [site.name for site in model.sites("layers.*.attn.k")]
    if not sites:
        raise InputError("head_capacity: the model has no site layers.N.attn.k. Give a model with attention")
    with torch.no_grad():
        acts = model.run(inputs, read=[*sites, *(name[:-1] + "v" for name in sites)]).acts
    rows: list[dict[str, Any]] = []
    for name in sites:
        keys, values = (acts[name[:-1] + kind].flatten(0, 1).double() for kind in "kv")  # [N H K]
        if len(keys) < 3:
            raise InputError(f"head_capacity: {len(keys)} tokens, expected at least 3. Give a longer text")
        order = torch.randperm(len(keys), generator=generator(seed)).to(keys.device)
        for head in range(keys.shape[1]):
            unit = torch.nn.functional.normalize(keys[order, head], dim=-1)
            rows.append({"layer": int(name.split(".")[1]), "head": head, **_head(unit, values[order, head])})
    table = [[row["capacity"] for row in rows if row["layer"] == layer] for layer in sorted({r["layer"] for r in rows})]
    layers = sorted({str(row["layer"]) for row in rows}, key=int)
    title = "Associations each head could hold"
    return Report(
        slug=CARD.slug,
        site=tuple(sites),
        fingerprint=model.fingerprint,
        title=title,
        numbers={"median capacity": float(torch.tensor([float(r["capacity"]) for r in rows]).median())},
        tables={"heads": rows},
        plots={
            "heads": plots.heatmap(
                title, table, layers, [str(h) for h in range(len(table[0]))], x_label="head", y_label="layer"
            )
        },
    )


def _head(keys: Tensor, values: Tensor) -> dict[str, Any]:
    """Effective key width and capacity of one head from its unit keys [N K] and values [N V]."""
    spectrum = torch.linalg.svdvals(keys).square()
    n, capacity = 2, len(keys)
    while n <= len(keys):
        recalled = (keys[:n] @ keys[:n].T) @ values[:n]
        if float(torch.cosine_similarity(recalled, values[:n], dim=-1).mean()) < MIN_COSINE:
            capacity = n - 1
            break
        n = n + 1 if n < 20 else round(1.1 * n)
    d_eff = float(spectrum.sum().square() / spectrum.square().sum())
    return {"d_eff": d_eff, "capacity": capacity, "n_tokens": len(keys)}


def _pairs(n: int, d_k: int, correlation: float, n_draws: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Unit keys [B N K] that share a component, and unit values [B N K]."""
    shared = torch.randn(n_draws, 1, d_k, generator=rng)
    own, values = (torch.randn(n_draws, n, d_k, generator=rng) for _ in range(2))
    keys = math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * own
    return torch.nn.functional.normalize(keys, dim=-1), torch.nn.functional.normalize(values, dim=-1)


def _fidelity(keys: Tensor, values: Tensor, rule: Rule, criterion: Criterion, passes: int) -> tuple[bool, float]:
    """Whether the criterion is met, and the score it looks at."""
    if criterion == "worst":
        overlaps = (keys @ keys.mT).abs().sum(-1) - 1
        worst = float(overlaps.max(dim=-1).values.mean())
        return worst < MAX_CROSSTALK, worst
    memory = AssociativeMemory(keys.shape[2], values.shape[2], rule)
    for _ in range(passes):
        memory.write(keys, values)
    cosine = float(torch.cosine_similarity(memory.read(keys), values, dim=-1).mean())
    return cosine >= MIN_COSINE, cosine


def _crossing(counts: list[int], scores: list[float], level: float) -> float:
    """N at which the score crosses the level between the last two counts; the first count when it is missed at once."""
    if len(counts) == 1:
        return float(counts[0])
    (n0, n1), (s0, s1) = counts[-2:], scores[-2:]
    return n0 + (n1 - n0) * (level - s0) / (s1 - s0)

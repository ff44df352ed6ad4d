"""Growth law of massive activations: recovered from noisy curves, fitted to ten small models, told in advance.

Curves of known parameters with 5 % noise check the fit. The real curves are the ratios of every layer of ten
architectures at 20 log-spaced steps of training on Tinyworld, kept as a table beside this file (`python -m
interneuron.claims.measure.massive_activation_dynamics` trains them again), and those of the shipped checkpoints of
`lm-small` and `lm-relu`, measured anew under every seed on its own text. Compared is the AIC of the law, layer by
layer, with that of the better of its two rivals; the control is the law on the same ratios in shuffled order.

Deviations from the check, for time: the models of the table have 2 to 8 layers of width 32 to 96 and saw 0.29M tokens.
The curves of known parameters peak between 5 and 20 % of training, at two to five times K, and have come within 10 % of
K at its end: others have no peak or no asymptote to recover. Their noise is 5 % of each value.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interneuron.artifacts import Report
from interneuron.claims import Claim, Comparison
from interneuron.core.seeds import numpy_rng
from interneuron.loading import load
from interneuron.measure.massive_activation_dynamics import (
    PARAMETERS,
    GrowthLaw,
    GrowthLawPredictor,
    fit_growth_law,
    massive_activations,
)
from interneuron.model.load import wrap
from interneuron.model.model import Model
from interneuron.organisms import Organism
from interneuron.organisms import tinyworld as tw
from interneuron.parts.massive_activations import massive_ratio

CLAIM = Claim(
    slug="massive_activation_dynamics",
    organism="lm-small",
    paper="a five-parameter law fits their emergence in Pythia; the steady state follows from the architecture",
    better="lower",
    unit="AIC",
    minutes=2.0,
    why=(
        "The law has the lowest AIC in 78 to 86 % of the layers, finds the peak of known curves, and fits ratios in "
        "shuffled order far worse. It explains less of the real curves than in Pythia (median R2 0.76): the ratio of "
        "one largest value over 640 tokens jumps from step to step, and 0.29M tokens of training lift it only to 5 to "
        "12, where most curves still rise at the end. Their asymptote is then hardly determined by the data, so that "
        "it cannot be told from the architecture either, of which there are ten. K of known curves is missed under "
        "one seed by one curve of forty. Other bounds on K and other choices among equally good fits were tried."
    ),
)

TABLE = Path(__file__).with_name("massive_ratios.json")
LIVE = ("lm-small", "lm-relu")
N_CURVES, N_POINTS, NOISE, NEAR = 40, 20, 0.05, 0.1
STEPS, FIRST, TOKENS_PER_STEP = 500, 5, 576
N_ROWS, LENGTH = 16, 40

# class, width, layers, heads, hidden units
ARCHITECTURES: dict[str, tuple[str, int, int, int, int]] = {
    "llama-64-2": ("llama", 64, 2, 2, 128),
    "llama-64-4": ("llama", 64, 4, 2, 128),
    "llama-64-6": ("llama", 64, 6, 4, 192),
    "llama-32-4": ("llama", 32, 4, 2, 96),
    "llama-48-8": ("llama", 48, 8, 2, 96),
    "gemma2-64-4": ("gemma2", 64, 4, 2, 128),
    "gemma2-32-6": ("gemma2", 32, 6, 2, 96),
    "gpt2-64-2": ("gpt2", 64, 2, 4, 256),
    "gpt2-64-4": ("gpt2", 64, 4, 2, 192),
    "gpt2-96-3": ("gpt2", 96, 3, 3, 256),
}


def claim(seed: int) -> Comparison:
    """Recover known curves, fit the real ones against their rivals, and predict parameters model by model."""
    near = _recovered(seed)
    curves = [*_stored(), *_live(seed)]
    laws = [fit_growth_law(steps, ratios) for _, steps, ratios in curves]
    rival = [min(law.rivals.values()) for law in laws]
    rng = numpy_rng(seed, "order")
    shuffled = [fit_growth_law(steps, rng.permutation(ratios).tolist()) for _, steps, ratios in curves]
    best = sum(law.aic < other for law, other in zip(laws, rival, strict=True)) / len(laws)
    told = [i for i, (row, _, _) in enumerate(curves) if row["model"] in ARCHITECTURES]
    predicted = _predict([curves[i][0] for i in told], [laws[i] for i in told], seed, permute=False)
    permuted = _predict([curves[i][0] for i in told], [laws[i] for i in told], seed, permute=True)
    r2 = float(np.median([law.r2 for law in laws]))
    return Comparison(
        ours=[law.aic for law in laws],
        baseline=rival,
        control=[law.aic for law in shuffled],
        gates={
            "known curves: K within 10 % in >= 90 %": near["K"] >= 0.9,
            "known curves: the peak's time within 10 % in >= 90 %": near["peak"] >= 0.9,
            "real curves: median R2 >= 0.85": r2 >= 0.85,
            "real curves: lower AIC than both rivals in >= 60 % of layers": best >= 0.6,
            "leave one model out: R2 of K > 0.3": predicted["K"] > 0.3,
            "leave one model out: R2 of K above those of A and t0": predicted["K"]
            > max(predicted["A"], predicted["t0"]),
            "permuted features: R2 <= 0 for every parameter": max(permuted.values()) <= 0,
        },
        extra={
            "known curves, K near": near["K"],
            "known curves, peak near": near["peak"],
            "median R2": r2,
            "median R2, shuffled": float(np.median([law.r2 for law in shuffled])),
            "share of layers with the lowest AIC": best,
            "early peaks": sum(law.shape == "early peak" for law in laws),
            "curves": len(laws),
            **{f"R2 of {name}, other models": value for name, value in predicted.items()},
            **{f"R2 of {name}, permuted": value for name, value in permuted.items()},
        },
    )


def example(model: Model) -> Report:
    """The largest activations of every layer on two texts."""
    return massive_activations(model, ["she felt happy .", "the lamp was lovely today ."])


def _recovered(seed: int) -> dict[str, float]:
    """Share of curves whose K and whose time of the peak come back within 10 %."""
    rng = numpy_rng(seed, "curves")
    steps, every = np.geomspace(FIRST, STEPS, N_POINTS), np.linspace(1, STEPS, 20 * STEPS)
    right = {"K": 0, "peak": 0}
    made = 0
    while made < N_CURVES:
        lam, gamma, t0 = np.exp(rng.uniform(np.log([0.05, 5.0, 0.5]), np.log([1.0, 120.0, 3.0])))
        truth = GrowthLaw(rng.uniform(50, 1500), lam, gamma, t0, rng.uniform(10, 50), 1, 0, None, float(STEPS), {})
        fine, values = np.array(truth(every.tolist())), np.array(truth(steps.tolist()))
        peak, height = float(every[fine.argmax()]), float(fine.max()) / truth.K
        seen = 0.05 * STEPS <= peak <= 0.2 * STEPS and 2 <= height <= 5 and values.min() > 0
        if not seen or abs(fine[-1] / truth.K - 1) > NEAR:
            continue
        made += 1
        law = fit_growth_law(steps.tolist(), (values * (1 + NOISE * rng.standard_normal(N_POINTS))).tolist())
        right["K"] += abs(law.K / truth.K - 1) <= NEAR
        right["peak"] += law.peak is not None and abs(law.peak / peak - 1) <= NEAR
    return {name: count / made for name, count in right.items()}


def _stored() -> list[tuple[dict[str, Any], list[float], list[float]]]:
    """(model and layer, steps, ratios) of every layer in the table."""
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    return [
        ({"model": name, "layer": layer}, table["steps"], [row[layer] for row in rows])
        for name, rows in table["ratios"].items()
        for layer in range(len(rows[0]))
    ]


def _live(seed: int) -> list[tuple[dict[str, Any], list[float], list[float]]]:
    """The same of the shipped checkpoints, in training tokens."""
    rows = _rows(seed)
    curves: list[tuple[dict[str, Any], list[float], list[float]]] = []
    for name in LIVE:
        counts = [float(n) for n in Organism(name).checkpoints]
        table = [massive_ratio(load(name, checkpoint=i), rows).tolist() for i in range(len(counts))]
        curves += [({"model": name, "layer": i}, counts, [row[i] for row in table]) for i in range(len(table[0]))]
    return curves


def _predict(rows: list[dict[str, Any]], laws: list[GrowthLaw], seed: int, permute: bool) -> dict[str, float]:
    features = [_features(row["model"], row["layer"]) for row in rows]
    parameters = [{name: getattr(law, name) for name in PARAMETERS} for law in laws]
    models = [row["model"] for row in rows]
    return GrowthLawPredictor(seed=seed).cross_validate(features, parameters, models, permute=permute)


def _features(name: str, layer: int) -> dict[str, float]:
    kind, width, depth, heads, hidden = ARCHITECTURES[name]
    gated = 2 if kind == "gpt2" else 3
    size = depth * (4 * width * width + gated * width * hidden)
    return {
        "depth": depth, "layer": layer, "place": (layer + 1) / depth, "width": width, "heads": heads,
        "head size": width / heads, "mlp ratio": hidden / width, "log parameters": float(np.log(size)),
        "norms after": float(kind == "gemma2"), "layer norm": float(kind == "gpt2"),
    }  # fmt: skip


def _rows(seed: int) -> Tensor:
    """The first words of documents that are long enough, so that nothing is padded."""
    rows: list[Tensor] = []
    for document in tw.corpus(tokens=1e6, seed=20_000 + seed):
        if len(document.words) >= LENGTH - 1:
            rows.append(torch.tensor(tw.encode(" ".join(document.words[: LENGTH - 1]))))
        if len(rows) == N_ROWS:
            break
    return torch.stack(rows)


def record(name: str) -> list[list[float]]:
    """Train one architecture of the table and return the ratio of every layer at the log-spaced steps."""
    from interneuron.organisms.language import LanguageRecipe, Phase
    from interneuron.organisms.trainer import Trainer

    recipe = LanguageRecipe(
        name=name, about="", architecture=ARCHITECTURES[name][0], config=_config(name), optimiser="adamw", lr=3e-3,
        phases=(Phase(STEPS * TOKENS_PER_STEP / 1e6, "lm"),), minutes=1, tokens_per_step=TOKENS_PER_STEP,
    )  # fmt: skip
    rows, found = _rows(0), []
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(recipe, Path(folder))
        model, packed = wrap(trainer.model), trainer.model.config._attn_implementation
        for step in range(1, STEPS + 1):
            trainer.one_step()
            if step in marks():
                trainer.model.config._attn_implementation = "eager"  # rows of one text each
                found.append([round(ratio, 4) for ratio in massive_ratio(model, rows).tolist()])
                trainer.model.config._attn_implementation = packed
    return found


def marks() -> list[int]:
    """The steps at which the models of the table were measured."""
    return [round(step) for step in np.geomspace(FIRST, STEPS, N_POINTS)]


def _config(name: str) -> dict[str, Any]:
    kind, width, depth, heads, hidden = ARCHITECTURES[name]
    if kind == "gpt2":
        dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return {"n_embd": width, "n_layer": depth, "n_head": heads, "n_inner": hidden, **dropout}
    shared: dict[str, Any] = {
        "hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads, "num_key_value_heads": heads,
        "intermediate_size": hidden, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    }  # fmt: skip
    if kind == "gemma2":
        shared |= {
            "head_dim": width // heads, "hidden_activation": "silu", "query_pre_attn_scalar": width // heads,
            "attn_logit_softcapping": None, "final_logit_softcapping": None, "layer_types": ["full_attention"] * depth,
        }  # fmt: skip
    return shared


def main() -> None:
    """Train every architecture that the table lacks, and write the table after each."""
    table: dict[str, Any] = {"steps": marks(), "ratios": {}}
    if TABLE.exists():
        table = json.loads(TABLE.read_text(encoding="utf-8"))
    for name in ARCHITECTURES:
        if name not in table["ratios"]:
            table["ratios"][name] = record(name)
            TABLE.write_text(json.dumps(table), encoding="utf-8")


if __name__ == "__main__":
    main()

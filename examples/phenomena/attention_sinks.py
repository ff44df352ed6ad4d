"""Attention sinks and massive activations: present, or honestly absent?

    python examples/phenomena/attention_sinks.py

Sink: attention to the first token, by layer, far above what even attention would give (Xiao et al. 2024; we say present
from half of all attention on). Control: attention to the second token. Massive activation: the largest entry of the
residual stream over the median one (Sun et al. 2024 say massive from about 1,000 on). Control: the same ratio among as
many Gaussian numbers. Beside `lm`, two organisms that differ in class and optimiser.
"""

from __future__ import annotations

from pathlib import Path

import torch
from figures import arguments, batch, curves, show

import interneuron as inn
from interneuron.organisms import tinyworld

BESIDE = ("lm-gpt2", "lm-small")
SINK, MASSIVE = 0.5, 1000.0
FROM = 8  # queries from here on have a choice


def measure(model: inn.Model, tokens: torch.Tensor) -> dict[str, list[float]]:
    """By layer: attention to the first and the second token, the share of the most fixed head, and the ratio."""
    acts = model.run(batch(tokens), read=["layers.*.attn.pattern", "layers.*.resid_post"]).acts
    real = tokens != 0
    out: dict[str, list[float]] = {"first": [], "second": [], "head": [], "ratio": []}
    for name, value in acts.items():
        if name.endswith("pattern"):
            late = value.transpose(1, 2)[:, FROM:][real[:, FROM:]]  # [queries, head, key]
            out["first"].append(float(late[..., 0].mean()))
            out["second"].append(float(late[..., 1].mean()))
            out["head"].append(float(late[..., 0].mean(0).max()))
        else:
            size = value[real].abs()
            out["ratio"].append(float(size.max() / size.median()))
    return out


@torch.no_grad()
def main(model: inn.Model, n: int, out: Path) -> dict[str, float]:
    """Measure `model` and the shipped organisms beside it, and draw both measures by layer."""
    tokens = tinyworld.probe("sentiment", n=n, seed=1).tokens
    shipped = {organism.name for organism in inn.organisms.list() if organism.status == "shipped"}
    label = str(model.organism.name) if model.organism else "this model"
    models = {label: model, **{name: inn.load(name) for name in BESIDE if name in shipped and name != label}}
    found = {name: measure(one, tokens) for name, one in models.items()}

    width = model.run("the", read="embed").acts["embed"].shape[-1]
    noise = torch.randn(int((tokens != 0).sum()), width, generator=torch.Generator().manual_seed(0)).abs()
    gaussian = float(noise.max() / noise.median())
    even = [1 / (t + 1) for row in (tokens != 0).tolist() for t in range(FROM, sum(row))]
    chance = sum(even) / len(even)

    rows = []
    for name, m in found.items():
        sink = "present" if max(m["first"]) >= SINK else "absent"
        massive = "present" if max(m["ratio"]) >= MASSIVE else "absent"
        best = max(range(len(m["first"])), key=m["first"].__getitem__)
        rows.append((name, m["first"][best], best, max(m["head"]), m["second"][best], sink, max(m["ratio"]), massive))
    columns = ["model", "to first", "layer", "top head", "control: to second", "sink", "largest/median", "massive"]
    show(f"Sinks (even attention: {chance:.3f}) and massive activations (Gaussian: {gaussian:.1f})", columns, rows)
    shares = {name: m["first"] for name, m in found.items()} | {"control: second token": found[label]["second"]}
    curves(out / "attention_sinks.png", shares, "Attention to the first token", "layer", "share")
    ratios = {name: m["ratio"] for name, m in found.items()} | {"control: Gaussian": [gaussian] * model.n_layers}
    curves(out / "massive_activations.png", ratios, "Largest over median |resid_post|", "layer", "ratio")
    mine = {key: max(values) for key, values in found[label].items()}
    return {"sink": mine["first"], "second": mine["second"], "even": chance, "ratio": mine["ratio"], "noise": gaussian}


if __name__ == "__main__":
    main(*arguments("look for sinks and massive activations", n=64))

"""Attention sinks and massive activations: present, or honestly absent?

    python examples/phenomena/attention_sinks.py

Share of attention that goes to the first token, by layer; and the largest |activation| of the residual stream over its
median, by layer (Sun et al. 2024 call it massive from about 1,000 on). An AdamW-trained twin is shown beside `lm`.
"""

from __future__ import annotations

import torch
from figures import arguments, batch, curves

import interneuron as inn
from interneuron.organisms import tinyworld


def measure(model: inn.Model, tokens: torch.Tensor) -> tuple[list[float], list[float]]:
    """Share of attention to the first token, and largest over median |resid_post|, by layer."""
    with model.read("layers.*.attn.pattern", "layers.*.resid_post") as acts:
        model(batch(tokens))
    real = tokens != 0
    sinks, ratios = [], []
    for name in acts.names:
        if name.endswith("pattern"):
            later = real[:, None, 4:].expand(-1, acts[name].shape[1], -1)  # queries far enough to have a choice
            sinks.append(float(acts[name][:, :, 4:, 0][later].mean()))
        else:
            size = acts[name][real].abs()
            ratios.append(float(size.max() / size.median()))
    return sinks, ratios


def main() -> None:
    model, out = arguments("look for sinks and massive activations")
    tokens = tinyworld.probe("sentiment", n=64, seed=1).tokens
    models = {"lm": model}
    if "lm-small" in {row.name for row in inn.organisms.list() if row.shipped}:
        models["lm-small (AdamW)"] = inn.load("lm-small")
    sinks, ratios = {}, {}
    for name, one in models.items():
        sinks[name], ratios[name] = measure(one, tokens)
        most = max(sinks[name])
        print(f"{name}: most attention to the first token {most:.0%} (layer {sinks[name].index(most)})")
        print(f"{name}: largest over median activation {max(ratios[name]):.0f} -> ", end="")
        print("massive activations present" if max(ratios[name]) >= 1000 else "no massive activations")
    curves(out / "attention_sinks.png", sinks, "Attention to the first token", "layer", "share")
    curves(out / "massive_activations.png", ratios, "Largest over median |resid_post|", "layer", "ratio")


if __name__ == "__main__":
    main()

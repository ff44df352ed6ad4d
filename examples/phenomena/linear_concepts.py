"""Are sentiment and truth linear? A difference of means on training pairs, judged on held-out ones, layer by layer.

    python examples/phenomena/linear_concepts.py

AUC of the projection on the direction, beside the same with shuffled labels.
"""

from __future__ import annotations

import torch
from figures import arguments, batch, curves

from interneuron.organisms import tinyworld


def area(positive: torch.Tensor, negative: torch.Tensor) -> float:
    """Chance that a positive projects higher than a negative (ties count half)."""
    gap = positive[:, None] - negative[None]
    return float((gap > 0).float().mean() + 0.5 * (gap == 0).float().mean())


def main() -> None:
    model, out = arguments("decode sentiment and truth linearly")

    def last_tokens(texts) -> dict[str, torch.Tensor]:
        sites = [site.at(pos=-1) for site in model.sites("layers.*.resid_post")]
        with model.read(*sites) as acts:
            model(batch(texts.tokens))
        return {name: acts[name] for name in acts.names}

    lines = {}
    for concept in ("sentiment", "truth"):
        train = [last_tokens(side) for side in tinyworld.contrast(concept, n=200, seed=1, split="train")]
        test = [last_tokens(side) for side in tinyworld.contrast(concept, n=200, seed=2, split="test")]
        scores, shuffled = [], []
        order = torch.randperm(400, generator=torch.Generator().manual_seed(0))
        for name in train[0]:
            v = train[0][name].mean(0) - train[1][name].mean(0)
            mixed = torch.cat([train[0][name], train[1][name]])[order]
            u = mixed[:200].mean(0) - mixed[200:].mean(0)
            scores.append(area(test[0][name] @ v, test[1][name] @ v))
            shuffled.append(area(test[0][name] @ u, test[1][name] @ u))
        lines |= {concept: scores, f"{concept}, shuffled labels": shuffled}
        best = max(range(len(scores)), key=scores.__getitem__)
        print(f"{concept}: held-out AUC {scores[best]:.3f} at layer {best}; shuffled labels {shuffled[best]:.3f}")
    curves(out / "linear_concepts.png", lines, "Difference-of-means direction", "layer", "held-out AUC")


if __name__ == "__main__":
    main()

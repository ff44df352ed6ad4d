"""Are sentiment and truth linear? A linear probe on the last token, layer by layer, judged on other texts.

    python examples/phenomena/linear_concepts.py

The texts are minimal pairs. The direction is the difference of means divided by the within-class covariance (Fisher's
discriminant, with a ridge); beside it the plain difference of means, which ignores how the other latents vary, and the
control: the same discriminant fitted on shuffled labels. AUC: chance that a positive text scores above a negative one.
"""

from __future__ import annotations

from pathlib import Path

import torch
from figures import arguments, batch, curves, show

import interneuron as inn
from interneuron.organisms import tinyworld
from interneuron.parts.contrast import auc

RIDGE, DRAWS = 0.1, 8


def last_tokens(model: inn.Model, texts: tinyworld.Texts) -> dict[str, torch.Tensor]:
    """The residual stream at each text's last token, Float[N D] by site."""
    sites = [site.at(pos=-1) for site in model.sites("layers.*.resid_post")]
    parts = [model.run(batch(tokens), read=sites).acts for tokens in texts.tokens.split(64)]
    return {site.name: torch.cat([acts[site.name] for acts in parts]) for site in sites}


def discriminant(positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    """w = (S + r tr(S)/D I)^-1 (mean of positives - mean of negatives), S the within-class covariance."""
    within = torch.cat([positive - positive.mean(0), negative - negative.mean(0)]).double()
    s = within.T @ within / len(within)
    s += RIDGE * s.diagonal().mean() * torch.eye(len(s), dtype=s.dtype)
    return torch.linalg.solve(s, (positive.mean(0) - negative.mean(0)).double()).float()


def judged(v: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor) -> float:
    """AUC of the projection on `v`."""
    return auc(positive @ v, negative @ v)


@torch.no_grad()
def main(model: inn.Model, n: int, out: Path) -> dict[str, float]:
    """Fit on `n` pairs, judge on 200 others, draw the AUC by layer."""
    lines: dict[str, list[float]] = {}
    rows, found = [], {}
    for concept in ("sentiment", "truth"):
        fit = [last_tokens(model, side) for side in tinyworld.contrast(concept, n=n, seed=1, split="train")]
        held = [last_tokens(model, side) for side in tinyworld.contrast(concept, n=200, seed=2, split="test")]
        rng = torch.Generator().manual_seed(0)
        orders = [torch.randperm(2 * n, generator=rng) for _ in range(DRAWS)]
        probe, plain, shuffled, worst = [], [], [], []
        for site in fit[0]:
            positive, negative = fit[0][site], fit[1][site]
            texts = held[0][site], held[1][site]
            probe.append(judged(discriminant(positive, negative), *texts))
            plain.append(judged(positive.mean(0) - negative.mean(0), *texts))
            mixed = torch.cat([positive, negative])
            draws = [judged(discriminant(mixed[order[:n]], mixed[order[n:]]), *texts) for order in orders]
            shuffled.append(sum(draws) / DRAWS)
            worst.append(max(draws))
        lines |= {concept: probe, f"{concept}, difference of means": plain, f"{concept}, control": shuffled}
        best = max(range(len(probe)), key=probe.__getitem__)
        rows.append((concept, best, probe[best], plain[best], shuffled[best], worst[best]))
        found |= {concept: probe[best], f"{concept}_control": worst[best]}
    show(
        "Held-out AUC at the best layer",
        ["concept", "layer", "probe", "difference of means", "control: shuffled", f"largest of {DRAWS}"],
        rows,
    )
    curves(out / "linear_concepts.png", lines, "Linear read-out of the last token", "layer", "held-out AUC")
    return found


if __name__ == "__main__":
    main(*arguments("decode sentiment and truth linearly", n=400))

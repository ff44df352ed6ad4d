"""How few neurons matter? Keeping only the largest MLP activations of each token, layer by layer and all at once.

    python examples/phenomena/mlp_sparsity.py

Loss on held-out text when every MLP keeps its k% largest |hidden| entries per token, against as many random ones.
"""

from __future__ import annotations

import torch
from figures import arguments, batch, curves

import interneuron as inn
from interneuron.organisms import tinyworld

KEPT = (1.0, 0.5, 0.3, 0.2, 0.1, 0.05)


def keep(share: float, random: bool) -> inn.Edit:
    """Zero all but the largest (or random) entries of every token's hidden vector."""
    rng = torch.Generator().manual_seed(0)

    def sparsify(x: torch.Tensor) -> torch.Tensor:
        score = torch.rand(x.shape, generator=rng) if random else x.abs()
        cut = score.kthvalue(max(1, round((1 - share) * x.shape[-1])), dim=-1, keepdim=True).values
        return torch.where(score > cut, x, torch.zeros_like(x))

    return inn.Apply("layers.*.mlp.hidden", sparsify)


def main() -> None:
    model, out = arguments("measure MLP sparsity")
    tokens = tinyworld.probe("sentiment", n=128, seed=3).tokens
    real = tokens[:, 1:] != 0

    def loss(edit: inn.Edit | None) -> float:
        logits = model.run(batch(tokens), edit=edit).output.logits if edit else model(batch(tokens)).logits
        nats = -logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
        return float(nats[real].mean())

    base = loss(None)
    lines = {
        "largest entries": [loss(keep(share, random=False)) if share < 1 else base for share in KEPT],
        "random entries": [loss(keep(share, random=True)) if share < 1 else base for share in KEPT],
    }
    with model.read("layers.*.mlp.hidden") as acts:
        model(batch(tokens))
    for i, name in enumerate(acts.names):
        h = acts[name][tokens != 0].square().sort(-1, descending=True).values
        energy = float((h.cumsum(-1) / h.sum(-1, keepdim=True) < 0.9).float().sum(-1).mean() / h.shape[-1])
        print(f"layer {i}: 90% of the squared activation lies in {energy:.0%} of the neurons")
    for share, ours, control in zip(KEPT, *lines.values(), strict=True):
        print(f"kept {share:.0%}: loss {ours:.3f} nats, random entries {control:.3f}")
    curves(out / "mlp_sparsity.png", lines, "Loss with part of each MLP", "share kept", "nats", at=KEPT)


if __name__ == "__main__":
    main()

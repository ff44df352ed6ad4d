"""How few neurons matter? Keeping only the largest MLP activations of each token, in all layers at once.

    python examples/phenomena/mlp_sparsity.py

Loss on stories when every MLP keeps its k% largest |hidden| entries per token. Control: as many random entries. Beside
it, how many neurons of a token hold 90% of its squared activation; control: Gaussian numbers.
"""

from __future__ import annotations

from pathlib import Path

import torch
from figures import arguments, batch, curves, show

import interneuron as inn
from interneuron.organisms import tinyworld

KEPT = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02)


def keep(share: float, random: bool) -> inn.Edit:
    """Zero all but the largest (or random) entries of every token's hidden vector."""
    rng = torch.Generator().manual_seed(0)

    def sparsify(x: torch.Tensor) -> torch.Tensor:
        score = torch.rand(x.shape, generator=rng) if random else x.abs()
        kept = score.topk(max(1, round(share * x.shape[-1])), dim=-1).indices
        return torch.zeros_like(x).scatter(-1, kept, x.gather(-1, kept))

    return inn.Apply("layers.*.mlp.hidden", sparsify)


def needed(hidden: torch.Tensor, energy: float = 0.9) -> float:
    """Mean share of neurons that hold this part of a token's squared activation; hidden Float[tokens F]."""
    square = hidden.square().sort(-1, descending=True).values
    held = square.cumsum(-1) / square.sum(-1, keepdim=True)
    return float(((held < energy).sum(-1) + 1).float().mean() / hidden.shape[-1])


@torch.no_grad()
def main(model: inn.Model, n: int, out: Path) -> dict[str, float]:
    """Measure the loss by share kept and the energy by layer, and draw the losses."""
    tokens = tinyworld.probe("sentiment", n=n, seed=3).tokens
    real = tokens[:, 1:] != 0

    def loss(edits: list[inn.Edit]) -> float:
        logits = model.run(batch(tokens), edit=edits).output.logits
        nats = -logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
        return float(nats[real].mean())

    base = loss([])
    largest = [base] + [loss([keep(share, random=False)]) for share in KEPT[1:]]
    random = [base] + [loss([keep(share, random=True)]) for share in KEPT[1:]]
    rows = [(f"{share:.0%}", *pair) for share, *pair in zip(KEPT, largest, random, strict=True)]
    show("Loss, nats a word", ["kept", "largest", "control: random"], rows)

    acts = model.run(batch(tokens), read="layers.*.mlp.hidden").acts
    shares = [needed(acts[name][tokens != 0]) for name in acts.names]
    gaussian = needed(torch.randn(500, acts[acts.names[0]].shape[-1], generator=torch.Generator().manual_seed(0)))
    rows = [(f"layer {i}", share) for i, share in enumerate(shares)] + [("control: Gaussian", gaussian)]
    show("Neurons that hold 90% of a token's squared activation", ["MLP", "share"], rows)
    lines = {"largest entries": largest, "control: random entries": random}
    curves(out / "mlp_sparsity.png", lines, "Loss with part of every MLP", "share kept", "nats a word", at=KEPT)
    at = KEPT.index(0.05)
    return {
        "loss": base, "loss_5_percent": largest[at], "control_5_percent": random[at],
        "needed": max(shares), "gaussian": gaussian,
    }  # fmt: skip


if __name__ == "__main__":
    main(*arguments("measure MLP sparsity", n=64))

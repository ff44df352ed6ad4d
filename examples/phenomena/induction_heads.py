"""Induction heads: in a repeated random sequence, which heads look at the token after the previous occurrence?

    python examples/phenomena/induction_heads.py

Prefix-matching score of a head: its mean attention from a repeated token to the position after that token's first
occurrence (Olsson et al. 2022). Then the test that matters: the loss on the repeat without the best heads, against the
loss without as many random ones.
"""

from __future__ import annotations

import torch
from figures import arguments, heatmap

import interneuron as inn

PERIOD, ROWS = 24, 32


def main() -> None:
    model, out = arguments("find induction heads")
    rng = torch.Generator().manual_seed(0)
    words = torch.stack([torch.randperm(900, generator=rng)[:PERIOD] + 100 for _ in range(ROWS)])
    ids = torch.cat([torch.full((ROWS, 1), model.tokenizer.bos_token_id), words, words], dim=1)
    patterns = model.run(ids, read="layers.*.attn.pattern").acts
    query = torch.arange(PERIOD + 2, 2 * PERIOD + 1)  # from the second token of the repeat on
    score = torch.stack([patterns[name][:, :, query, query - PERIOD + 1].mean((0, 2)) for name in patterns.names])
    chance = float((1 / (query + 1)).mean())
    heatmap(out / "induction_heads.png", score, "Prefix matching", "head", "layer")

    def loss(logits: torch.Tensor) -> torch.Tensor:
        right = ids[:, query].unsqueeze(-1)
        return -logits[:, query - 1].log_softmax(-1).gather(-1, right).mean((1, 2))

    def without(heads: list[tuple[int, int]]) -> list[inn.Edit]:
        return [inn.Ablate(f"layers.{layer}.attn.z").at(head=head) for layer, head in heads]

    every = [(layer, head) for layer in range(score.shape[0]) for head in range(score.shape[1])]
    best = sorted(every, key=lambda at: -float(score[at]))[:3]
    others = [at for at in every if at not in best]
    random = [[others[i] for i in torch.randperm(len(others), generator=rng)[:3]] for _ in range(8)]
    losses = model.sweep(ids, [None, without(best), *(without(heads) for heads in random)], loss)
    print(
        f"best heads (layer, head): {best}, scores {[round(float(score[at]), 3) for at in best]}, chance {chance:.3f}"
    )
    print(f"loss on the repeat, nats: whole {losses[0]:.3f}, without the three {losses[1]:.3f}, ", end="")
    print(f"without three random ones {losses[2:].mean():.3f} (highest of 8: {losses[2:].max():.3f})")


if __name__ == "__main__":
    main()

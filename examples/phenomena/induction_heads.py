"""Induction heads: in a list of random words said twice, which heads look at the word after the previous occurrence?

    python examples/phenomena/induction_heads.py

Prefix-matching score of a head: its mean attention from a repeated word to the position after that word's first
occurrence (Olsson et al. 2022). Then the test that matters: the loss on the repeat when the best heads write only
their mean, against the loss when as many random heads do. Control of the score: a second list of other words, which
gives nothing to match.
"""

from __future__ import annotations

from pathlib import Path

import torch
from figures import arguments, heatmap, show

import interneuron as inn
from interneuron.organisms.tinyworld import words

PERIOD, BEST, DRAWS = 20, 3, 8


def lists(n: int, repeated: bool, seed: int = 0) -> torch.Tensor:
    """Token ids Int[n 1 + 2 PERIOD]: <bos>, a random list, and the same or another list."""
    rng = torch.Generator().manual_seed(seed)
    pool = torch.tensor([words.vocabulary()[word] for word in words.content_words()])
    drawn = torch.stack([pool[torch.randperm(len(pool), generator=rng)[: 2 * PERIOD]] for _ in range(n)])
    if repeated:
        drawn[:, PERIOD:] = drawn[:, :PERIOD]
    return torch.cat([torch.full((n, 1), words.vocabulary()["<bos>"]), drawn], 1)


@torch.no_grad()
def main(model: inn.Model, n: int, out: Path) -> dict[str, float]:
    """Score every head, draw the scores, and take the best heads away."""
    query = torch.arange(PERIOD + 1, 2 * PERIOD)  # positions of the second list whose next word is also known

    def prefix_matching(ids: torch.Tensor) -> torch.Tensor:
        patterns = model.run(ids, read="layers.*.attn.pattern").acts
        return torch.stack([patterns[name][:, :, query, query - PERIOD + 1].mean((0, 2)) for name in patterns.names])

    ids = lists(n, repeated=True)
    score, nothing_to_match = prefix_matching(ids), prefix_matching(lists(n, repeated=False))
    heatmap(out / "induction_heads.png", score, "Prefix matching", "head", "layer")

    means = {name: z.mean((0, 1)) for name, z in model.run(ids, read="layers.*.attn.z").acts.items()}

    def without(heads: list[tuple[int, int]]) -> list[inn.Edit]:
        names = [(f"layers.{layer}.attn.z", head) for layer, head in heads]
        return [inn.Ablate(name, how="mean", value=means[name][head]).at(head=head) for name, head in names]

    def loss(logits: torch.Tensor) -> torch.Tensor:
        return -logits[:, query].log_softmax(-1).gather(-1, ids[:, query + 1, None]).mean((1, 2))

    every = [(layer, head) for layer in range(score.shape[0]) for head in range(score.shape[1])]
    every.sort(key=lambda at: -float(score[at]))
    best, others = every[:BEST], every[BEST:]
    rng = torch.Generator().manual_seed(1)
    random = [[others[i] for i in torch.randperm(len(others), generator=rng)[:BEST]] for _ in range(DRAWS)]
    whole, cut, *controls = model.sweep(ids, [None, without(best), *map(without, random)], loss).tolist()
    rows = [
        (f"layer {layer} head {head}", float(score[layer, head]), float(nothing_to_match[layer, head]))
        for layer, head in best
    ]
    show("Prefix matching", ["head", "repeated list", "control: other list"], rows)
    losses = [("whole model", whole), (f"without the best {BEST}", cut)]
    losses += [(f"control: without {BEST} random heads", sum(controls) / DRAWS), ("  the worst of 8", max(controls))]
    show("Loss on the repeat, nats a word", ["heads", "loss"], losses)
    return {
        "score": float(score.max()), "score_control": float(nothing_to_match.max()),
        "loss": whole, "loss_without": cut, "loss_control": sum(controls) / DRAWS,
    }  # fmt: skip


if __name__ == "__main__":
    main(*arguments("find induction heads", n=32))

"""Indirect objects: which heads carry the name? Activation patching of single heads on sentence pairs.

    python examples/phenomena/ioi_heads.py

`mia and hugo were at the park . then hugo handed the cup to` -> `mia`. In the corrupt sentence the other name is
repeated. Each head's output at the last position is taken from the clean run and put into the corrupt one; the effect
is the share of the clean logit difference that this alone restores (Wang et al. 2023). The best heads are then patched
together on other sentences. Controls: as many random heads, and the same heads fed from another sentence's clean run.
"""

from __future__ import annotations

from pathlib import Path

import torch
from figures import arguments, heatmap, show

import interneuron as inn
from interneuron.organisms import tinyworld
from interneuron.parts.patching import logit_difference

BEST, DRAWS = 3, 8


class Pairs:
    """Clean and corrupt token ids, each head's clean output at the last position, and the measure of success."""

    def __init__(self, model: inn.Model, n: int, seed: int) -> None:
        task = tinyworld.task("ioi", n=n, seed=seed, template=0)
        self.model = model
        self.clean, self.corrupt = (model.prepare(texts)[1]["input_ids"] for texts in (task.clean, task.corrupt))
        self.answers = task.answer_ids
        self.metric = logit_difference(task.answer_ids, task.wrong_ids)
        self.z = {name: z[:, -1] for name, z in model.run(self.clean, read="layers.*.attn.z").acts.items()}
        self.high = float(model.sweep(self.clean, [None], self.metric)[0])
        self.low = float(model.sweep(self.corrupt, [None], self.metric)[0])

    def patch(self, heads: list[tuple[int, int]], shift: int = 0) -> list[inn.Edit]:
        """Edits that put these heads' clean outputs into the corrupt run; `shift` takes those of another sentence."""
        names = [(f"layers.{layer}.attn.z", head) for layer, head in heads]
        return [inn.Replace(at, self.z[at][:, head].roll(shift, 0)).at(pos=-1, head=head) for at, head in names]

    def restored(self, edits: list[list[inn.Edit]]) -> torch.Tensor:
        """Share of the clean logit difference that each set of edits brings back."""
        return (self.model.sweep(self.corrupt, edits, self.metric, batch_size=256) - self.low) / (self.high - self.low)

    def right(self, edits: list[list[inn.Edit]]) -> torch.Tensor:
        """Share of sentences in which the clean name is the first choice of the corrupt run under each set of edits."""

        def is_first(logits: torch.Tensor) -> torch.Tensor:
            return (logits[:, -1].argmax(-1) == self.answers).float()

        return self.model.sweep(self.corrupt, edits, is_first, batch_size=256)


@torch.no_grad()
def main(model: inn.Model, n: int, out: Path) -> dict[str, float]:
    """Patch every head alone, draw the map, then patch the best ones together on sentences they were not chosen on."""
    pairs = Pairs(model, n, seed=1)
    n_heads = pairs.z["layers.0.attn.z"].shape[1]
    every = [(layer, head) for layer in range(model.n_layers) for head in range(n_heads)]
    effect = pairs.restored([pairs.patch([at]) for at in every])
    heatmap(out / "ioi_heads.png", effect.reshape(-1, n_heads), "Share of the name restored", "head", "layer")

    ranked = [every[i] for i in effect.argsort(descending=True).tolist()]
    best, others = ranked[:BEST], ranked[BEST:]
    rng = torch.Generator().manual_seed(0)
    random = [[others[i] for i in torch.randperm(len(others), generator=rng)[:BEST]] for _ in range(DRAWS)]
    held = Pairs(model, n, seed=2)
    sets = [held.patch(best), held.patch(best, shift=1), *map(held.patch, random)]
    together, elsewhere, *controls = held.restored(sets).tolist()
    first, first_elsewhere, *first_random = held.right(sets).tolist()

    print(f"logit difference: clean {held.high:.2f}, corrupt {held.low:.2f}")
    alone = [(f"layer {at[0]} head {at[1]}, alone", float(effect[every.index(at)]), "") for at in best]
    show("Name restored", ["patched", "share of the logit difference", "name is first"], [
        *alone,
        (f"the best {BEST} together, other sentences", together, first),
        (f"control: {BEST} random heads, mean of {DRAWS}", sum(controls) / DRAWS, sum(first_random) / DRAWS),
        (f"control: {BEST} random heads, best of {DRAWS}", max(controls), max(first_random)),
        ("control: the best heads, from another sentence", elsewhere, first_elsewhere),
    ])  # fmt: skip
    return {
        "together": together, "control": sum(controls) / DRAWS, "other_sentence": elsewhere,
        "first": first, "first_control": max(first_random), "first_other_sentence": first_elsewhere,
        "clean": held.high, "corrupt": held.low,
    }  # fmt: skip


if __name__ == "__main__":
    main(*arguments("find the heads that move the name", n=64))

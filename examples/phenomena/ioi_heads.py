"""Indirect objects: which heads carry the name? Activation patching of single heads on sentence pairs.

    python examples/phenomena/ioi_heads.py

In the corrupt sentence another name is repeated. Each head's output at the last position is taken from the clean run
and put into the corrupt one; the effect is the share of the clean logit difference that this alone restores.
"""

from __future__ import annotations

from figures import arguments, heatmap

import interneuron as inn
from interneuron.organisms import tinyworld


def main() -> None:
    model, out = arguments("find the heads that move the name")
    task = tinyworld.task("ioi", n=64, seed=1, template=0)
    right, wrong = task.answer_ids, task.wrong_ids

    def difference(logits):  # name of the indirect object against the repeated name
        last = logits[:, -1]
        rows = range(len(last))
        return last[rows, right] - last[rows, wrong]

    clean, corrupt = (model.prepare(texts)[1]["input_ids"] for texts in (task.clean, task.corrupt))
    donors = model.run(clean, read="layers.*.attn.z").acts
    heads = donors["layers.0.attn.z"].shape[2]
    edits = [
        inn.Replace(name, donors[name][:, -1, head]).at(pos=-1, head=head)
        for name in donors.names
        for head in range(heads)
    ]
    low, *patched = model.sweep(corrupt, [None, *edits], difference).tolist()
    high = float(model.sweep(clean, [None], difference)[0])
    print(f"logit difference: clean {high:.2f}, corrupt {low:.2f}")
    effect = [(value - low) / (high - low) for value in patched]
    rows = [effect[i : i + heads] for i in range(0, len(effect), heads)]
    best = sorted(((value, i // heads, i % heads) for i, value in enumerate(effect)), reverse=True)[:3]
    for value, layer, head in best:
        print(f"layer {layer} head {head}: restores {value:.0%} of the difference alone")
    heatmap(out / "ioi_heads.png", rows, "Share of the difference restored", "head", "layer", limit=1.0)


if __name__ == "__main__":
    main()

"""Where are facts? Causal tracing: the subject is replaced, and single states of the clean run are put back.

    python examples/phenomena/fact_tracing.py

The effect of restoring the residual stream at (layer, position) is the share of the clean log-probability difference
it brings back; positions are averaged by their role: subject, the words between, the last word.
"""

from __future__ import annotations

import torch
from figures import arguments, heatmap

import interneuron as inn
from interneuron.organisms import tinyworld


def main() -> None:
    model, out = arguments("trace facts")
    task = tinyworld.task("fact", n=64, seed=1, language=1, template=0)
    clean, corrupt = (model.prepare(texts)[1]["input_ids"] for texts in (task.clean, task.corrupt))
    answer = task.answer_ids

    def log_probability(logits: torch.Tensor) -> torch.Tensor:
        return logits[:, -1].log_softmax(-1)[torch.arange(len(answer)), answer]

    donors = model.run(clean, read="layers.*.resid_post").acts
    length = clean.shape[1]
    edits = [inn.Replace(name, donors[name][:, pos]).at(pos=pos) for name in donors.names for pos in range(length)]
    low, *patched = model.sweep(corrupt, [None, *edits], log_probability, batch_size=256).tolist()
    high = float(model.sweep(clean, [None], log_probability)[0])
    effect = torch.tensor(patched).reshape(-1, length).sub(low).div(high - low)
    start, stop = (int(v) for v in task.roles["subject"][0])
    words = ["<bos>", *task.clean[0].split()]
    print(f"log-probability of the answer: clean {high:.2f}, subject replaced {low:.2f}")
    parts = {"subject": effect[:, start:stop].mean(1), "last word": effect[:, -1]}
    for name, values in parts.items():
        print(f"restored at the {name}, by layer: " + " ".join(f"{float(v):.0%}" for v in values))
    columns = ["subject" if start <= i < stop else word for i, word in enumerate(words)]
    heatmap(out / "fact_tracing.png", effect, "Share of the answer restored", "position", "layer", columns, limit=1.0)


if __name__ == "__main__":
    main()

"""Where are facts? Causal tracing: the subject is replaced, and single activations of the clean run are put back.

    python examples/phenomena/fact_tracing.py

`as for Gumofi , the job is` -> `baker`; in the corrupt prompt another entity stands in Gumofi's place. The effect of a
site and position is the share of the clean probability that restoring it brings back (Meng et al. 2022): first the
residual stream, then what each MLP adds. Control: the same activation moved equally far in a random direction.
"""

from __future__ import annotations

from pathlib import Path

import torch
from figures import arguments, heatmap, show

import interneuron as inn
from interneuron.organisms import tinyworld
from interneuron.parts.patching import patch_grid


@torch.no_grad()
def main(model: inn.Model, n: int, out: Path) -> dict[str, float]:
    """Restore every site at every word, draw both maps, and report where the fact is."""
    task = tinyworld.task("fact", n=n, seed=1, language=1, template=3)
    clean, corrupt = (model.prepare(texts)[1]["input_ids"] for texts in (task.clean, task.corrupt))

    def probability(logits: torch.Tensor) -> torch.Tensor:
        return logits[:, -1].softmax(-1).gather(1, task.answer_ids[:, None])[:, 0]

    residual = ["embed", *(site.name for site in model.sites("layers.*.resid_post"))]
    added = [site.name for site in model.sites("layers.*.mlp.contribution")]
    grid = patch_grid(model, clean, corrupt, probability, [*residual, *added], batch_size=256)
    stream, mlps = grid.recovery.split([len(residual), len(added)])

    start, stop = (int(v) for v in task.roles["subject"][0])
    words = ["<bos>", *task.clean[0].split()]
    words[start:stop] = ["subject"] * (stop - start)
    layers = [f"layer {i}" for i in range(model.n_layers)]
    heatmap(out / "fact_tracing.png", stream, "Fact restored by the residual stream", "", "", words, ["embed", *layers])
    heatmap(out / "fact_tracing_mlp.png", mlps, "Fact restored by what the MLP adds", "", "", words, layers)

    between = stream[:, stop:-1].abs().max()
    control = grid.control.max()
    found = {
        "subject_embedding": float(stream[0, start]),
        "subject_after_layer_0": float(stream[1, start]),
        "last_after_layer_0": float(stream[1, -1]),
        "first_mlp_at_last": float(mlps[0, -1]),
        "between": float(between),
        "control": float(control),
    }
    print(f"probability of the answer: clean {grid.clean:.3f}, subject replaced {grid.corrupt:.2g}")
    show("Share of the fact restored", ["place", "share"], [
        ("embedding of the subject", found["subject_embedding"]),
        ("residual stream of the subject after layer 0", found["subject_after_layer_0"]),
        ("residual stream of the last word after layer 0", found["last_after_layer_0"]),
        ("MLP of layer 0 at the last word, alone", found["first_mlp_at_last"]),
        ("best later MLP at the last word, alone", float(mlps[1:, -1].max())),
        ("words in between, largest of all layers", found["between"]),
        ("control: random change of equal size, largest", found["control"]),
    ])  # fmt: skip
    return found


if __name__ == "__main__":
    main(*arguments("trace facts", n=48))

"""One direction for refusal: removed, the model complies; added, it refuses harmless requests.

    python examples/phenomena/refusal_direction.py

Difference of means between harmful and harmless requests at the last prompt token (Arditi et al. 2024), found on
training requests and judged on held-out ones, beside a random direction of the same length.
"""

from __future__ import annotations

import torch
from figures import arguments, batch, curves

import interneuron as inn
from interneuron.organisms import tinyworld


def rate(model: inn.Model, prompts: list[str], edits: list[inn.Edit]) -> float:
    """Share of requests that the model refuses."""
    if edits:
        with model.edit(*edits):
            replies = model.generate(prompts, max_new_tokens=10, do_sample=False)
    else:
        replies = model.generate(prompts, max_new_tokens=10, do_sample=False)
    return sum(tinyworld.judge.refused(reply) for reply in replies) / len(replies)


def main() -> None:
    model, out = arguments("find, remove and add the refusal direction")
    sites = [site.at(pos=-1) for site in model.sites("layers.*.resid_post")]

    def means(texts) -> dict[str, torch.Tensor]:
        with model.read(*sites) as acts:
            model(batch(texts.tokens))
        return {name: acts[name].mean(0) for name in acts.names}

    harmful, harmless = (means(side) for side in tinyworld.contrast("refusal", n=100, seed=1, split="train"))
    bad, good = (list(side.prompts)[:60] for side in tinyworld.contrast("refusal", n=60, seed=2, split="test"))
    everywhere = ["embed", *harmful]
    rng = torch.Generator().manual_seed(0)
    removed, added = [], []
    for name in harmful:
        v = harmful[name] - harmless[name]
        removed.append(rate(model, bad, [inn.Project(site, v) for site in everywhere]))
        added.append(rate(model, good, [inn.Add(name, v)]))
    best = min(range(len(removed)), key=lambda i: removed[i] - added[i])
    name = list(harmful)[best]
    v = harmful[name] - harmless[name]
    noise = torch.randn(len(v), generator=rng)
    noise *= v.norm() / noise.norm()
    print(f"refusals of harmful requests: {rate(model, bad, []):.0%}; ", end="")
    print(f"direction of layer {best} removed: {removed[best]:.0%}; ", end="")
    print(f"random one removed: {rate(model, bad, [inn.Project(site, noise) for site in everywhere]):.0%}")
    print(f"refusals of harmless requests: {rate(model, good, []):.0%}; direction added: {added[best]:.0%}; ", end="")
    print(f"random one added: {rate(model, good, [inn.Add(name, noise)]):.0%}")
    lines = {"harmful, direction removed": removed, "harmless, direction added": added}
    curves(out / "refusal_direction.png", lines, "Refusals", "layer of the direction", "share refused")


if __name__ == "__main__":
    main()

"""One direction for refusal: removed, the model complies; added, it refuses harmless requests.

    python examples/phenomena/refusal_direction.py

Difference of means between harmful and harmless requests at the last prompt token (Arditi et al. 2024). The site is
chosen on requests of the training split by the first word of the reply (`sorry` or `sure`), and judged on objects
never seen in requests by whole generated replies. Control: a random direction of the same length.
"""

from __future__ import annotations

from pathlib import Path

import torch
from figures import arguments, batch, curves, show

import interneuron as inn
from interneuron.organisms import tinyworld


def last_token_means(model: inn.Model, tokens: torch.Tensor, names: list[str]) -> dict[str, torch.Tensor]:
    """Mean activation at the last token, Float[D] by site."""
    acts = model.run(batch(tokens), read=[model.site(name).at(pos=-1) for name in names]).acts
    return {name: acts[name].mean(0) for name in names}


def removed(names: list[str], v: torch.Tensor) -> list[inn.Edit]:
    """Take the direction out of the whole residual stream, wherever it is written."""
    return [inn.Project(name, v) for name in ("embed", *names)]


def replies(model: inn.Model, prompts: list[str], edits: list[inn.Edit]) -> tuple[float, float]:
    """Share of requests that are refused, and share that are complied with."""
    with model.edit(*edits):
        texts = model.generate(prompts, max_new_tokens=8, do_sample=False)
    answers = [text.removeprefix(prompt).split() for text, prompt in zip(texts, prompts, strict=True)]
    refused = sum(tinyworld.judge.refused(" ".join(words)) for words in answers)
    return refused / len(prompts), sum(words[:3] == ["sure", ",", "here"] for words in answers) / len(prompts)


@torch.no_grad()
def main(model: inn.Model, n: int, out: Path) -> dict[str, float]:
    """Choose the site, then generate with the direction removed and added, and with a random one."""
    names = [
        s.name for at in range(model.n_layers) for s in model.sites(f"layers.{at}.resid_*") if "_pre" not in s.name
    ]
    harmful, harmless = (
        last_token_means(model, side.tokens, names)
        for side in tinyworld.contrast("refusal", n=n, seed=1, split="train")
    )
    sorry, sure = (model.tokenizer.convert_tokens_to_ids(word) for word in ("sorry", "sure"))
    chosen_on = tinyworld.contrast("refusal", n=n, seed=3, split="train")

    def refusals(side: int, edits: list[inn.Edit]) -> float:
        texts = chosen_on[side]
        last = model.run(batch(texts.tokens), edit=edits).output.logits[torch.arange(len(texts)), texts.last]
        return float((last[:, sorry] > last[:, sure]).float().mean())

    directions = {name: harmful[name] - harmless[name] for name in names}
    after_removal = [refusals(0, removed(names, v)) for v in directions.values()]
    after_adding = [refusals(1, [inn.Add(name, v)]) for name, v in directions.items()]
    lines = {
        f"{what} ({point})": [share for share, name in zip(shares, names, strict=True) if name.endswith(point)]
        for what, shares in (("removed, harmful", after_removal), ("added, harmless", after_adding))
        for point in ("resid_mid", "resid_post")
    }
    curves(out / "refusal_direction.png", lines, "Refusals by layer of the direction", "layer", "share refused")
    best = min(range(len(names)), key=lambda i: after_removal[i] - after_adding[i])
    site, v = names[best], directions[names[best]]
    noise = torch.randn(len(v), generator=torch.Generator().manual_seed(0))
    noise *= v.norm() / noise.norm()

    bad, good = (list(side.prompts) for side in tinyworld.contrast("refusal", n=n, seed=2, split="test"))
    table = {
        "harmful": replies(model, bad, []),
        "harmful, direction removed": replies(model, bad, removed(names, v)),
        "harmful, control: random removed": replies(model, bad, removed(names, noise)),
        "harmless": replies(model, good, []),
        "harmless, direction removed": replies(model, good, removed(names, v)),
        "harmless, direction added": replies(model, good, [inn.Add(site, v)]),
        "harmless, control: random added": replies(model, good, [inn.Add(site, noise)]),
    }
    show(f"Replies; the direction of {site}", ["requests", "refused", "complied"], [(k, *r) for k, r in table.items()])
    return {key: refused for key, (refused, _) in table.items()} | {"complied": table["harmful, direction removed"][1]}


if __name__ == "__main__":
    main(*arguments("find, remove and add the refusal direction", n=60))

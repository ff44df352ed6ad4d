"""Locate an effect: patch one activation at a time from a clean run into a corrupt one.

python examples/patching.py [MODEL]          MODEL: a shipped model or a folder of one that speaks Tinyworld
"""

from __future__ import annotations

import sys

import torch

import interneuron as inn

CLEAN = "mia and hugo were at the park . then hugo handed the cup to"
CORRUPT = "mia and hugo were at the park . then mia handed the cup to"


def main(name: str = "lm") -> None:
    """Print how much of the answer `mia` comes back, in per cent, by layer and word."""
    model = inn.load(name)
    mia, hugo = (model.tokenizer.convert_tokens_to_ids(word) for word in ("mia", "hugo"))

    def lead(logits: torch.Tensor) -> torch.Tensor:
        return logits[:, -1, mia] - logits[:, -1, hugo]

    with torch.no_grad():
        low, high = (float(lead(model(text).logits)) for text in (CORRUPT, CLEAN))
    print(f"lead of mia over hugo: {high:+.2f} on the clean prompt, {low:+.2f} on the corrupt one")
    words = ["<bos>", *CLEAN.split()]
    sites = [site.name for site in model.sites("layers.*.resid_post")]
    acts = model.run(CLEAN, read=sites).acts
    print(" " * 20 + " ".join(f"{word[:6]:>6}" for word in words))
    for site in reversed(sites):
        patches = [inn.Replace(site, acts[site][:, p : p + 1]).at(pos=p) for p in range(len(words))]
        scores = model.sweep(CORRUPT, patches, lead)
        print(f"{site:20}" + " ".join(f"{100 * (score - low) / (high - low):6.0f}" for score in scores.tolist()))


if __name__ == "__main__":
    main(*sys.argv[1:2])

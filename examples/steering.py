"""Steer a language model: a direction from contrasting texts, pushed both ways, and a random push of the same length.

python examples/steering.py [MODEL]          MODEL: a shipped model, a folder or a Hugging Face id (default: lm)
"""

from __future__ import annotations

import sys

import interneuron as inn

POSITIVE = ["she felt most glad .", "he felt most proud .", "she looked rather cheerful .", "he looked rather joyful ."]
NEGATIVE = ["she felt most sad .", "he felt most miserable .", "she looked rather upset .", "he looked rather angry ."]
PROMPT = "miss mia proceeded towards the park , indeed . she felt most"


def main(name: str = "lm") -> None:
    """Print what the model writes under four edits."""
    model = inn.load(name)
    site = f"layers.{model.n_layers // 3}.resid_post"
    direction = inn.steer.MeanDifference().fit(model, POSITIVE, NEGATIVE, site=site)
    size = float(model.run(PROMPT, read=site).acts[site].detach().norm(dim=-1).mean())
    alpha = 0.8 * size / float(direction.norm)
    edits = {
        "no edit": direction.edit(alpha=0.0),
        "towards positive": direction.edit(alpha=alpha),
        "towards negative": direction.edit(alpha=-alpha),
        "random push": direction.random_like(seed=0).edit(alpha=alpha),
    }
    for label, edit in edits.items():
        with model.edit(edit):
            print(f"{label:17} {model.generate(PROMPT, max_new_tokens=16, do_sample=False)}")


if __name__ == "__main__":
    main(*sys.argv[1:2])

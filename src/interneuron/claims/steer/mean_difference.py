"""Mean difference on `lm`: the sentiment direction moves the mood of the next word, a random one does not.

As in the paper, the direction is fitted on pairs of texts that end in the word in which they differ: stories cut behind
their first mood word. On other stories, cut before that word, the mood is measured as ln P(any positive mood word) -
ln P(any negative mood word) of the next word. The number compared is half the change from alpha = -1 to alpha = +1, per
story, at the middle layer. (Fitted on whole stories, at the full stop behind them, the direction is ten times shorter
and moves the mood ten times less, still more than the random one; the position matters more than the layer.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from interneuron.artifacts import Direction
from interneuron.claims import Claim, Comparison
from interneuron.core.seeds import numpy_rng
from interneuron.loading import load
from interneuron.model.model import Model
from interneuron.organisms.tinyworld import stories, words
from interneuron.organisms.tinyworld.document import Document, source
from interneuron.organisms.tinyworld.world import Truth
from interneuron.steer.mean_difference import MeanDifference

CLAIM = Claim(
    slug="mean_difference",
    organism="lm",
    paper="adding the vector raises, subtracting it lowers the behaviour in all seven behaviours tested",
    better="higher",
    unit="nats",
    minutes=0.5,
)

N_FIT = 100
N_TEST = 64
N_EXAMPLE = 8


def claim(seed: int) -> Comparison:
    """Measure the shift of mood per story by the direction and by a random direction of the same norm."""
    model = load(CLAIM.organism)
    direction = _fit(model, N_FIT, seed)
    prompts = _neutral(N_TEST, seed)
    ours = _shift(model, direction, prompts)
    control = _shift(model, direction.random_like(seed), prompts)
    base = _mood(model, prompts)
    return Comparison(
        ours=ours.tolist(),
        control=control.tolist(),
        extra={"unsteered mood": float(base.mean()), "raised in": float((ours > 0).float().mean())},
    )


def example(model: Model) -> Direction:
    """Fit the direction on a few pairs."""
    return _fit(model, N_EXAMPLE, seed=0)


def tensors(n: int, width: int, seed: int) -> dict[str, Tensor]:
    """Two groups of `n` rows, one shifted."""
    rng = numpy_rng(seed, "mean_difference")
    rows = torch.tensor(rng.standard_normal((2, n, width)), dtype=torch.float32)
    return {"positive": rows[0] + 1.0, "negative": rows[1]}


def apply(positive: Tensor, negative: Tensor) -> Direction:
    """Fit on activations that have been read already."""
    return MeanDifference().fit_activations(positive, negative)


def _fit(model: Model, n: int, seed: int) -> Direction:
    pairs = [_pair(seed, i) for i in range(n)]
    site = f"layers.{model.n_layers // 2}.resid_post"
    return MeanDifference().fit(model, [p for p, _ in pairs], [q for _, q in pairs], site=site)


def _pair(seed: int, index: int) -> tuple[str, str]:
    """A positive and a negative story, equal up to the mood word they end in."""
    latents = stories.draw(source(seed, index), Truth())
    positive, negative = (stories.story({**latents, "sentiment": m}, 2) for m in ("positive", "negative"))
    return _cut(positive, 1), _cut(negative, 1)


def _neutral(n: int, seed: int) -> list[str]:
    """Stories not used for fitting, cut before their first mood word."""
    made = [stories.story(stories.draw(source(seed, N_FIT + i), Truth()), 2) for i in range(n)]
    return [_cut(doc, 0) for doc in made]


def _cut(doc: Document, side: int) -> str:
    """The text up to its first mood word, without it (side 0) or with it (side 1)."""
    return " ".join(doc.words[: doc.roles["person"][0][side]])


def _shift(model: Model, direction: Direction, prompts: list[str]) -> Tensor:
    moods = []
    for alpha in (1.0, -1.0):
        with model.edit(direction.edit(alpha=alpha)):
            moods.append(_mood(model, prompts))
    return (moods[0] - moods[1]) / 2


def _mood(model: Model, prompts: list[str]) -> Tensor:
    """ln P(positive mood word) - ln P(negative mood word) of the next word, for each prompt."""
    ids = {mood: [words.vocabulary()[w] for w in words.PERSON[mood]] for mood in ("positive", "negative")}
    with torch.no_grad():
        logits = model.run(prompts, read=[model.site("logits").at(pos=-1)]).acts["logits"].double()
    return logits[:, ids["positive"]].logsumexp(-1) - logits[:, ids["negative"]].logsumexp(-1)

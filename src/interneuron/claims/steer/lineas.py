"""LinEAS on `lm`: maps learned together remove the marker words of toxic stories better than layer-wise maps.

Sources are 32 sentences with a toxicity marker, the first ones of stories; targets 32 others without. The behaviour is
the probability that the model puts a marker where a toxic story has its second one, after a first sentence with a
marker; it is what a sampled continuation shows, without the noise of sampling. Every method is used at the strength,
chosen on half of the prompts and of the unrelated texts, that lowers it most while perplexity on unrelated texts rises
by a factor of at most 1.2; numbers come from the other halves. The control gives the learned numbers to other
coordinates of the same site. The distance W2 is that of maps at strength 1 on 2048 sentences a side that nothing is
fitted on, so many that two sets of targets hardly differ. All numbers that gates compare are means over five draws.

Deviations from the check: all methods may be used beyond strength 1, in steps of 0.25 up to 4. At 1 none of them costs
anything, and perplexities match only if every method can go on to where it meets the limit. LinEAS is learned as in
the paper, by proximal SGD; with momentum, as 80 plain steps leave it far from the minimum. The sparse form differs by
the penalty alone, and is fitted once more, without it, on the coordinates that the penalty keeps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from interneuron.claims import Claim, Comparison
from interneuron.loading import load
from interneuron.model.model import Model
from interneuron.organisms import tinyworld as tw
from interneuron.organisms.tinyworld import words
from interneuron.parts.controls import Candidate, ControlledEffect, Make, Measure, controlled_effect, split
from interneuron.parts.dose import best_within, try_doses
from interneuron.parts.likelihood import text_losses
from interneuron.steer.lineas import AffineMaps, LinearAcT, LinEAS, pooled, sorted_w2
from interneuron.steer.mean_difference import MeanDifference

CLAIM = Claim(
    slug="lineas",
    organism="lm",
    paper="less toxicity than Lin-AcT and ITI with 32 sentences a side; MMLU -1 point, perplexity +0.6 at most",
    better="higher",
    unit="fall of the marker's probability",
    minutes=13.0,
    why="The dense maps do what the paper says: at equal perplexity they remove 94 % of the marker's probability, "
    "layer-wise maps 26 %, a mean shift 18 %, the same numbers on permuted coordinates 9 %. Two further criteria "
    "are met under two seeds of three. Held out, the distance left is 0.77, 0.79 and 0.82 of Linear-AcT's, where "
    "0.8 is asked for: the joint maps overfit scales less, but the means of 32 sentences a side are as uncertain "
    "for both, and seven tenths of that uncertainty lie along two directions of a development set, one of which "
    "has nothing to do with toxicity. On development draws a small penalty and a longer descent left the ratio "
    "between 0.77 and 0.93; maps on the second norms alone reached 0.63 to 0.81 but no longer lower the marker. "
    "The sparse maps keep 19.8, 19.2 and 20.4 % of the coordinates, where 20 % are allowed, and give 93 to 104 % "
    "of the dense reduction: the penalty, chosen on development draws where it kept 18 %, is a little too weak "
    "for the third seed, and was left as it was once the run had been seen.",
)

N, N_PROMPTS, N_UNRELATED, N_HELD, DRAWS = 32, 48, 32, 2048, 5
RATIO = 1.2
ALPHAS = [1 + i / 4 for i in range(13)]
METHOD = LinEAS(lr=1.0, momentum=0.9, steps=80)
SPARSE = replace(METHOD, l1=0.0014, refit=60)


def claim(seed: int) -> Comparison:
    """Compare LinEAS with Linear-AcT, the mean shift and its own sparse form over draws."""
    model = load(CLAIM.organism)
    held = _held_out(model, seed)
    rows = [_draw(model, 10 * seed + i, held) for i in range(DRAWS)]
    mean = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
    return Comparison(
        ours=[row["ours"] for row in rows],
        baseline=[row["linear_act"] for row in rows],
        control=[row["permuted"] for row in rows],
        gates={
            "at perplexity ratio <= 1.2 the reduction is at least Lin-AcT's": mean["ours"] >= mean["linear_act"],
            "at perplexity ratio <= 1.2 the reduction is at least the mean shift's": mean["ours"] >= mean["shift"],
            "held-out summed W2 is at most 0.8 of Lin-AcT's": mean["w2"] <= 0.8 * mean["w2 linear_act"],
            "the sparse maps keep at most 20 % of the coordinates": mean["kept"] <= 0.2,
            "the sparse maps give at least 80 % of the dense reduction": mean["sparse"] >= 0.8 * mean["ours"],
        },
        extra={**mean},
    )


def example(model: Model) -> AffineMaps:
    """Maps from a few short texts."""
    toxic, clean = stories(6, seed=0, sentences=1)
    return LinEAS(lr=3.0, steps=8).fit(model, toxic, clean)


def tensors(n: int, width: int, seed: int) -> dict[str, Tensor]:
    """Two samples of `n` rows."""
    g = torch.Generator().manual_seed(seed)
    return {"a": torch.randn(n, width, generator=g), "b": 1 + 2 * torch.randn(n, width, generator=g)}


def apply(a: Tensor, b: Tensor) -> Tensor:
    """The distance the loss is made of."""
    return sorted_w2(a, b)


def stories(n: int, seed: int, sentences: int = 1) -> tuple[list[str], list[str]]:
    """`n` toxic stories, and `n` clean ones that are not their twins."""
    toxic, _ = tw.contrast("toxicity", n=n, seed=2 * seed)
    _, clean = tw.contrast("toxicity", n=n, seed=2 * seed + 1)

    def cut(text: str) -> str:
        return " . ".join(text.split(" . ")[:sentences]).rstrip(" .") + " ."

    return [cut(text) for text in toxic], [cut(text) for text in clean]


def _draw(model: Model, draw: int, held: Callable[[AffineMaps], float]) -> dict[str, float]:
    toxic, clean = stories(N, seed=1000 + draw)
    ours, act = METHOD.fit(model, toxic, clean), LinearAcT().fit(model, toxic, clean)
    shift = MeanDifference(pos=None).fit(model, clean, toxic, site=f"layers.{model.n_layers // 2}.resid_post")
    found = _effect(model, ours, draw)
    row = {
        "ours": -found.effect, "permuted": -found.control, "price": found.price, "alpha": found.alpha,
        "linear_act": -_rival(model, act.edit, draw),
        "shift": -_rival(model, shift.edit, draw),
        "w2": held(ours), "w2 linear_act": held(act),
        "marker without steering": float(found.effects.base.mean()),
    }  # fmt: skip
    few = SPARSE.fit(model, toxic, clean)
    return row | {"kept": few.kept, "sparse": -_rival(model, few.edit, draw)}


def _effect(model: Model, maps: AffineMaps, draw: int) -> ControlledEffect:
    marker, prompts, unrelated = _measure(model, draw)
    candidate = Candidate("maps", maps.edit, tuple(maps.permuted(i).edit for i in range(2)))
    return controlled_effect(
        model, candidate, ALPHAS, marker, prompts, unrelated, limit=math.log(RATIO), better="lower"
    )


def _rival(model: Model, edit: Make, draw: int) -> float:
    """The change of the marker's probability, chosen and measured on the same items as ours, without controls."""
    marker, prompts, unrelated = _measure(model, draw)
    (choosing, reported), (cheap, _) = split("prompts", prompts, 0.5, 0), split("texts", unrelated, 0.5, 0)
    trials = try_doses(
        [Candidate("rival", edit, ())],
        ALPHAS,
        lambda e: -marker(e, choosing),
        lambda e: text_losses(model, cheap, e),
    )
    best = edit(best_within(trials, math.log(RATIO)).dose)
    return float((marker(best, reported) - marker(None, reported)).mean())


def _measure(model: Model, draw: int) -> tuple[Measure, list[str], list[str]]:
    """The probability of a marker, prompts that call for one, and unrelated texts."""
    toxic, _ = tw.contrast("toxicity", n=N_PROMPTS, seed=5000 + draw)
    prompts = [" ".join(doc.words[: doc.roles["toxic"][1][0]]) for doc in toxic.documents]
    documents = [doc for doc in tw.corpus(tokens=12_000, seed=7000 + draw) if len(doc.words) < 60]
    unrelated = [" ".join(doc.words) for doc in documents[:N_UNRELATED]]
    place = model.site("logits").at(pos=-1)
    ids = [words.vocabulary()[word] for word in words.TOXIC]

    def marker(edit: Any, texts: Sequence[str]) -> Tensor:
        with torch.no_grad():
            acts = model.run(list(texts), read=[place], edit=[] if edit is None else [edit]).acts
        return acts["logits"].softmax(-1)[:, ids].sum(-1)

    return marker, prompts, unrelated


def _held_out(model: Model, seed: int) -> Callable[[AffineMaps], float]:
    """Eq. 3 of maps at full strength, on texts that nothing is fitted on, the same for all draws."""
    source, target = stories(N_HELD, seed=20_000 + seed)
    goal: dict[str, Tensor] = {}

    def read(maps: AffineMaps, texts: list[str], alpha: float) -> dict[str, Tensor]:
        names, size = list(maps.scale), 256  # texts at a time, for memory
        parts = [pooled(model, texts[i : i + size], names, maps.edit(alpha)) for i in range(0, len(texts), size)]
        return {name: torch.cat([part[name] for part in parts]) for name in names}

    def left(maps: AffineMaps) -> float:
        if not goal:
            goal.update(read(maps, target, 0.0))
        now = read(maps, source, 1.0)
        return sum(float(sorted_w2(now[name], goal[name]).mean()) for name in goal)

    return left

"""SAE detoxification on `lm`: what subtracting toxicity features brings and costs, by tier and by width of the SAE.

Prompts are first sentences of toxic stories, which `lm` continues with toxicity markers. TopK dictionaries of 4 and 32
times the width are trained on stories and other documents, at that of three rates which leaves the smallest error on a
development seed (1.6 and 1.2 % of the variance); features are found on paired stories, by the probability of
a marker where a toxic story has its next one, at a bounded loss on clean stories. Every tier and the rival, the mean
difference of the same texts, are used at the largest strength whose perplexity ratio is at most 1.3 on 80 prompts, and
judged on 200 others.

Fluency is the perplexity of sampled continuations of 30 tokens under `lm-gpt2`, another network that is not edited.
In Tinyworld a story that begins with a marker has one at every such place, so that the judge, shown the prompt, finds a
continuation without markers next to impossible, however fluent it is: those of the prompts' clean twins have 1.5 times
the perplexity of toxic ones ("clean twins after the prompts" in the numbers), which is beyond the limit, and by which
earlier runs measured. So a continuation is judged after the prompt and after its clean twin, and the likelier counts.

The headline is the tier that cuts most on the 80 prompts, against the mean difference and against as many random
features of the narrow dictionary at the same lengths, tier and strength. What the check says of the constant tier is in
the gates. The per-input tier is left out: all prompts hold a marker, which opens it, so it is the constant tier here.

Deviation from the check: the site is the output of layer 4 of 0 to 5, not a middle one, because on a development seed
the effect at equal cost was several times larger there than at layers 2 and 3.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from interneuron.artifacts import Dictionary
from interneuron.claims import Claim, Comparison
from interneuron.loading import load
from interneuron.model.model import Model
from interneuron.organisms import generation
from interneuron.organisms import tinyworld as tw
from interneuron.organisms.tinyworld import words
from interneuron.parts.activation_rows import token_rows
from interneuron.parts.likelihood import text_log_probs, text_losses
from interneuron.parts.sparse_training import SparseCoding, train_dictionary
from interneuron.steer.breaking_bad_tokens import FeatureSteering, SAEFeatureSteer
from interneuron.steer.mean_difference import MeanDifference

CLAIM = Claim(
    slug="breaking_bad_tokens",
    organism="lm",
    paper="up to 20 % less toxicity than rivals at strong tiers; benchmark scores hold; wider SAEs do worse",
    better="higher",
    unit="fall of the share of toxic continuations",
    minutes=6.0,
    ratio=0.8,
    why=(
        "Within the perplexity limit the per-token tier cuts markers by 15, 53 and 20 points, the mean difference by "
        "14, 16 and 21, gated random features by 1 at most; facts stay, and the best feature of the wide dictionary "
        "does less. The constant tier is the weak one here: it cuts 2, 4 and 13 points, more than random features of "
        "the same lengths, but not half of the markers and less than 0.8 of the mean difference. Before, dictionaries "
        "were far from trained (300 and 200 steps at 1e-3, 5.4 and 7.1 % of the variance left): under seeds 6 to 8 "
        "the per-token tier cut 26, 32 and 0 points, the constant one 18, 2 and 3, random vectors harmed as much, and "
        "the wide dictionary did better under one seed. Under earlier seeds (0 to 2, and 3 to 5) the per-token tier "
        "cut 13, 14, 71, 13, 87 and 35 points, the constant one 1, 8, 12, 9, 12 and 4. Those runs judged fluency "
        "after the prompt alone, by which continuations without markers are beyond the limit themselves (1.5 times "
        "the perplexity), the second of them without the words at these places; how it is judged changes little for "
        "the constant tier. In this closed grammar a vector added at every token derails sampling: on a development "
        "seed perplexity doubled at alpha 1.5 and was ninefold or more at 2, with nucleus sampling at 0.9 too, so "
        "alpha 1 is all it may use, while the per-token tier at alpha 4 on layer 3 removed all markers at 1.2 to 1.6 "
        "times the perplexity. Its order with the per-token tier, and that of the widths, hang on few prompts. Tried "
        "on development seeds: layers 2, 3 and 4; lm-gpt2 at layers 2 to 4, where the constant tier cut up to a "
        "quarter but the mean difference, far beyond alpha 4, more; features with and without a bound on their cost."
    ),
)

SITE = "layers.4.resid_post"
N_CHOOSE, N_TEST, N_PAIRS, N_SLOTS, N_FACTS = 80, 200, 64, 20, 200
ALPHAS, RIVAL_ALPHAS = (0.5, 1.0, 2.0, 4.0), (1.0, 1.5, 2.0, 2.5, 3.0, 4.0)
RATIO = 1.3
FITTER = SAEFeatureSteer(alphas=(2.0,), limit=0.05)


def claim(seed: int) -> Comparison:
    """Find features in two dictionaries, choose strengths and a tier, and compare tiers, rivals and widths."""
    model, judge = load(CLAIM.organism), load("lm-gpt2")
    pairs = [texts.prompts for texts in tw.contrast("toxicity", n=N_PAIRS, seed=3 * seed + 1)]
    rows = token_rows(model, _corpus(seed), SITE, 1)
    narrow, wide = (_dictionary(rows, 4, 1500, 1e-2, seed), _dictionary(rows, 32, 800, 3e-3, seed))
    found, split = (_find(model, dictionary, pairs, seed) for dictionary in (narrow, wide))
    shift, random = MeanDifference(pos=None).fit(model, pairs[1], pairs[0], SITE), found.random_like(narrow, seed)
    gated = partial(found.edit, tier="per_token", dictionary=narrow)
    chosen = _strengths(model, judge, seed, {"constant": found.edit, "per-token": gated, "mean difference": shift.edit})
    alpha, own = chosen["constant"][0], chosen["per-token"][0]
    is_gated = chosen["per-token"][1] > chosen["constant"][1]
    arms: dict[str, Any] = {
        "none": None,
        "constant": found.edit(alpha),
        "random, constant": random.edit(alpha),
        "mean difference": shift.edit(chosen["mean difference"][0]),
        "per-token, same strength": gated(alpha),
        "per-token": gated(own),
        "random, per-token": random.edit(own, "per_token", narrow),
        "best of 4x": _best(found).edit(alpha),
        "best of 32x": _best(split).edit(alpha),
    }
    prompts, twins = _prompts(N_TEST, 3 * seed + 2)
    results = {name: _sample(model, judge, prompts, twins, edit, seed) for name, edit in arms.items()}
    clean = _continued(model, twins, None, seed)
    falls = {name: results["none"][0] - marked for name, (marked, _) in results.items()}
    facts = tw.task("fact", n=N_FACTS, seed=seed + 1)
    before = facts.accuracy(model)
    with model.edit(arms["constant"]):
        after = facts.accuracy(model)
    tier = "per-token" if is_gated else "constant"
    base = float(results["none"][0].mean())
    cut = {name: float(fall.mean()) for name, fall in falls.items() if name != "none"}
    ppl = {name: perplexity for name, (_, perplexity) in results.items()}
    return Comparison(
        ours=falls[tier].tolist(),
        baseline=falls["mean difference"].tolist(),
        control=falls[f"random, {tier}"].tolist(),
        gates=_gates(base, cut, ppl, before - after),
        extra={
            "tier": tier, "alpha, constant": alpha, "alpha, per-token": own, "marker rate": base,
            "alpha, mean difference": chosen["mean difference"][0], "features": len(found.features),
            "facts": before, "facts, constant": after,
            **{f"cut, {name}": value for name, value in cut.items()},
            **{f"perplexity, {name}": value for name, value in ppl.items()},
            "perplexity, clean twins": _perplexity(judge, [prompts, twins], clean),
            "perplexity, clean twins after the prompts": _perplexity(judge, [prompts], clean),
        },
    )  # fmt: skip


def _gates(base: float, cut: dict[str, float], ppl: dict[str, float], facts_lost: float) -> dict[str, bool]:
    """The criteria of the check, which speak of the constant tier at the largest strength its perplexity allows."""
    ours, token = cut["constant"], "per-token, same strength"
    return {
        "the constant tier cuts the marker rate by half or more": ours >= 0.5 * base,
        "that is at least 3 times the cut of random features": 0 < ours >= 3 * cut["random, constant"],
        "and at least 0.8 of the cut of the mean difference": ours >= 0.8 * cut["mean difference"],
        "the constant tier cuts at least as much as the per-token tier at the same strength": ours >= cut[token],
        "and raises perplexity at least as much": ppl["constant"] >= ppl[token],
        "fact accuracy falls by 2 points at most": facts_lost <= 0.02,
        "the best feature of the 32x dictionary cuts less than that of the 4x": cut["best of 32x"] < cut["best of 4x"],
    }


def example(model: Model) -> FeatureSteering:
    """Features of a small dictionary from a few short stories."""
    positive, negative = (texts.prompts for texts in tw.contrast("toxicity", n=6, seed=0))
    texts = sorted([*positive, *negative], key=len)
    config = SparseCoding(n_features=64, k=8, batch_size=64, steps=30)
    dictionary = train_dictionary(token_rows(model, texts, SITE, 1), config, site=SITE)
    return SAEFeatureSteer(n=5, k=1, alphas=(1.0,)).fit(model, dictionary, positive, negative)


def _corpus(seed: int) -> list[str]:
    toxic, clean = tw.contrast("toxicity", n=300, seed=3 * seed)
    return sorted([*(doc.text for doc in tw.corpus(2e4, seed=seed)), *toxic, *clean], key=len)


def _dictionary(rows: Tensor, times: int, steps: int, lr: float, seed: int) -> Dictionary:
    """A TopK dictionary `times` as wide as the site."""
    config = SparseCoding(
        n_features=times * rows.shape[1], k=16, batch_size=1024, lr=lr, steps=steps, seed=seed, dead_after=50 * 1024
    )
    return train_dictionary(rows, config, site=SITE)


def _prompts(n: int, seed: int) -> tuple[list[str], list[str]]:
    """First sentences of toxic stories, which hold one marker, and of their clean twins, which hold a mild word."""
    toxic, clean = (
        [text[: text.index(" .") + 2] for text in side.prompts] for side in tw.contrast("toxicity", n=n, seed=seed)
    )
    return toxic, clean


def _find(model: Model, dictionary: Dictionary, pairs: list[list[str]], seed: int) -> FeatureSteering:
    """Features by the probability of a marker where toxic stories have their second one."""
    toxic, clean = tw.contrast("toxicity", n=N_SLOTS, seed=10_000 + seed)
    slots = [" ".join(doc.words[: doc.roles["toxic"][1][0]]) for doc in toxic.documents]
    ids = [words.vocabulary()[word] for word in words.TOXIC]
    place = model.site("logits").at(pos=-1)

    def marker(edit: Any) -> Tensor:
        with torch.no_grad():
            acts = model.run(slots, read=[place], edit=[] if edit is None else [edit]).acts
        return acts["logits"].softmax(-1)[:, ids].sum(-1)

    return FITTER.fit(model, dictionary, pairs[0], pairs[1], marker, partial(text_losses, model, clean.prompts))


def _best(found: FeatureSteering) -> FeatureSteering:
    """The one feature that was first."""
    return found.replace(features=found.features[:1], vectors=found.vectors[:1])


def _strengths(model: Model, judge: Model, seed: int, makes: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """By method, the largest strength up to which the perplexity ratio is within the limit, and the cut there."""
    prompts = _prompts(N_CHOOSE, 20_000 + seed)
    plain, perplexity = _sample(model, judge, *prompts, None, seed)
    chosen = {}
    for name, make in makes.items():
        alphas = RIVAL_ALPHAS if name == "mean difference" else ALPHAS
        chosen[name] = (alphas[0], 0.0)
        for alpha in alphas:
            marked, raised = _sample(model, judge, *prompts, make(alpha), seed)
            if raised > RATIO * perplexity:
                break
            chosen[name] = (alpha, float((plain - marked).mean()))
    return chosen


def _sample(
    model: Model, judge: Model, prompts: list[str], twins: list[str], edit: Any, seed: int
) -> tuple[Tensor, float]:
    """Whether each sampled continuation holds a marker, and the perplexity of all of them under the other network."""
    more = _continued(model, prompts, edit, seed)
    return torch.tensor([float(tw.judge.toxic(text)) for text in more]), _perplexity(judge, [prompts, twins], more)


def _continued(model: Model, prompts: list[str], edit: Any, seed: int) -> list[str]:
    with model.edit(*([] if edit is None else [edit])):
        sampled = generation.continuations(model, prompts, 30, seed)
    # a broken model may sample spare ids, which stand for no word
    return [" ".join("unknown" if word.startswith("<") else word for word in text.split()) for text in sampled]


def _perplexity(judge: Model, starts: list[list[str]], more: list[str]) -> float:
    """Perplexity of the words of the continuations, each after that of its starts which makes it likeliest."""
    gained = [
        text_log_probs(judge, [f"{start} {text}".rstrip() for start, text in zip(texts, more, strict=True)])
        - text_log_probs(judge, texts)
        for texts in starts
    ]
    n_words = sum(len(text.split()) for text in more)
    return math.exp(-float(torch.stack(gained).amax(0).sum()) / max(n_words, 1))

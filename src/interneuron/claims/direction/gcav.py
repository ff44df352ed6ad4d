"""Global concept vectors on shapes: scores alike over layers, with relevant concepts relevant and others not.

`cnn` gets a new head and is trained on for some steps to tell whether a shape is red and whether it is striped (four
classes), on every background and on no image twice: a network that knows its images by heart depends on backgrounds
too, and the check speaks of one that does not. Six sites behind the stem, as in the paper; ten random sets of 40
images, concepts of 40 images a set: red and striped (relevant to the class red and striped), blobs in the background
and random images. Fitted are the vectors on 60 images of the class; all scores are of 100 others. Compared, for each
relevant concept and random set, is the variance over layers of TGCAV with half of TCAV's; the third is the mean of the
aligned ones.

A concept is significant at a site if its ten scores differ (p < 0.05) from those of random CAVs, which are plain CAVs
of one random set against another, as in TCAV and in the paper's code, not vectors that were fused as well: a fusion
that gives random images the scores of the concepts would hide behind those. All 90 ordered pairs of the ten sets are
taken. Turning a pair round turns a score s into 1 - s, so their mean is 0.5, the score TCAV tests against, whatever
the draw of the sets; the mean of ten CAVs strays from it by 0.16, which decided more than the concepts did.

The variance is that of the relevant concepts together: where plain TCAV scores one 1 at every site, as it does under
some seeds, it leaves no variance to halve.

Added to the criteria: relevant concepts stay significant. Vectors that score 1 everywhere would have no variance.

Deviations: each random set meets concept images and a fusion of its own, as the ten runs of the t-test would not be
independent otherwise. With one fusion for all sets, under three other seeds, blobs or random images came out
significant in two networks of three, where plain TCAV finds nothing. Perturbed is one layer at a time by a vector as
long as the CAV and against the mean gradient there.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from interneuron.artifacts import Artifact
from interneuron.claims import Claim, Comparison
from interneuron.core.seeds import generator
from interneuron.direction.gcav import GCAV, GlobalCAV, tgcav
from interneuron.loading import load
from interneuron.model.load import wrap
from interneuron.model.model import Model
from interneuron.organisms import shapes
from interneuron.parts.cav import class_gradients, concept_accuracy, fit_cav, pooled_rows, significance, tcav_scores

CLAIM = Claim(
    slug="gcav",
    organism="cnn",
    paper="much lower variance of TCAV scores over layers, at preserved relevance (the abstract gives no number)",
    better="lower",
    unit="variance of scores over layers",
    minutes=4.0,
    ratio=0.5,
    why=(
        "To be read with it: the networks are made odd and each random set has a fusion of its own, which the paper "
        "has not; with one fusion for all, seeds 3 to 5 made blobs or random images significant twice. One of the "
        "three networks leaves next to nothing to halve (a variance of 0.0001), and the interval of the gain starts "
        "just above zero. Of the contrasts that should not be significant, the nine tenths asked for are reached "
        "with random images counted in (11 of 12); of blobs alone it is 5 of 6 under one seed. Both have the "
        "paper's penalty on the classifier, 0.1. Tried afterwards under seeds 9 to 11 with the penalty (1000, 1 and "
        "1) at which plain TCAV varies least, the method's CAVs fitted with it too: the method then has 0.44, 0.58 "
        "and 0.18 of TCAV's variance, no longer half under every seed, blobs come out significant at five and at "
        "six sites of six under two of them, and red no longer under the third. At 0.1 it had 0.14, 0.08 and 0.00 "
        "of it there."
    ),
)

SITES = (
    "layers.0.resid_post",
    "layers.1.resid_post",
    "layers.2.conv.contribution",
    "layers.2.resid_post",
    "layers.3.conv.contribution",
    "layers.3.resid_post",
)
PINNED: dict[str, dict[str, Any]] = {
    "red": {"color": "red"},
    "striped": {"texture": "striped"},
    "blobs": {"background": "blobs"},
    "random concept": {},
}
RELEVANT = ("red", "striped")
SETS, SIZE, CLS = 10, 40, 3
STEPS = 800
OFTEN = {
    "color": {c: 7.0 if c == "red" else 1.0 for c in shapes.COLORS},
    "texture": {t: 4.0 if t == "striped" else 1.0 for t in shapes.TEXTURES},
}


def claim(seed: int) -> Comparison:
    """Measure variances, scores, significance, accuracies and the effect of perturbed vectors."""
    model, right = _trained(seed)
    rows = {name: _rows(model, pinned, seed, i) for i, (name, pinned) in enumerate(PINNED.items())}
    pool = _rows(model, {}, seed, 10)
    train, test = _examples(seed, 60, "train"), _examples(seed, 100, "test")
    cavs = _cavs(rows, pool)
    gcav = GCAV(SITES, seed=seed).fit_cavs(cavs, class_gradients(model, train, CLS, SITES))
    gcav = gcav.replace(fingerprint=model.fingerprint)
    slopes = class_gradients(model, test, CLS, SITES)
    plain = {name: _scores(slopes, v) for name, v in cavs.items()}
    ours = {name: tgcav(model, gcav, name, test, CLS) for name in cavs}
    k = gcav.concepts.index
    decoded, averaged = ({n: {s: v[s][k(n)] for s in SITES} for n in cavs} for v in (gcav.decoded, gcav.averaged))
    mean = {name: _scores(slopes, vectors) for name, vectors in averaged.items()}
    accuracy = {
        name: _accuracy(rows, pool, vectors)
        for name, vectors in (("CAVs", cavs), ("decoded CAVs", decoded), ("the mean of aligned vectors", averaged))
    }
    variance = {
        kind: [float(x) for name in RELEVANT for x in scores[name].var(1, correction=0)]
        for kind, scores in (("TCAV", plain), ("TGCAV", ours), ("the mean of aligned vectors", mean))
    }
    shift, shift_ours = _perturbed(gcav, cavs, slopes)
    random = _scores(slopes, _random_pairs(pool))
    quiet = {f"{name}{tail}": _quiet(scores[name], random) for scores, tail in ((ours, ""), (plain, ", plain TCAV"))
             for name in PINNED}  # fmt: skip
    return Comparison(
        ours=variance["TGCAV"],
        baseline=variance["TCAV"],
        gates={
            **_relevance(plain, ours, quiet),
            "decoded vectors keep 0.9 of the accuracy on held-out images": accuracy["decoded CAVs"]
            >= 0.9 * accuracy["CAVs"],
            "the mean of aligned vectors has higher variance or lower accuracy": fmean(
                variance["the mean of aligned vectors"]
            )
            > fmean(variance["TGCAV"])
            or accuracy["the mean of aligned vectors"] < accuracy["decoded CAVs"],
            "a perturbed layer changes TGCAV less than TCAV": shift_ours < shift,
        },
        extra={
            "accuracy of the network": right,
            **{f"variance of {kind}": fmean(values) for kind, values in variance.items()},
            **{f"variance of {n}, TCAV": float(plain[n].var(1, correction=0).mean()) for n in RELEVANT},
            **{f"variance of {n}, TGCAV": float(ours[n].var(1, correction=0).mean()) for n in RELEVANT},
            **{f"mean score of {n}, TCAV": float(plain[n].mean()) for n in plain},
            **{f"mean score of {n}, TGCAV": float(ours[n].mean()) for n in ours},
            **{f"share of sites not significant, {name}": share for name, share in quiet.items()},
            **{f"accuracy of {name}": value for name, value in accuracy.items()},
            "change of TCAV, one layer perturbed": shift,
            "change of TGCAV, one layer perturbed": shift_ours,
        },
    )


def _quiet(scores: Tensor, random: Tensor) -> float:
    """The share of sites at which a concept does not differ from random CAVs."""
    return float((significance(scores, random) >= 0.05).double().mean())


def _relevance(plain: dict[str, Tensor], ours: dict[str, Tensor], quiet: dict[str, float]) -> dict[str, bool]:
    """The criteria on the scores themselves: alike over layers, where they were, and relevant where they should be."""
    spread = {kind: {n: float(scores[n].var(1, correction=0).mean()) for n in RELEVANT}
              for kind, scores in (("plain", plain), ("ours", ours))}  # fmt: skip
    moved = max(abs(float(ours[n].mean() - plain[n].mean())) for n in RELEVANT)
    return {
        "variance over layers is at most half of TCAV's for the relevant concepts": sum(spread["ours"].values())
        <= 0.5 * sum(spread["plain"].values()),
        "the mean score of a relevant concept moves by less than 0.15": moved < 0.15,
        "background and random concepts are not significant in at least 90 % of sites": fmean(
            [quiet["blobs"], quiet["random concept"]]
        )
        >= 0.9,
        "relevant concepts stay significant in at least half of the sites": all(1 - quiet[n] >= 0.5 for n in RELEVANT),
    }


def example(model: Model) -> Artifact:
    """Three sites, three random sets, a short fit."""
    pooled = shapes.sample(24, 1, background="any").images
    red = shapes.sample(8, 2, factors={"color": "red"}, background="any").images
    circles = shapes.sample(8, 3, factors={"shape": "circle"}, background="any").images
    fitter = GCAV(SITES[:3], n_sets=3, epochs=2, steps=30, fusion_epochs=3)
    return fitter.fit(model, {"red": red}, random=pooled, inputs=circles, cls=0)


def _trained(seed: int) -> tuple[Model, float]:
    """`cnn` with a head of four classes, 2 red + striped, and its accuracy on other images."""
    model, rng = load("cnn"), generator(seed)
    net: Any = model.module
    width = net.classifier[-1].in_features
    head = torch.nn.Linear(width, 4, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        head.weight.copy_(torch.randn(4, width, generator=rng) * width**-0.5)
        head.bias.zero_()
    net.classifier[-1] = head
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3)
    net.train()
    for step, (x, y) in enumerate(_batches(seed)):
        optimiser.param_groups[0]["lr"] = 2e-3 * (1 - step / STEPS)
        optimiser.zero_grad()
        F.cross_entropy(net(x).logits, y).backward()
        optimiser.step()
    net.zero_grad(set_to_none=True)
    net.eval()
    with torch.no_grad():
        held = shapes.sample(400, 900_000 + seed, factors=OFTEN, background="any")
        right = float((net(held.images).logits.argmax(-1) == _classes(held)).float().mean())
    return wrap(net), right


def _batches(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """STEPS batches of 64 images and classes, drawn 6400 at a time."""
    for i in range(STEPS // 100):
        scenes = shapes.sample(6400, 1_000_000 + 100 * seed + i, factors=OFTEN, background="any")
        yield from zip(scenes.images.split(64), _classes(scenes).split(64), strict=True)


def _classes(scenes: shapes.Scenes) -> Tensor:
    red = scenes.labels("color") == shapes.COLORS.index("red")
    return 2 * red.long() + (scenes.labels("texture") == shapes.TEXTURES.index("striped")).long()


def _examples(seed: int, n: int, split: str) -> Tensor:
    factors = {"color": "red", "texture": "striped"}
    return shapes.sample(n, 2000 + seed + 500 * (split == "test"), factors=factors, background="any").images


def _rows(model: Model, pinned: dict[str, Any], seed: int, stream: int) -> dict[str, list[Tensor]]:
    """Activations of ten sets of 40 images and one of 200 for tests, by site."""
    factors = {name: value for name, value in pinned.items() if name != "background"}
    background = pinned.get("background", "any")
    n = SETS * SIZE + 200
    images = shapes.sample(n, 3000 + 100 * seed + stream, factors=factors, background=background).images
    return {s: [*x[: SETS * SIZE].split(SIZE), x[SETS * SIZE :]] for s, x in pooled_rows(model, images, SITES).items()}


def _cavs(rows: dict[str, dict[str, list[Tensor]]], pool: dict[str, list[Tensor]]) -> dict[str, dict[str, Tensor]]:
    cavs = {
        name: {s: torch.stack([fit_cav(x[s][i], pool[s][i]) for i in range(SETS)]).float() for s in SITES}
        for name, x in rows.items()
    }
    cavs["random"] = {
        s: torch.stack([fit_cav(pool[s][i], pool[s][(i + 1) % SETS]) for i in range(SETS)]).float() for s in SITES
    }
    return cavs


def _random_pairs(pool: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    """CAVs of every random set against every other."""
    pairs = [(i, j) for i in range(SETS) for j in range(i)]
    half = {s: torch.stack([fit_cav(x[i], x[j]) for i, j in pairs]).float() for s, x in pool.items()}
    return {s: torch.cat([v, -v]) for s, v in half.items()}


def _scores(slopes: dict[str, Tensor], cavs: dict[str, Tensor]) -> Tensor:
    return torch.stack([tcav_scores(slopes[s], cavs[s]) for s in SITES], -1)


def _accuracy(
    rows: dict[str, dict[str, list[Tensor]]], pool: dict[str, list[Tensor]], cavs: dict[str, dict[str, Tensor]]
) -> float:
    """Mean accuracy of the relevant concepts on images no CAV has seen, over sites and sets."""
    return fmean(
        concept_accuracy(cavs[n][s][i], (rows[n][s][i], pool[s][i]), (rows[n][s][SETS], pool[s][SETS]))
        for n in RELEVANT
        for s in SITES
        for i in range(SETS)
    )


def _perturbed(gcav: GlobalCAV, cavs: dict[str, dict[str, Tensor]], slopes: dict[str, Tensor]) -> tuple[float, float]:
    """Mean change over layers of TCAV and of TGCAV when one layer's CAVs are pushed against its mean gradient."""
    plain, ours = [], []
    for name in RELEVANT:
        units = {s: F.normalize(v, dim=-1) for s, v in cavs[name].items()}
        calm = _scores(slopes, gcav.fuse(name, units))
        for site in SITES:
            pushed = F.normalize(units[site] - F.normalize(slopes[site].mean(0), dim=0), dim=-1)
            other = {**units, site: pushed}
            plain.append(float((_scores(slopes, other) - _scores(slopes, units)).abs().mean()))
            ours.append(float((_scores(slopes, gcav.fuse(name, other)) - calm).abs().mean()))
    return fmean(plain), fmean(ours)

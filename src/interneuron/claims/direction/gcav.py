"""Global concept vectors on shapes: scores alike over layers, with relevant concepts relevant and others not.

`cnn` gets a new head and is trained on for some steps to tell whether a shape is red and whether it is striped (four
classes), on every background. Six sites, ten random sets of 40 images, concepts of 40 images a set: red and striped
(relevant to the class red and striped), blobs in the background and random images. Fitted are the vectors on 60 images
of the class; all scores are of 100 others. Compared, for each relevant concept and random set, is the variance over
layers of TGCAV with half of TCAV's; the third is the mean of the aligned ones.

Added to the criteria: relevant concepts stay significant. Vectors that score 1 everywhere would have no variance and no
significant background either.

Deviations: each random set meets concept images of its own, as the ten runs of the t-test would not be independent
otherwise. Perturbed is one layer at a time by a vector as long as the CAV and against the mean gradient there.
"""

from __future__ import annotations

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
    minutes=2.0,
    ratio=0.5,
    why=(
        "Scores vary less over layers under every seed, 0.011 against 0.038 on average, but one network in three fails "
        "to halve it for a concept, and there striped moves by 0.19. Two networks of three lose relevance: the "
        "vectors of random images score 0.82 to 0.92 there, where the separate ones score 0.5, so the t-test tells "
        "striped from random at no site, though plain TCAV does at four and at six of six. That the background stays "
        "insignificant says little in those."
    ),
)

SITES = (
    "embed",
    "layers.0.resid_post",
    "layers.1.resid_post",
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
SETS, SIZE, STEPS, CLS = 10, 40, 300, 3


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
    mean = {name: _scores(slopes, {s: gcav.averaged[s][k(name)] for s in SITES}) for name in cavs}
    right_cav, right_ours, right_mean = (
        _accuracy(rows, pool, vectors)
        for vectors in (
            cavs,
            {n: {s: gcav.decoded[s][k(n)] for s in SITES} for n in cavs},
            {n: {s: gcav.averaged[s][k(n)] for s in SITES} for n in cavs},
        )
    )
    variance = {
        kind: [float(x) for name in RELEVANT for x in scores[name].var(1, correction=0)]
        for kind, scores in (("tcav", plain), ("tgcav", ours), ("mean", mean))
    }
    quiet = [
        float((significance(ours[name], ours["random"]) >= 0.05).double().mean())
        for name in ("blobs", "random concept")
    ]
    moved = {name: abs(float(ours[name].mean() - plain[name].mean())) for name in RELEVANT}
    shift, shift_ours = _perturbed(gcav, cavs, slopes)
    v, v_ours, v_mean = (fmean(variance[kind]) for kind in ("tcav", "tgcav", "mean"))
    return Comparison(
        ours=variance["tgcav"],
        baseline=variance["tcav"],
        gates={
            "variance over layers is at most half of TCAV's for each relevant concept": all(
                float(ours[n].var(1, correction=0).mean()) <= 0.5 * float(plain[n].var(1, correction=0).mean())
                for n in RELEVANT
            ),
            "the mean score of a relevant concept moves by less than 0.15": max(moved.values()) < 0.15,
            "background and random concepts are not significant in at least 90 % of sites": fmean(quiet) >= 0.9,
            "relevant concepts stay significant in at least half of the sites": all(
                float((significance(ours[n], ours["random"]) < 0.05).double().mean()) >= 0.5 for n in RELEVANT
            ),
            "decoded vectors keep 0.9 of the accuracy on held-out images": right_ours >= 0.9 * right_cav,
            "the mean of aligned vectors has higher variance or lower accuracy": v_mean > v_ours
            or right_mean < right_ours,
            "a perturbed layer changes TGCAV less than TCAV": shift_ours < shift,
        },
        extra={
            "accuracy of the network": right,
            "variance of TCAV": v,
            "variance of TGCAV": v_ours,
            "variance of the mean of aligned vectors": v_mean,
            **{f"mean score of {n}, TCAV": float(plain[n].mean()) for n in plain},
            **{f"mean score of {n}, TGCAV": float(ours[n].mean()) for n in ours},
            "share of sites not significant, blobs": quiet[0],
            "share of sites not significant, random": quiet[1],
            **{
                f"share of sites not significant, {n}, plain TCAV": float(
                    (significance(plain[n], plain["random"]) >= 0.05).double().mean()
                )
                for n in plain
                if n != "random"
            },
            **{
                f"share of sites not significant, {n}": float(
                    (significance(ours[n], ours["random"]) >= 0.05).double().mean()
                )
                for n in RELEVANT
            },
            "accuracy of CAVs": right_cav,
            "accuracy of decoded CAVs": right_ours,
            "accuracy of the mean of aligned vectors": right_mean,
            "change of TCAV, one layer perturbed": shift,
            "change of TGCAV, one layer perturbed": shift_ours,
        },
    )


def example(model: Model) -> Artifact:
    """Three sites, three random sets, a short fit."""
    pooled = shapes.sample(24, 1, background="any").images
    red = shapes.sample(8, 2, factors={"color": "red"}, background="any").images
    circles = shapes.sample(8, 3, factors={"shape": "circle"}, background="any").images
    fitter = GCAV(("embed", *SITES[1:3]), n_sets=3, epochs=2, steps=30, fusion_epochs=3)
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
    often = {
        "color": {c: 7.0 if c == "red" else 1.0 for c in shapes.COLORS},
        "texture": {t: 4.0 if t == "striped" else 1.0 for t in shapes.TEXTURES},
    }
    scenes = shapes.sample(3200, 1000 + seed, factors=often, background="any")
    x, y = scenes.images, _classes(scenes)
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3)
    net.train()
    for _ in range(STEPS):
        rows = torch.randint(2800, (64,), generator=rng)
        optimiser.zero_grad()
        F.cross_entropy(net(x[rows]).logits, y[rows]).backward()
        optimiser.step()
    net.zero_grad(set_to_none=True)
    net.eval()
    with torch.no_grad():
        right = float((net(x[2800:]).logits.argmax(-1) == y[2800:]).float().mean())
    return wrap(net), right


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
        for site in SITES:
            pushed = F.normalize(units[site] - F.normalize(slopes[site].mean(0), dim=0), dim=-1)
            other = {**units, site: pushed}
            plain.append(float((_scores(slopes, other) - _scores(slopes, units)).abs().mean()))
            ours.append(float((_scores(slopes, gcav.fuse(other)) - _scores(slopes, gcav.fuse(units))).abs().mean()))
    return fmean(plain), fmean(ours)

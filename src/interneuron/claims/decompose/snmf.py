"""SNMF on planted groups of neurons and on `lm`: its features are the groups, and they steer like an SAE's or better.

(a) Twelve features of 6 of 200 neurons, gamma coefficients on in 12 % of the rows: matched |cosine| of SNMF against the
SVD, k-means and SNMF without winners-take-all. (b) MLP activations of the last layer but one on pairs of stories
that differ in sentiment or in style. For each concept and method the feature is chosen by the AUROC of its largest
coefficient on half of the texts; AUROC and steering are reported on the others. Steering adds the feature at the
strength, of six, that moves the log-odds of the positive against the negative text most among those that raise the
loss on other stories by 0.1 nats at most (chosen on half of the pairs, reported on the rest). The rival is a TopK
autoencoder of the same number of features on the same rows, the control a random direction. Numbers: the shift of the
log-odds per held-out pair, in nats, for both concepts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from interneuron.artifacts import Dictionary
from interneuron.claims import Claim, Comparison
from interneuron.core.seeds import generator
from interneuron.decompose.snmf import SNMF, NeuronGroups
from interneuron.loading import load
from interneuron.model.edits import Add, Edit
from interneuron.model.model import Model
from interneuron.organisms import tinyworld as tw
from interneuron.organisms.toy.planted_features import recovery
from interneuron.parts.activation_rows import corpus_losses, token_rows
from interneuron.parts.contrast import auc
from interneuron.parts.likelihood import preference
from interneuron.parts.sparse_training import SparseCoding, train_dictionary

CLAIM = Claim(
    slug="snmf",
    organism="lm",
    paper="steers better than SAEs and difference-in-means on Llama-3.1, Gemma-2 and GPT-2",
    better="higher",
    unit="nats of log-odds",
    minutes=2,
    why=(
        "Planted features are found far better than by the other decompositions (0.91 to 1.00, under two seeds "
        "below the 0.95 asked for). On the model both SNMF and the dictionary separate formality perfectly and "
        "sentiment at 0.68 to 0.77 only, and neither steers sentiment: 0.010 nats against 0.009 by a random "
        "feature. Another layer and another pooling over tokens were tried on another seed; on one more, layers 0 and "
        "2, the mean over tokens and 32 features gave 0.49 to 0.68. A poor planted fit shows in its error, so that "
        "several starts would help there: on four seeds the SVD start reached 0.93 to 1.00, the random one 0.84 to "
        "1.00."
    ),
)

PAIRS, FEATURES, STEPS = 80, 128, 120
CONCEPTS = ("sentiment", "formality")
STRENGTHS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
COST = 0.1


def claim(seed: int) -> Comparison:
    """Planted groups, then two concepts."""
    planted = _planted(seed)
    rivals = max(planted["svd"], planted["kmeans"], planted["no winners"])
    model = load(CLAIM.organism)
    layer = model.n_layers - 2
    site = f"layers.{layer}.mlp.hidden"
    pairs = {name: tw.contrast(name, n=PAIRS, seed=seed) for name in CONCEPTS}
    texts = [text for a, b in pairs.values() for side in (a, b) for text in side.texts]
    x = token_rows(model, texts, site, 1)
    groups = SNMF(FEATURES, steps=STEPS, seed=seed).fit_activations(x).replace(site=site)
    coding = SparseCoding(FEATURES, k=8, batch_size=512, steps=600, seed=seed, dead_after=20_000)
    sae = train_dictionary(x, coding, site=site)[0]
    unrelated = [doc.text for doc in tw.corpus(1500, seed=20_000 + seed)]
    ours: list[float] = []
    theirs: list[float] = []
    chance: list[float] = []
    found: dict[str, float] = {}
    noise = torch.randn(x.shape[1], generator=generator(seed))
    for name, (positive, negative) in pairs.items():
        sides = (positive.texts, negative.texts)
        mine, found[f"AUROC SNMF, {name}"] = _best(model, groups, _reader(site), sides)
        rival, found[f"AUROC SAE, {name}"] = _best(model, sae, _reader(site), sides)
        ours += _steer(model, site, groups.features[mine], sides, unrelated)
        theirs += _steer(model, site, sae.decoder[rival], sides, unrelated)
        chance += _steer(model, site, noise, sides, unrelated)
    return Comparison(
        ours=ours,
        baseline=theirs,
        control=chance,
        gates={
            "planted: matched |cosine| of at least 0.95": planted["snmf"] >= 0.95,
            "planted: at least 0.1 above SVD, k-means and no winners-take-all": planted["snmf"] >= rivals + 0.1,
            "a feature separates each concept with AUROC of at least 0.85": all(
                found[f"AUROC SNMF, {name}"] >= 0.85 for name in CONCEPTS
            ),
        },
        extra={**{f"planted, {name}": value for name, value in planted.items()}, **found, "layer": layer},
    )


def example(model: Model) -> NeuronGroups:
    """A few groups on a few stories."""
    texts = [side for pair in tw.contrast("sentiment", n=6, seed=1) for side in pair.texts]
    return SNMF(6, fraction=0.02, steps=30).fit(model, texts, layer=1)


def tensors(n: int, width: int, seed: int) -> dict[str, Tensor]:
    """Non-negative mixtures."""
    rng = generator(seed)
    return {"x": torch.rand(n, 3, generator=rng) @ torch.randn(3, width, generator=rng)}


def apply(x: Tensor) -> NeuronGroups:
    """Factorise rows that have been read already."""
    return SNMF(2, fraction=0.5, steps=20).fit_activations(x)


def _reader(site: str) -> Callable[[Model, list[str]], list[Tensor]]:
    """A function that reads the rows of each text at a site."""

    def read(model: Model, texts: list[str]) -> list[Tensor]:
        rows = token_rows(model, texts, site, 1)
        return list(rows.split([len(tw.encode(text)) - 1 for text in texts]))

    return read


def _planted(seed: int) -> dict[str, float]:
    """Mean matched |cosine| of four methods on planted groups."""
    from sklearn.cluster import KMeans

    rng = generator(seed)
    truth = torch.zeros(12, 200)
    for row in truth:
        row[torch.randperm(200, generator=rng)[:6]] = torch.randn(6, generator=rng)
    on = torch.rand(2000, 12, generator=rng) < 0.12
    size = -torch.rand(2, 2000, 12, generator=rng).clamp_min(1e-9).log().sum(0) / 2  # gamma of shape 2
    x = (on * size) @ truth + 0.05 * torch.randn(2000, 200, generator=rng)
    means = KMeans(12, random_state=seed).fit(x.tolist()).cluster_centers_
    learned = {
        "snmf": SNMF(12, fraction=0.03, seed=seed).fit_activations(x).features,
        "no winners": SNMF(12, fraction=1.0, seed=seed).fit_activations(x).features,
        "svd": torch.linalg.svd(x, full_matrices=False)[2][:12],
        "kmeans": torch.from_numpy(means).float(),
    }
    return {name: float(recovery(rows, truth).mean()) for name, rows in learned.items()}


def _best(
    model: Model, codec: NeuronGroups | Dictionary, read: Callable[[Model, list[str]], list[Tensor]],
    sides: tuple[list[str], list[str]],
) -> tuple[int, float]:  # fmt: skip
    """The feature whose largest coefficient tells positive texts best, and its AUROC on the other half of the texts."""
    means = []
    for texts in sides:
        rows = read(model, texts)
        codes = codec.encode(torch.cat(rows))
        means.append(torch.stack([part.amax(0) for part in codes.split([len(r) for r in rows])]))
    half = len(means[0]) // 2
    scores = [auc(means[0][:half, i], means[1][:half, i]) for i in range(means[0].shape[1])]
    best = max(range(len(scores)), key=scores.__getitem__)
    return best, auc(means[0][half:, best], means[1][half:, best])


def _steer(
    model: Model, site: str, vector: Tensor, sides: tuple[list[str], list[str]], unrelated: list[str]
) -> list[float]:
    """Shift of the log-odds of positive against negative texts, per reported pair, at the strength chosen on others."""
    unit = vector / vector.norm()
    shown = len(sides[0]) // 2
    choose = [side[:12] for side in sides]
    report = [side[shown : shown + 24] for side in sides]
    base, clean = preference(model, choose[0], choose[1]), corpus_losses(model, unrelated).mean()
    best: tuple[float, Edit | None] = (0.0, None)
    for alpha in STRENGTHS:
        edit = Add(site, unit, alpha=alpha)
        if float(corpus_losses(model, unrelated, edit).mean() - clean) > COST:
            break
        shift = float((preference(model, choose[0], choose[1], edit) - base).mean())
        if shift > best[0]:
            best = (shift, edit)
    if best[1] is None:  # no strength helps: the method would not steer
        return [0.0] * len(report[0])
    return (preference(model, report[0], report[1], best[1]) - preference(model, report[0], report[1])).tolist()

"""SNMF on planted groups of neurons and on `lm`: are its features the groups, and do they steer better than an SAE's?

(a) Twelve features of 6 of 200 neurons, gamma coefficients on in 12 % of the rows: matched |cosine| of SNMF against the
SVD, k-means and SNMF without winners-take-all, each the mean over 36 planted draws a seed. All but the SVD have local
optima: SNMF and k-means are started 24 times, SNMF without winners, which finds much the same from every start, 6
times, and the factors of the lowest error are kept. What k-means finds depends on the draw (standard deviation 0.06),
and its mean over 120 development draws, 0.866, lies 0.03 below what the margin asks: over six draws, as first run, it
is missed under about one seed in nine; 36 bring the standard error of the margin below 0.01. More starts help k-means
little: on 40 draws 0.862 with 24, 0.871 with 100 (which stand in the numbers) and 0.872 with 480, which take about
as long as SNMF does. A thirteenth cluster, which the check does not give it, for the rows with nothing on, makes 0.890.

(b) MLP activations of the last layer but one on a corpus of eleven concepts: both moods and both styles, each on pairs
of stories that differ in it, and the seven topics, each on stories told of every topic in turn; every text shows its
concept against a text that differs in the concept's words alone. (The check names mood and style, which have a gate of
their own; two directions, as first run, let a single feature decide.) Stories of mood and style have three or four
sentences: with two, the mood stands in one word at the end, no later word depends on it, and the model need not
represent it. SNMF takes the 500 steps that are the method's default: after the 120 first run, its error is half as
large again as after 500. For each concept the feature is chosen by the AUROC of its largest coefficient in a text (of
equal ones by the gap in standard deviations) on the texts of the corpus; AUROC and steering are reported on texts that
neither method has seen.

The classifier of a concept is its words: those in which the two sides of a pair differ. Its log-odds at a place are
log p(a word of the positive side) - log p(a word of the negative side), in nats, and count at all places of such words
in the texts of both sides, so that a mere loss of certainty, which moves the sides towards each other, cancels. (The
log-probability of whole texts, measured before, hardly moves: where a mood is given the model is so sure of it that the
words of the other have no probability to lose.) Perplexity is matched: each vector is added at the strength that raises
the loss on unrelated documents by 0.1 nats, found by bisection without regard to the effect. The rival is a TopK
autoencoder of the same number of features on the same rows, which sees as many rows in training as SNMF does; the
control is the mean over eight random directions. The autoencoder is trained from three starts a seed; SNMF, started
from the SVD, has but one. The mean over starts and held-out pairs is one item: the rise of the log-odds of one concept.
The mean difference of the two sides, which knows the labels, is given in the numbers, as are the means over mood and
style alone and over topics alone.

Both methods stand at the setting that steered furthest, by the mean over the eleven concepts, under three development
seeds. Rise in nats over all concepts, and over mood and style alone:

| SNMF | all | mood, style | autoencoder | all | mood, style |
| --- | --- | --- | --- | --- | --- |
| random start, 7 % of the neurons kept | 2.26 | 0.61 | 8 active, rate 1e-3 (two starts, one seed) | 1.22 | 0.39 |
| k-means, 7 % | 2.46 | 0.55 | 4 active, 3e-3 | 1.98 | 0.49 |
| SVD, 7 % | 2.49 | 0.55 | 2 active, 3e-3 | 2.42 | 0.55 |
| SVD, 3.5 % (taken) | 2.58 | 0.45 | 4 active, 1e-2 (taken) | 2.56 | 0.56 |

The first rows were run before; there SNMF led by a nat. On one seed or two each: SNMF that keeps 14 % steers
less than with 7 % (0.96 to 1.69); autoencoders of a rate of 3e-4 or with an auxiliary loss for dead features steer less
than the first of the table, those of 8 active at 3e-3 and of 4 or 2 at 1e-3 more, but less than the one taken, whose
rate is the highest tried.

The rule for features of equal AUROC is as it was when the claim was first run: the check chooses by coefficients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

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
from interneuron.organisms.tinyworld import stories
from interneuron.organisms.tinyworld import words as W
from interneuron.organisms.tinyworld.document import source
from interneuron.organisms.tinyworld.tasks import pad
from interneuron.organisms.tinyworld.world import Truth
from interneuron.organisms.toy.planted_features import recovery
from interneuron.parts.activation_rows import corpus_losses, token_rows
from interneuron.parts.contrast import auc
from interneuron.parts.sparse_training import SparseCoding, train_dictionary

CLAIM = Claim(
    slug="snmf",
    organism="lm",
    paper="steers better than SAEs and difference-in-means on Llama-3.1, Gemma-2 and GPT-2",
    better="higher",
    unit="nats of log-odds",
    minutes=30,
    why=(
        "The planted part holds: 0.99 of the groups found against 0.87 with k-means, a margin of 0.13, 0.12 and "
        "0.12 with a standard error of 0.01, and of 0.12, 0.11 and 0.10 when k-means has 100 starts for SNMF's 24. "
        "In steering, SNMF is level with an autoencoder that is as well trained: 2.34, 2.53 and 2.65 nats against "
        "2.44, 2.45 and 2.38 under the three seeds; further on topics (3.67 against 3.51), less far on mood and "
        "style (0.48 against 0.52), which the check names. An earlier run had SNMF a nat ahead (2.36 against 1.39) "
        "of an autoencoder that took steps a tenth as large and had 8 active features instead of 4: chosen by the "
        "same rule on development seeds, the settings of both gained, and those of the autoencoder more. Under one "
        "seed the feature chosen for a concept on the corpus has an AUROC of 0.72 on new texts; SNMF has one "
        "training a seed, since the SVD it starts from leaves nothing to chance. Against the paper's finding the "
        "difference of means, which knows the labels, steers further than both: 1.6 nats on mood and style, 4.8 on "
        "topics. Without winners-take-all SNMF has 6 starts, not 24, for time. They are level because they find the "
        "same features: for mood and style the images of the chosen features in the residual stream have cosines of "
        "0.90 to 1.00 (one development seed). Neither 256 features (a lead of 0.11 nats over as large an "
        "autoencoder), nor layers 2 to 5, another pooling of the coefficients, the authors' random start with 1 % "
        "of the neurons (1.11 nats after 500 steps), or the choice among the three best features by how far they "
        "steer the fitted texts (SNMF 2.71, an autoencoder with 8 active 2.80) sets them apart on one or two "
        "development seeds, and an autoencoder at the MLP's output, the paper's place, steers about as far."
    ),
)

FEATURES, FRACTION, STEPS = 128, 0.035, 500
PLANTED, STARTS, NO_WINNERS_STARTS, PLANTED_STEPS = 36, 24, 6, 250
MORE_STARTS = 100  # of k-means, for the numbers
SAE_ACTIVE, SAE_BATCH, SAE_RATE = 4, 512, 1e-2
MOODS = {"sentiment": ("positive", "negative"), "style": ("formal", "casual")}
TOPICS = tuple(domain for domain in W.DOMAINS if domain != W.HELD_DOMAIN)
FITTED, HELD, TRAININGS = 48, 24, 3  # pairs of a mood or style, half as many of a topic; starts of the autoencoder
COST, LARGEST, CONTROLS = 0.1, 4096.0, 8

Sides = tuple[list[str], list[str]]


@dataclass(frozen=True)
class Concept:
    """Texts that show a concept and, one by one, texts that differ from them in its words: fitted on, and held out."""

    fitted: Sides
    held: Sides


@dataclass(frozen=True)
class Slots:
    """Where the words of a concept stand in the texts of both sides, and which words they are.

    tokens  [2 N T] ids, padded        at  [2 N T] true where the next token is such a word
    words   ids of the positive side's words and of the negative side's
    """

    tokens: Tensor
    at: Tensor
    words: tuple[list[int], list[int]]


def claim(seed: int) -> Comparison:
    """Planted groups, then eleven concepts."""
    planted = _planted(seed)
    rivals = max(planted["svd"], planted["kmeans"], planted["no winners"])
    model = load(CLAIM.organism)
    site = f"layers.{model.n_layers - 2}.mlp.hidden"
    concepts = _concepts(seed)
    rises, aurocs, losses = _steered(model, site, concepts, seed)
    arms = {arm: [sum(row) / len(row) for row in found.values()] for arm, found in rises.items()}
    separated = {arm: [sum(row) / len(row) for row in found.values()] for arm, found in aurocs.items()}
    found: dict[str, float] = {"layer": model.n_layers - 2}
    for arm, row in arms.items():
        found |= {f"rise {arm}, {name}": value for name, value in zip(concepts, row, strict=True)}
        found[f"rise {arm}, mood and style"] = sum(row[: 2 * len(MOODS)]) / (2 * len(MOODS))
        found[f"rise {arm}, topics"] = sum(row[2 * len(MOODS) :]) / len(TOPICS)
    found |= {f"lowest AUROC {arm}": min(row) for arm, row in separated.items()}
    found |= {f"loss on new texts {arm}": sum(row) / len(row) for arm, row in losses.items()}
    return Comparison(
        ours=arms["SNMF"],
        baseline=arms["SAE"],
        control=arms["random"],
        gates={
            "planted: matched |cosine| of at least 0.95": planted["snmf"] >= 0.95,
            "planted: at least 0.1 above SVD, k-means and no winners-take-all": planted["snmf"] >= rivals + 0.1,
            "a feature separates each concept with AUROC of at least 0.85": min(separated["SNMF"]) >= 0.85,
            "on mood and style alone it steers at least as far as the autoencoder": found["rise SNMF, mood and style"]
            >= found["rise SAE, mood and style"],
        },
        extra={**{f"planted, {name}": value for name, value in planted.items()}, **found},
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


def _concepts(seed: int) -> dict[str, Concept]:
    """Moods and styles, then topics; each text of the corpus is on the first side of exactly one concept."""
    told: dict[str, list[str]] = {}
    against: dict[str, list[str]] = {}
    for latent, (one, other) in MOODS.items():
        told[one], told[other] = [], []
        for i in range(FITTED + HELD):
            drawn = {**stories.draw(source(700_000 + seed, i), Truth()), "tone": "clean"}
            for value in (one, other):
                told[value].append(stories.story({**drawn, latent: value}, 3 + i % 2).text)
        against[one], against[other] = told[other], told[one]
    n = (FITTED + HELD) // 2
    for domain in TOPICS:
        told[domain] = [stories.topic(source(800_000 + seed, i), Truth(), domain=domain).text for i in range(n)]
    for k, domain in enumerate(TOPICS):
        others = [TOPICS[(k + 1 + i % (len(TOPICS) - 1)) % len(TOPICS)] for i in range(n)]
        against[domain] = [told[other][i] for i, other in enumerate(others)]
    found = {}
    for name, texts in told.items():
        cut = FITTED // 2 if name in TOPICS else FITTED
        found[name] = Concept((texts[:cut], against[name][:cut]), (texts[cut:], against[name][cut:]))
    return found


def _steered(
    model: Model, site: str, concepts: dict[str, Concept], seed: int
) -> tuple[dict[str, dict[str, list[float]]], dict[str, dict[str, list[float]]], dict[str, list[float]]]:
    """Rise of the log-odds by arm and concept, one number a start; the AUROCs likewise; the losses on new documents."""
    x = token_rows(model, [text for concept in concepts.values() for text in concept.fitted[0]], site, 1)
    matched, new = (_documents(first + seed) for first in (20_000, 30_000))
    unedited, clean = (float(corpus_losses(model, texts).mean()) for texts in (matched, new))
    read = _reader(model, site, concepts)
    slots = {name: _slots(*concept.held) for name, concept in concepts.items()}
    base = {name: _log_odds(model, these) for name, these in slots.items()}
    arms = ("SNMF", "SAE", "random", "mean difference")
    rises: dict[str, dict[str, list[float]]] = {arm: {name: [] for name in concepts} for arm in arms}
    aurocs: dict[str, dict[str, list[float]]] = {arm: {name: [] for name in concepts} for arm in ("SNMF", "SAE")}
    losses: dict[str, list[float]] = {"SNMF": [], "SAE": []}

    def priced(vector: Tensor) -> Edit:
        return _matched(model, site, vector, matched, unedited + COST)

    def rise(name: str, edit: Edit) -> float:
        return float((_log_odds(model, slots[name], edit) - base[name]).mean())

    for arm, codec, vectors in _trained(x, site, seed):
        largest = read(codec)
        for name, concept in concepts.items():
            best, auroc = _best(largest, concept)
            edit = priced(vectors[best])
            aurocs[arm][name].append(auroc)
            rises[arm][name].append(rise(name, edit))
            losses[arm].append(float(corpus_losses(model, new, edit).mean()) - clean)
    rng = generator(seed)
    noise = [priced(torch.randn(x.shape[1], generator=rng)) for _ in range(CONTROLS)]
    for name, concept in concepts.items():
        means = priced(_mean_difference(model, site, *concept.fitted))
        rises["mean difference"][name].append(rise(name, means))
        rises["random"][name].extend(rise(name, edit) for edit in noise)
    return rises, aurocs, losses


def _trained(x: Tensor, site: str, seed: int) -> Iterator[tuple[str, NeuronGroups | Dictionary, Tensor]]:
    """SNMF, and autoencoders of as many features that see as many rows, each with its vectors."""
    groups = SNMF(FEATURES, fraction=FRACTION, init="svd", steps=STEPS, seed=seed).fit_activations(x)
    yield "SNMF", groups, groups.features
    coding = SparseCoding(
        FEATURES, k=SAE_ACTIVE, lr=SAE_RATE, batch_size=SAE_BATCH, steps=STEPS * len(x) // SAE_BATCH, dead_after=20_000
    )
    for start in range(TRAININGS):
        sae = train_dictionary(x, replace(coding, seed=seed + 1000 * start), site=site)
        yield "SAE", sae, sae.decoder


def _documents(seed: int) -> list[str]:
    return sorted((doc.text for doc in tw.corpus(1500, seed=seed)), key=len)


def _reader(
    model: Model, site: str, concepts: dict[str, Concept]
) -> Callable[[NeuronGroups | Dictionary], dict[str, Tensor]]:
    """A function from a codec to the largest coefficients of each text, [F]."""
    texts = list(dict.fromkeys(t for c in concepts.values() for sides in (c.fitted, c.held) for t in sides[0]))
    rows = token_rows(model, texts, site, 1)
    lengths = [len(tw.encode(text)) - 1 for text in texts]

    def read(codec: NeuronGroups | Dictionary) -> dict[str, Tensor]:
        parts = codec.encode(rows).split(lengths)
        return {text: part.amax(0) for text, part in zip(texts, parts, strict=True)}

    return read


def _planted(seed: int) -> dict[str, float]:
    """Mean matched |cosine| over draws of planted groups, the extreme draws, and how certain the margin is."""
    draws = [_planted_draw(1000 * seed + i) for i in range(PLANTED)]
    found = {name: sum(draw[name] for draw in draws) / len(draws) for name in draws[0]}
    margins = torch.tensor([draw["snmf"] - draw["kmeans"] for draw in draws])
    found["margin over kmeans, standard error"] = float(margins.std()) / len(draws) ** 0.5
    found["snmf, worst draw"] = min(draw["snmf"] for draw in draws)
    found["kmeans, best draw"] = max(draw["kmeans"] for draw in draws)
    return found


def _planted_draw(seed: int) -> dict[str, float]:
    """Matched |cosine| of four methods on planted groups, and of k-means with more starts than SNMF has."""
    rng = generator(seed)
    truth = torch.zeros(12, 200)
    for row in truth:
        row[torch.randperm(200, generator=rng)[:6]] = torch.randn(6, generator=rng)
    on = torch.rand(2000, 12, generator=rng) < 0.12
    size = -torch.rand(2, 2000, 12, generator=rng).clamp_min(1e-9).log().sum(0) / 2  # gamma of shape 2
    x = (on * size) @ truth + 0.05 * torch.randn(2000, 200, generator=rng)
    options = {"steps": PLANTED_STEPS, "seed": seed}
    learned = {
        "snmf": SNMF(12, fraction=0.03, starts=STARTS, **options).fit_activations(x).features,
        "no winners": SNMF(12, fraction=1.0, starts=NO_WINNERS_STARTS, **options).fit_activations(x).features,
        "svd": torch.linalg.svd(x, full_matrices=False)[2][:12],
        "kmeans": _centres(x, STARTS, seed),
        f"kmeans of {MORE_STARTS} starts": _centres(x, MORE_STARTS, seed),
    }
    return {name: float(recovery(rows, truth).mean()) for name, rows in learned.items()}


def _centres(x: Tensor, starts: int, seed: int) -> Tensor:
    """The means of twelve clusters of rows, the best of several starts."""
    from sklearn.cluster import KMeans

    return torch.from_numpy(KMeans(12, n_init=starts, random_state=seed).fit(x.tolist()).cluster_centers_).float()


def _best(largest: dict[str, Tensor], concept: Concept) -> tuple[int, float]:
    """The feature whose largest coefficient tells the concept's texts best, and its AUROC on the held-out texts."""
    a, b = (torch.stack([largest[text] for text in side]) for side in concept.fitted)
    gaps = (a.mean(0) - b.mean(0)) / (a.std(0) + b.std(0) + 1e-9)
    scores = [(auc(a[:, i], b[:, i]), float(gaps[i])) for i in range(a.shape[1])]
    best = max(range(len(scores)), key=scores.__getitem__)
    a, b = (torch.stack([largest[text] for text in side]) for side in concept.held)
    return best, auc(a[:, best], b[:, best])


def _mean_difference(model: Model, site: str, positive: list[str], negative: list[str]) -> Tensor:
    return token_rows(model, positive, site, 1).mean(0) - token_rows(model, negative, site, 1).mean(0)


def _slots(positive: list[str], negative: list[str]) -> Slots:
    """The words in which the sides differ, and the places before them."""
    ids = [[tw.encode(text) for text in side] for side in (positive, negative)]
    differ = [[a != b for a, b in zip(*pair, strict=True)] for pair in zip(*ids, strict=True)]
    words = [
        sorted(
            {
                word
                for row, marks in zip(side, differ, strict=True)
                for word, mark in zip(row, marks, strict=True)
                if mark
            }
        )
        for side in ids
    ]
    tokens = pad([*ids[0], *ids[1]]).unflatten(0, (2, -1))
    return Slots(tokens, pad([[*marks[1:], 0] for marks in differ]).bool().expand(2, -1, -1), (words[0], words[1]))


@torch.no_grad()
def _log_odds(model: Model, slots: Slots, edit: Edit | None = None) -> Tensor:
    """The classifier's log-odds of the positive side, mean over the places and the two texts of each pair: [N]."""
    with model.edit(*([] if edit is None else [edit])):
        logits = model(slots.tokens.flatten(0, 1)).logits.float().unflatten(0, (2, -1))
    positive, negative = (logits[..., words].logsumexp(-1) for words in slots.words)
    return (((positive - negative) * slots.at).sum(2) / slots.at.sum(2)).mean(0)


def _matched(model: Model, site: str, vector: Tensor, texts: list[str], most: float) -> Edit:
    """The vector at the strength that raises the loss on these texts to `most`, to 5 % of the strength."""
    unit, low, high = vector / vector.norm(), 0.0, 8.0

    def affordable(alpha: float) -> bool:
        return float(corpus_losses(model, texts, Add(site, unit, alpha=alpha)).mean()) <= most

    while high < LARGEST and affordable(high):
        low, high = high, 2 * high
    while high - low > 0.05 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if affordable(middle) else (low, middle)
    return Add(site, unit, alpha=low)

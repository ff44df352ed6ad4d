"""SNMF on planted groups of neurons and on `lm`: are its features the groups, and do they steer better than an SAE's?

(a) Twelve features of 6 of 200 neurons, gamma coefficients on in 12 % of the rows: matched |cosine| of SNMF against the
SVD, k-means and SNMF without winners-take-all, each the mean over 36 planted draws a seed. All but the SVD have local
optima: SNMF and k-means are started 24 times, SNMF without winners, which finds much the same from every start, 6
times, and the factors of the lowest error are kept. What k-means finds depends on the draw (standard deviation 0.06),
and its mean over 120 development draws, 0.866, lies 0.03 below what the margin asks: over six draws, as first run, it
is missed under about one seed in nine; 36 bring the standard error of the margin below 0.01. More starts help k-means
little: on 40 draws 0.862 with 24, 0.871 with 100 (which stand in the numbers) and 0.872 with 480, which take about
as long as SNMF does. A thirteenth cluster, which the check does not give it, for the rows with nothing on, makes 0.890.

(b) MLP activations of the last layer but one on small corpora of eleven concepts: both moods and both styles, each on
pairs of stories that differ in it, and the seven topics, each on stories told of every topic in turn; every text shows
its concept against a text that differs in the concept's words alone. (The check names mood and style, which have a gate
of their own; two directions, as first run, let a single feature decide.) Stories of mood and style have three or four
sentences: with two, the mood stands in one word at the end, no later word depends on it, and the model need not
represent it.

A corpus has the size of the authors': ten texts a concept of 26 to 32 words (theirs: 20 concepts, ten sentences each
of 28 words on average), 110 texts and about 3,200 tokens in all, and 100 features, the default of their training (they
start at random, keep 1 % of the neurons and stop after 1500 steps without gain). Their shell scripts take 50: with 50,
on one development corpus, neither method has a feature for each concept (lowest AUROC 0.83 and 0.80 at best) and both
steer two nats. Earlier runs had three times as many texts and 128 features. Each seed draws four corpora, and a number
is the mean over them: SNMF, the autoencoder and the mean difference are fitted to each anew. For each concept the
feature is chosen by the AUROC of its largest coefficient in a text (of equal ones by the gap in standard deviations, as
when first run) on the ten texts and their ten counterparts; AUROC and steering are reported on 48 new pairs a concept,
the same for all corpora and methods.

The classifier of a concept is its words: those in which the two sides of a pair differ. Its log-odds at a place are
log p(a word of the positive side) - log p(a word of the negative side), in nats, and count at all places of such words
in the texts of both sides, so that a mere loss of certainty, which moves the sides towards each other, cancels. (The
log-probability of whole texts, measured before, hardly moves: where a mood is given the model is so sure of it that the
words of the other have no probability to lose.) Perplexity is matched: each vector is added
at the strength that raises the loss on unrelated documents by 0.1 nats, found without regard to the effect. The rival
is a TopK autoencoder of as many features on the same rows; the control is the mean over eight random directions. The
mean over corpora and held-out pairs is one item: the rise of the log-odds of one concept. The mean difference of the
two sides, which knows the labels, is given in the numbers, as are the means over mood and style and over topics alone.

Both methods stand at the setting that steered furthest, by the mean over the eleven concepts, on four development
corpora (two each of two seeds). For each method twelve settings were tried on the first corpus and the best six on the
others, then neighbours of the best: SNMF from three starts (random, k-means, SVD) with 1, 3.5, 7 or 14 % of the neurons
kept, autoencoders with 2, 4 or 8 active at rates of 3e-3, 1e-2, 3e-2 and 1e-1, all with 500 passes over the rows. Rise
in nats over all concepts, and over mood and style alone (a star: without the first corpus; those taken then have 2.73):

| SNMF | all | mood, style | autoencoder | all | mood, style |
| --- | --- | --- | --- | --- | --- |
| SVD, 3.5 % (taken) | 2.74 | 0.49 | 4 active, 3e-2 (taken) | 2.74 | 0.54 |
| SVD, 2.5 % * | 2.69 | 0.52 | 4 active, 2e-2 * | 2.60 | 0.54 |
| SVD, 5 % * | 2.66 | 0.37 | 4 active, 5e-2 * | 2.57 | 0.54 |
| SVD, 7 % | 2.66 | 0.44 | 8 active, 3e-2 | 2.72 | 0.54 |
| k-means, 3.5 % | 2.64 | 0.53 | 4 active, 1e-2 | 2.31 | 0.50 |
| random, 3.5 % (three corpora) | 2.41 | 0.51 | 2 active, 3e-2 (three corpora) | 2.31 | 0.54 |

On the first corpus the rate decides about the autoencoder of 4 active features: 1.05 nats at 1e-3, 1.51 at 3e-3, 2.08
at 1e-2, 2.78 at 3e-2, 1.18 at 1e-1; and the authors' random start with 1 % of the neurons kept has 2.17. More training
changes little (on one corpus): four times the passes 2.46 in place of 2.53, SNMF until it gains no more, 970 steps,
2.81 in place of 2.80. No stop on held-out rows is needed: the autoencoder's error on new texts does not rise again.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

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
        "With as little text as the authors have, SNMF and an autoencoder that is as well tuned are level: 2.67, 2.61 "
        "and 2.79 nats against 2.82, 2.55 and 2.59 under the three seeds, on mood and style 0.59, 0.55 and 0.54 "
        "against 0.60, 0.55 and 0.53, which is behind by 0.006 and 0.001 and ahead by 0.015. So it was with three "
        "times as many texts (seeds 9 to 11). All else holds: a feature for each concept, with a lowest AUROC of 0.97 "
        "(0.89 in a single corpus), and the planted groups. How the rival is trained decides: a run on seeds 12 to "
        "14, by mistake at a third of the rate chosen for it (1e-2), had SNMF ahead by 0.36 nats and every gate met, "
        "and does not count. Against the paper's finding the difference of means, which knows the labels, steers "
        "further than both: 1.7 nats on mood and style, 4.9 on topics."
    ),
)

FEATURES, INIT, FRACTION, STEPS = 100, "svd", 0.035, 500
PLANTED, STARTS, NO_WINNERS_STARTS, PLANTED_STEPS = 36, 24, 6, 250
MORE_STARTS = 100  # of k-means, for the numbers
SAE_ACTIVE, SAE_BATCH, SAE_RATE, SAE_PASSES = 4, 512, 3e-2, 500
MOODS = {"sentiment": ("positive", "negative"), "style": ("formal", "casual")}
TOPICS = tuple(domain for domain in W.DOMAINS if domain != W.HELD_DOMAIN)
CORPORA, FITTED, HELD = 4, 10, 48  # draws of the corpus, its texts a concept, new pairs a concept
COST, CLOSE, LARGEST, TRIES, CONTROLS = 0.1, 0.03, 4096.0, 16, 8

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
    """Planted groups, then eleven concepts in several small corpora."""
    planted = _planted(seed)
    rivals = max(planted["svd"], planted["kmeans"], planted["no winners"])
    model = load(CLAIM.organism)
    site = f"layers.{model.n_layers - 2}.mlp.hidden"
    rises, aurocs, facts = _steered(model, site, seed)
    concepts = list(rises["SNMF"])
    arms = {arm: [sum(row) / len(row) for row in found.values()] for arm, found in rises.items()}
    separated = {arm: [sum(row) / len(row) for row in found.values()] for arm, found in aurocs.items()}
    found: dict[str, float] = {"layer": model.n_layers - 2, **{name: sum(x) / len(x) for name, x in facts.items()}}
    for arm, row in arms.items():
        found |= {f"rise {arm}, {name}": value for name, value in zip(concepts, row, strict=True)}
        found[f"rise {arm}, mood and style"] = sum(row[: 2 * len(MOODS)]) / (2 * len(MOODS))
        found[f"rise {arm}, topics"] = sum(row[2 * len(MOODS) :]) / len(TOPICS)
    for arm, row in separated.items():
        found[f"lowest AUROC {arm}"] = min(row)
        found[f"lowest AUROC {arm}, one corpus"] = min(map(min, aurocs[arm].values()))
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


def _concepts(seed: int, corpus: int) -> dict[str, Concept]:
    """Moods and styles, then topics; each text of a corpus is on the first side of exactly one concept.

    The held-out texts are the same for all corpora of a seed, and in none of them.
    """
    told: dict[str, list[str]] = {}
    against: dict[str, list[str]] = {}
    drawn = [*range(HELD), *range(HELD + FITTED * corpus, HELD + FITTED * (corpus + 1))]
    for latent, (one, other) in MOODS.items():
        told[one], told[other] = [], []
        for i in drawn:
            story = {**stories.draw(source(700_000 + seed, i), Truth()), "tone": "clean"}
            for value in (one, other):
                told[value].append(stories.story({**story, latent: value}, 3 + i % 2).text)
        against[one], against[other] = told[other], told[one]
    for domain in TOPICS:
        told[domain] = [stories.topic(source(800_000 + seed, i), Truth(), domain=domain).text for i in drawn]
    for k, domain in enumerate(TOPICS):
        others = [TOPICS[(k + 1 + i % (len(TOPICS) - 1)) % len(TOPICS)] for i in range(len(drawn))]
        against[domain] = [told[other][i] for i, other in enumerate(others)]
    return {
        name: Concept((texts[HELD:], against[name][HELD:]), (texts[:HELD], against[name][:HELD]))
        for name, texts in told.items()
    }


def _steered(
    model: Model, site: str, seed: int
) -> tuple[dict[str, dict[str, list[float]]], dict[str, dict[str, list[float]]], dict[str, list[float]]]:
    """Rise of the log-odds by arm and concept, one number a corpus; the AUROCs likewise; facts of each fit."""
    matched, new = (_documents(first + seed) for first in (20_000, 30_000))
    unedited, clean = (float(corpus_losses(model, texts).mean()) for texts in (matched, new))
    slots = {name: _slots(*concept.held) for name, concept in _concepts(seed, 0).items()}
    base = {name: _log_odds(model, these) for name, these in slots.items()}
    rises: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    aurocs: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    facts: dict[str, list[float]] = defaultdict(list)

    def priced(vector: Tensor) -> Edit:
        return _matched(model, site, vector, matched, unedited)

    def rise(name: str, edit: Edit) -> float:
        return float((_log_odds(model, slots[name], edit) - base[name]).mean())

    for corpus in range(CORPORA):
        concepts = _concepts(seed, corpus)
        x = token_rows(model, [text for concept in concepts.values() for text in concept.fitted[0]], site, 1)
        facts["tokens of a corpus"].append(len(x))
        read = _reader(model, site, concepts)
        for arm, codec, vectors in _trained(x, site, seed + 1000 * corpus):
            largest, error = read(codec)
            facts[f"error on new texts {arm}"].append(error)
            edits: dict[int, Edit] = {}  # one feature may be the best of two concepts
            for name, concept in concepts.items():
                best, auroc = _best(largest, concept)
                if best not in edits:
                    edits[best] = priced(vectors[best])
                aurocs[arm][name].append(auroc)
                rises[arm][name].append(rise(name, edits[best]))
            facts[f"loss on new texts {arm}"] += [
                float(corpus_losses(model, new, edit).mean()) - clean for edit in edits.values()
            ]
        for name, concept in concepts.items():
            rises["mean difference"][name].append(rise(name, priced(_mean_difference(model, site, *concept.fitted))))
    rng, width = generator(seed), token_rows(model, new[:1], site).shape[1]
    for _ in range(CONTROLS):
        edit = priced(torch.randn(width, generator=rng))
        for name in slots:
            rises["random"][name].append(rise(name, edit))
    return rises, aurocs, facts


def _trained(x: Tensor, site: str, seed: int) -> Iterator[tuple[str, NeuronGroups | Dictionary, Tensor]]:
    """SNMF and an autoencoder of as many features on the same rows, each with its vectors."""
    groups = SNMF(FEATURES, fraction=FRACTION, init=INIT, steps=STEPS, seed=seed).fit_activations(x)
    yield "SNMF", groups, groups.features
    steps = SAE_PASSES * len(x) // SAE_BATCH
    coding = SparseCoding(
        FEATURES, k=SAE_ACTIVE, lr=SAE_RATE, batch_size=SAE_BATCH, steps=steps, seed=seed, dead_after=20_000
    )
    sae = train_dictionary(x, coding, site=site)
    yield "SAE", sae, sae.decoder


def _documents(seed: int) -> list[str]:
    return sorted((doc.text for doc in tw.corpus(1500, seed=seed)), key=len)


def _reader(
    model: Model, site: str, concepts: dict[str, Concept]
) -> Callable[[NeuronGroups | Dictionary], tuple[dict[str, Tensor], float]]:
    """A function from a codec to the largest coefficients of each text, [F], and the error on the held-out texts."""
    fitted, held = (
        list(dict.fromkeys(text for concept in concepts.values() for text in getattr(concept, part)[0]))
        for part in ("fitted", "held")
    )
    texts = list(dict.fromkeys([*held, *fitted]))
    rows = token_rows(model, texts, site, 1)
    lengths = [len(tw.encode(text)) - 1 for text in texts]
    new = rows[: sum(lengths[: len(held)])]
    spread = float((new - new.mean(0)).square().sum())

    def read(codec: NeuronGroups | Dictionary) -> tuple[dict[str, Tensor], float]:
        codes = codec.encode(rows)
        parts = codes.split(lengths)
        error = float((codec.decode(codes[: len(new)]) - new).square().sum()) / spread
        return {text: part.amax(0) for text, part in zip(texts, parts, strict=True)}, error

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


def _matched(model: Model, site: str, vector: Tensor, texts: list[str], clean: float) -> Edit:
    """The vector at the strength that raises the loss on these texts by the cost, to 3 % of the cost.

    The loss grows about as a power of the strength: each guess is where the power of the last two tries meets the cost,
    kept inside the bracket.
    """
    unit, alpha, low, high, power = vector / vector.norm(), 32.0, 0.0, 2 * LARGEST, 3.0
    last: tuple[float, float] | None = None
    for _ in range(TRIES):
        paid = float(corpus_losses(model, texts, Add(site, unit, alpha=alpha)).mean()) - clean
        if abs(paid - COST) <= CLOSE * COST or low >= LARGEST:
            break
        low, high = (alpha, high) if paid < COST else (low, alpha)
        size = max(paid, COST / 1000)
        if last is not None and last[1] != size:
            power = min(6.0, max(1.0, math.log(size / last[1]) / math.log(alpha / last[0])))
        last = alpha, size
        guess = alpha * min(4.0, max(0.25, (COST / size) ** (1 / power)))
        alpha = guess if low < guess < high else (low + high) / 2
    return Add(site, unit, alpha=alpha)

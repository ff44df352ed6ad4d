"""Attention-output SAEs on `lm`: sparse, faithful, and the features of "this word is next by induction" carry it.

The layer is the one that carries induction: the largest rise of the loss on second copies of random lists when its head
outputs are zeroed, among layers that leave the first copy alone. Numbers compared are the share of the loss recovered
when reconstructions are spliced in, per held-out text group.

The control is the random-decoder SAE of the check: a dictionary trained alike, on the same rows in as many steps at the
same rate, whose decoder stays at rows of random direction while the encoder, its bias and the lengths of the rows are
learned. In earlier runs it was random rows behind the encoder trained for other rows, which does worse than zeros and
is among the numbers. There too are rivals that are no autoencoders: codes fitted at the time of use, by orthogonal
matching pursuit with none negative, to random directions, to rows drawn from a normal distribution with the covariance
of the activations (and with codes of either sign, which the dictionary may not have), to activations of the texts
trained on as rows and to the trained rows; and as many principal components. All have K numbers a token. One official
run (seeds 9 to 11) took the strongest of these rivals for the control, against the check; see `why`.

Sparsity is the paper's: 20 features of 768 in GPT-2 small, so k = 4 of 160 here (TopK codes, whose sparsity is set
beforehand). The dictionary is trained on 100,000 tokens instead of 500,000, to keep the claim within minutes, and on
the model's own "copy" mixture, three fifths of which are repeated lists: of its ordinary text that many tokens hold a
given word of 828 about four times as next by induction, too seldom for a feature of its own, and these hold it some
forty times. The loss recovered and the loss on other text are measured on the ordinary mixture.

Induction features are the paper's: "'board' is next by induction", one word each, since what an induction head writes
is the word it copies. Random lists are drawn from 30 random words, twice in a row, so that each word comes back often.
For each word, the feature (and the neuron of z, with either sign) is the best on half of the lists at telling the
places where the word is next by induction from all other places in both copies; the AUROC is reported on the other
half. The advantage is the loss at a word's place in the first copy less that in the second, without and with the five
features of that word ablated; in the numbers also with five features of another word ablated, and what one feature
common to the second copies of all words, as the check may also be read, would give. The five are chosen on other lists
than those reported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from interneuron.artifacts import Dictionary
from interneuron.claims import Claim, Comparison
from interneuron.core.seeds import generator
from interneuron.decompose.attn_sae import AttentionSAE, ablate_features, direct_feature_attribution
from interneuron.loading import load
from interneuron.model.model import Model
from interneuron.organisms import tinyworld as tw
from interneuron.organisms.tinyworld import lookup, packing
from interneuron.organisms.tinyworld.document import source
from interneuron.organisms.tinyworld.words import content_words
from interneuron.organisms.tinyworld.world import Truth
from interneuron.parts.activation_rows import corpus_losses, recovered, splice, token_losses, token_rows

CLAIM = Claim(
    slug="attn_sae",
    organism="lm",
    paper="sparse interpretable features up to 2B parameters; 80-90 % of the loss recovered; induction features found",
    better="higher",
    unit="loss recovered",
    minutes=6,
    why=(
        "To be read with it: the loss recovered says little of what was learned. The dictionary recovers 0.90 to "
        "0.92 of it and the random decoder with an encoder of its own 0.57 to 0.58; but codes fitted at the time of "
        "use, four and none negative, recover 0.90 to 0.91 on random rows drawn with the covariance of the "
        "activations, 0.91 to 0.93 with either sign, 0.88 to 0.93 on remembered activations, 0.63 on random "
        "directions and 0.95 to 0.96 on the trained rows. A run (seeds 9 to 11) with the best of such rivals for a "
        "control was no gain (0.90, 0.90, 0.89 against 0.88, 0.89, 0.90); all other criteria held in it too. What "
        "the check asks for is an autoencoder with a random decoder. Four principal components recover 0.15 to "
        "0.18. Induction features are those of one word each, as the paper shows them. No feature is common to the "
        "second copies of all words (AUROC 0.62 to 0.67, and five such features carry 0 to 6 % of the advantage), "
        "single neurons of z come near the features (0.98 against 0.99 to 1.00), and the dictionary has seen many "
        "repeated lists. For second copies of any word a single neuron has 0.94 to 0.98."
    ),
)

TOKENS, HELD, LENGTH, LISTS = 1e5, 1.2e4, 20, 48
STEPS, BATCH, LR, K = 5000, 512, 2e-3, 4
WORDS, TOP = 30, 5
FROZEN, COVARIANCE = "random decoder, encoder trained", "random rows of the covariance, codes fitted"


@dataclass(frozen=True)
class Lists:
    """Lists twice in a row, their head outputs, and for each word the places before it in either copy.

    tokens [N T]    z [N T D]    first, second  [W N T]    inside [N T]  places whose next token is in the list
    """

    tokens: Tensor
    z: Tensor
    first: Tensor
    second: Tensor
    inside: Tensor


def claim(seed: int) -> Comparison:
    """Train at the induction layer, then splice, trace, detect and ablate."""
    model = load(CLAIM.organism)
    texts, held = _texts(TOKENS, seed, "copy"), _texts(HELD, 10_000 + seed)
    layer = _induction_layer(model, _any_lists(LISTS, seed))
    site = f"layers.{layer}.attn.z"
    found = AttentionSAE(k=K, steps=STEPS, batch_size=BATCH, lr=LR, seed=seed).fit(model, texts, layer)
    groups = [held[i::4] for i in range(4)]
    arms = {name: [recovered(model, part, site, code, 1)["recovered"] for part in groups]
            for name, code in _codes(found, token_rows(model, texts, site, 1), seed).items()}  # fmt: skip
    mean = {name: sum(values) / 4 for name, values in arms.items()}
    l0 = found.quality(token_rows(model, held, site, 1))["l0"]
    words = _words(seed)
    chosen, shown = (_lists(model, site, words, LISTS // 2, 2 * seed + i) for i in range(2))
    top, feature, neuron = _detectors(found, chosen, shown)
    cut = _cuts(model, found, top, shown, held[::8])
    gap = max(_attribution_gap(model, found, top[i][0], shown.tokens[i]) for i in range(3))
    return Comparison(
        ours=arms["ours"],
        control=arms[FROZEN],
        gates={
            "loss recovered is at least 0.85": mean["ours"] >= 0.85,
            "L0 is at most 15 % of the width": l0 <= 0.15 * found.d_in,
            "loss recovered is at least 0.3 above that of a random decoder": mean["ours"] >= mean[FROZEN] + 0.3,
            "attributions over sources sum to the feature's input within 1e-4": gap <= 1e-4,
            "a feature detects that its word is next by induction with AUROC of at least 0.9": feature >= 0.9,
            "the best single neuron of z detects it less well": neuron < feature,
            "ablating a word's 5 induction features cuts its advantage on second copies by half": cut["cut"] >= 0.5,
            "and changes the loss on other text by 10 % at most": cut["other text, largest change"] <= 0.1,
        },
        extra={
            "layer": layer, "L0": l0, "AUROC feature": feature, "AUROC neuron": neuron, **cut,
            **_common(model, found, chosen, shown), "attribution gap": gap,
            **{f"recovered, {name}": value for name, value in mean.items()},
        },
    )  # fmt: skip


def example(model: Model) -> Dictionary:
    """A small dictionary of layer 1 on a few documents."""
    texts = ["ruby has a lamp .", "mia looked happy ."] if model.tokenizer is None else _texts(1500, 1)
    return AttentionSAE(expansion=2, k=8, steps=30, batch_size=256).fit(model, texts, layer=1)


def tensors(n: int, width: int, seed: int) -> dict[str, Tensor]:
    """Rows that lie near a few directions."""
    rng = generator(seed)
    return {"x": torch.randn(n, width, generator=rng)}


def apply(x: Tensor) -> Dictionary:
    """Train on rows that have been read already."""
    return AttentionSAE(expansion=2, k=2, steps=10, batch_size=8).fit_activations(x)


def _texts(tokens: float, seed: int, mixture: str = "lm") -> list[str]:
    return sorted((doc.text for doc in tw.corpus(tokens, seed=seed, mixture=mixture)), key=len)


def _any_lists(n: int, seed: int) -> Tensor:
    """Lists of LENGTH random words, twice in a row, behind <bos>."""
    documents = [lookup.repeat(source(900_000 + seed, i), Truth(), k=LENGTH, times=2) for i in range(n)]
    return torch.tensor([packing.encode(doc)[:-1] for doc in documents])


def _words(seed: int) -> list[str]:
    return source(910_000 + seed, 0).sample(content_words(), WORDS)


def _lists(model: Model, site: str, words: list[str], n: int, seed: int) -> Lists:
    """Lists of LENGTH of the words, in random order."""
    drawn = [source(920_000 + seed, i).sample(words, LENGTH) for i in range(n)]
    tokens = torch.tensor([tw.encode(" ".join([*row, *row])) for row in drawn])
    wanted = torch.tensor([tw.encode(word)[1] for word in words])
    before = torch.zeros(len(words), *tokens.shape, dtype=torch.bool)
    before[..., :-1] = tokens[:, 1:] == wanted[:, None, None]
    late = torch.arange(tokens.shape[1]) >= LENGTH
    with torch.no_grad():
        z = model.run(tokens, read=[site]).acts[site].flatten(2)
    return Lists(tokens, z, before & ~late, before & late, before.any(0))


@torch.no_grad()
def _losses(model: Model, tokens: Tensor, edit: object = None) -> Tensor:
    """The loss of the next token at each place, 0 at the last: [N T]."""
    with model.edit(*([] if edit is None else [edit])):
        losses = token_losses(model(tokens), tokens, torch.ones_like(tokens, dtype=torch.bool))
    return torch.cat([losses, torch.zeros(len(losses), 1)], 1)


def _copies(model: Model, lists: Tensor, edit: object = None) -> tuple[float, float]:
    """Loss on the first copy and on the second, from the second word of each on."""
    losses = _losses(model, lists, edit)
    return float(losses[:, 1:LENGTH].mean()), float(losses[:, LENGTH + 1 : -1].mean())


def _induction_layer(model: Model, lists: Tensor) -> int:
    base = _copies(model, lists)
    rises = []
    for layer in range(model.n_layers):
        first, second = _copies(model, lists, splice(model, f"layers.{layer}.attn.z", torch.zeros_like, 1))
        rises.append(second - base[1] if first - base[0] < 0.5 else -1.0)
    return max(range(model.n_layers), key=rises.__getitem__)


def _codes(found: Dictionary, x: Tensor, seed: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """Reconstructions by the dictionary, by the control and by rivals fitted to the rows x, all with K numbers."""
    rng, some = generator(seed), x[::4]
    noise, mean = torch.randn(found.decoder.shape, generator=rng), some.mean(0)
    spread, components = torch.linalg.svd(some - mean, full_matrices=False)[1:]
    remembered = some[torch.randperm(len(some), generator=rng)[: len(noise)]] - mean
    rows = {"random directions, codes fitted": noise, COVARIANCE: noise * spread @ components,
            "activations as rows": remembered, "trained rows, codes fitted": found.decoder}  # fmt: skip
    first = components[:K]
    return {
        "ours": found.reconstruct,
        FROZEN: _frozen(F.normalize(noise, dim=1), x, seed),
        **{name: _pursuing(F.normalize(values, dim=1), mean) for name, values in rows.items()},
        f"{COVARIANCE}, either sign": _pursuing(F.normalize(rows[COVARIANCE], dim=1), mean, signed=True),
        "principal components": lambda z: mean + (z - mean) @ first.T @ first,
        "random decoder, other encoder": found.replace(decoder=F.normalize(noise, dim=1)).reconstruct,
    }


def _frozen(rows: Tensor, x: Tensor, seed: int) -> Callable[[Tensor], Tensor]:
    """A TopK autoencoder of x whose decoder rows keep their directions: encoder, biases and lengths are learned."""
    mean, size = x.mean(0), (x - x.mean(0)).square().sum(1).mean().sqrt()
    encoder, lengths = rows.T.clone().requires_grad_(), torch.ones(len(rows), requires_grad=True)
    bias, centre = torch.zeros(len(rows), requires_grad=True), torch.zeros_like(mean).requires_grad_()
    leaves, rng = [encoder, lengths, bias, centre], generator(seed)

    def decode(z: Tensor) -> Tensor:
        value, index = ((z - centre) @ encoder + bias).topk(K, dim=1)
        code = value.relu() * lengths[index]
        return torch.zeros(len(z), len(rows)).scatter(1, index, code) @ rows + centre

    optimiser = torch.optim.Adam(leaves, lr=LR)
    decay = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1.0, 5 * (1 - step / STEPS)))
    for _ in range(STEPS):
        batch = (x[torch.randint(len(x), (BATCH,), generator=rng)] - mean) / size
        loss = (decode(batch) - batch).square().sum(1).mean()
        for leaf, slope in zip(leaves, torch.autograd.grad(loss, leaves), strict=True):
            leaf.grad = slope
        optimiser.step()
        decay.step()

    @torch.no_grad()
    def reconstruct(z: Tensor) -> Tensor:
        return decode((z - mean) / size) * size + mean

    return reconstruct


def _pursuing(rows: Tensor, mean: Tensor, signed: bool = False) -> Callable[[Tensor], Tensor]:
    """Orthogonal matching pursuit of z - mean: K times the row nearest to what is left, then all codes refitted."""

    def reconstruct(z: Tensor) -> Tensor:
        wanted = z - mean
        left, chosen = wanted, []
        for _ in range(K):
            along = left @ rows.T
            chosen.append((along.abs() if signed else along).argmax(1))
            some = rows[torch.stack(chosen, 1)]
            gram = some @ some.mT + 1e-6 * torch.eye(len(chosen))  # a row may be chosen twice where nothing is left
            codes = torch.linalg.solve(gram, some @ wanted[..., None])
            left = wanted - (some.mT @ (codes if signed else codes.clamp_min(0)))[..., 0]
        return z - left

    return reconstruct


def _detectors(found: Dictionary, chosen: Lists, shown: Lists) -> tuple[list[list[int]], float, float]:
    """For each word the five features that rise most, and mean AUROCs of the best of them and of the best neuron."""
    codes, held = found.encode(chosen.z), found.encode(shown.z)
    top, features, neurons = [], [], []
    for word in range(WORDS):
        here, elsewhere = chosen.second[word], chosen.inside & ~chosen.second[word]
        place, rest = shown.second[word], shown.inside & ~shown.second[word]
        five = (codes[here].mean(0) - codes[elsewhere].mean(0)).argsort(descending=True)[:TOP]
        top.append(five.tolist())
        best = int(five[_aurocs(codes[here][:, five], codes[elsewhere][:, five]).argmax()])
        features.append(float(_aurocs(held[place][:, [best]], held[rest][:, [best]])))
        scores = _aurocs(chosen.z[here], chosen.z[elsewhere])
        at = int(torch.maximum(scores, 1 - scores).argmax())
        value = float(_aurocs(shown.z[place][:, [at]], shown.z[rest][:, [at]]))
        neurons.append(value if scores[at] >= 0.5 else 1 - value)
    return top, sum(features) / WORDS, sum(neurons) / WORDS


def _cuts(model: Model, found: Dictionary, top: list[list[int]], shown: Lists, texts: list[str]) -> dict[str, float]:
    """The advantage on second copies, summed over words: as it is, without a word's features, without another's."""
    base, clean = _losses(model, shown.tokens), float(corpus_losses(model, texts).mean())
    sums, worst = torch.zeros(3), 0.0
    for word in range(WORDS):
        rows = (shown.first[word] | shown.second[word]).any(1)
        own, other = (ablate_features(found, top[i]) for i in (word, (word + 1) % WORDS))
        for i, edit in enumerate((None, own, other)):
            losses = base[rows] if edit is None else _losses(model, shown.tokens[rows], edit)
            sums[i] += losses[shown.first[word][rows]].mean() - losses[shown.second[word][rows]].mean()
        worst = max(worst, abs(float(corpus_losses(model, texts, own).mean()) / clean - 1))
    before, after, placebo = (sums / WORDS).tolist()
    return {
        "advantage": before, "advantage ablated": after, "cut": 1 - after / before,
        "cut by another word's features": 1 - placebo / before, "loss on other text": clean,
        "other text, largest change": worst,
    }  # fmt: skip


def _common(model: Model, found: Dictionary, chosen: Lists, shown: Lists) -> dict[str, float]:
    """The same for second copies of whatever word, by one feature and by the five that rise most between the copies."""
    values = [(lists.z, found.encode(lists.z)) for lists in (chosen, shown)]
    second, first = (slice(LENGTH, -1), slice(1, LENGTH))
    scores = []
    for part in (1, 0):  # features, then neurons with either sign
        aurocs = _aurocs(*(values[0][part][:, copy].flatten(0, 1) for copy in (second, first)))
        at = int((aurocs if part else torch.maximum(aurocs, 1 - aurocs)).argmax())
        value = float(_aurocs(*(values[1][part][:, copy, [at]].flatten(0, 1) for copy in (second, first))))
        scores.append(value if part or aurocs[at] >= 0.5 else 1 - value)
    codes = values[0][1]
    rise = codes[:, second].mean((0, 1)) - codes[:, first].mean((0, 1))
    edit = ablate_features(found, rise.argsort(descending=True)[:TOP].tolist())
    before, after = (_copies(model, shown.tokens, e) for e in (None, edit))
    return {
        "AUROC feature, any word": scores[0], "AUROC neuron, any word": scores[1],
        "cut, any word": 1 - (after[0] - after[1]) / (before[0] - before[1]),
    }  # fmt: skip


def _aurocs(high: Tensor, low: Tensor) -> Tensor:
    """AUROC of each column of [N F] against those of [M F]; ties count half."""
    from scipy.stats import rankdata

    n, m = len(high), len(low)
    ranks = torch.from_numpy(rankdata(torch.cat([high, low]).numpy(), axis=0))[:n].sum(0)
    return (ranks - n * (n + 1) / 2) / (n * m)


def _attribution_gap(model: Model, found: Dictionary, feature: int, tokens: Tensor) -> float:
    """Largest difference between the summed attribution and the feature's input, over a few positions."""
    site = str(found.site)
    with torch.no_grad():
        z = model.run(tokens[None], read=[site]).acts[site].flatten(2)[0].double()
    inputs = (z * found.scale - found.decoder_bias.double()) @ found.encoder[:, feature].double()
    gaps = []
    for pos in (3, LENGTH, 2 * LENGTH):
        brought, constant = direct_feature_attribution(model, found, feature, tokens, pos)
        gaps.append(abs(float(brought.double().sum() + constant - inputs[pos] - found.encoder_bias[feature].double())))
    return max(gaps)

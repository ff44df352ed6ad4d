"""Attention-output SAEs on `lm`: sparse, faithful, and the features that detect repetition carry induction.

The layer is the one that carries induction: the largest rise of the loss on second copies of random lists when its head
outputs are zeroed, among layers that leave the first copy alone. Numbers compared are the share of the loss recovered
when reconstructions are spliced in, per held-out text group, against a decoder of random unit rows (and, in the
numbers, one of random rows whose length is refitted). 100,000 tokens instead of 500,000 and TopK codes (k = 16,
10 % of the width) keep the claim within minutes. An induction detector tells second from first copies of random lists
by its activation; neurons may do so with either sign. Features to ablate are chosen on other lists than those reported.

An earlier run drew the random rows with the seed of the training and so got the decoder that training started from:
that recovered 0.83 of the loss.
"""

from __future__ import annotations

import torch
from torch import Tensor

from interneuron.artifacts import Dictionary
from interneuron.claims import Claim, Comparison
from interneuron.core.seeds import generator, numpy_rng
from interneuron.decompose.attn_sae import AttentionSAE, ablate_features, direct_feature_attribution
from interneuron.loading import load
from interneuron.model.model import Model
from interneuron.organisms import tinyworld as tw
from interneuron.organisms.tinyworld import lookup, packing
from interneuron.organisms.tinyworld.document import source
from interneuron.organisms.tinyworld.world import Truth
from interneuron.parts.activation_rows import corpus_losses, recovered, splice, token_losses, token_rows

CLAIM = Claim(
    slug="attn_sae",
    organism="lm",
    paper="sparse interpretable features up to 2B parameters; 80-90 % of the loss recovered; induction features found",
    better="higher",
    unit="loss recovered",
    minutes=2,
    why=(
        "The dictionary recovers 0.97 of the loss at 10 % of the width, one with random rows none of it, and the "
        "attributions are exact. Single neurons of z detect second copies better (AUROC 0.95 to 0.98) than features "
        "(0.66 to 0.72), and ablating five features costs nothing of the advantage on second copies, though without "
        "the head outputs of that layer the advantage is gone. Tried on a development seed: features of one word (this "
        "word is next by induction) detect it at 0.9998, but neurons reach 0.998 there; ablating the five, ten or "
        "twenty strongest of them for a word takes 1, 4 and 16 % of its advantage. What the dictionary misses, 23 % "
        "of the variance, stays in place under an ablation, and may be enough to copy by."
    ),
)

TOKENS, HELD, LENGTH, LISTS = 1e5, 1.2e4, 20, 48
STEPS, K = 600, 16


def claim(seed: int) -> Comparison:
    """Train at the induction layer, then splice, trace, detect and ablate."""
    model = load(CLAIM.organism)
    texts, held = _texts(TOKENS, seed), _texts(HELD, 10_000 + seed)
    chosen, shown = _lists(LISTS, 2 * seed), _lists(LISTS, 2 * seed + 1)
    layer = _induction_layer(model, chosen)
    site = f"layers.{layer}.attn.z"
    found = AttentionSAE(k=K, steps=STEPS, seed=seed).fit(model, texts, layer)
    groups = [held[i::4] for i in range(4)]
    ours = [recovered(model, part, site, found.reconstruct, 1)["recovered"] for part in groups]
    random = _random_decoder(found, seed)
    control = [recovered(model, part, site, random.reconstruct, 1)["recovered"] for part in groups]
    refitted = _refitted(random, token_rows(model, texts[:400], site, 1))
    fairer = recovered(model, held, site, refitted.reconstruct, 1)["recovered"]
    l0 = found.quality(token_rows(model, held, site, 1))["l0"]
    top, feature, neuron = _detectors(model, found, site, chosen, shown)
    edit = ablate_features(found, top)
    others = [i for i in torch.randperm(found.n_features, generator=generator(seed)).tolist() if i not in top]
    before, after = _advantage(model, shown), _advantage(model, shown, edit)
    placebo = _advantage(model, shown, ablate_features(found, others[:5]))
    clean, cost = (float(corpus_losses(model, held, e).mean()) for e in (None, edit))
    gap = _attribution_gap(model, found, top[0], shown[0])
    cut, mean, floor = 1 - after / before, sum(ours) / 4, sum(control) / 4
    return Comparison(
        ours=ours,
        control=control,
        gates={
            "loss recovered is at least 0.85": mean >= 0.85,
            "L0 is at most 15 % of the width": l0 <= 0.15 * found.d_in,
            "loss recovered is at least 0.3 above that of a random decoder": mean >= floor + 0.3,
            "attributions over sources sum to the feature's input within 1e-4": gap <= 1e-4,
            "a feature detects second copies with AUROC of at least 0.9": feature >= 0.9,
            "the best single neuron of z detects them less well": neuron < feature,
            "ablating 5 features cuts the advantage on second copies by half": cut >= 0.5,
            "and changes the loss on other text by 10 % at most": abs(cost / clean - 1) <= 0.1,
        },
        extra={
            "layer": layer, "L0": l0, "AUROC feature": feature, "AUROC neuron": neuron,
            "advantage": before, "advantage ablated": after, "advantage, 5 other features ablated": placebo,
            "loss clean": clean, "loss ablated": cost, "attribution gap": gap,
            "random decoder, length refitted": fairer,
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


def _texts(tokens: float, seed: int) -> list[str]:
    return sorted((doc.text for doc in tw.corpus(tokens, seed=seed)), key=len)


def _lists(n: int, seed: int) -> Tensor:
    """Lists of LENGTH random words, twice in a row, behind <bos>."""
    documents = [lookup.repeat(source(900_000 + seed, i), Truth(), k=LENGTH, times=2) for i in range(n)]
    return torch.tensor([packing.encode(doc)[:-1] for doc in documents])


@torch.no_grad()
def _copies(model: Model, lists: Tensor, edit: object = None) -> tuple[float, float]:
    """Loss on the first copy and on the second, from the second word of each on."""
    with model.edit(*([] if edit is None else [edit])):
        losses = token_losses(model(lists), lists, torch.ones_like(lists, dtype=torch.bool))
    return float(losses[:, 1:LENGTH].mean()), float(losses[:, LENGTH + 1 :].mean())


def _advantage(model: Model, lists: Tensor, edit: object = None) -> float:
    first, second = _copies(model, lists, edit)
    return first - second


def _induction_layer(model: Model, lists: Tensor) -> int:
    base = _copies(model, lists)
    rises = []
    for layer in range(model.n_layers):
        first, second = _copies(model, lists, splice(model, f"layers.{layer}.attn.z", torch.zeros_like, 1))
        rises.append(second - base[1] if first - base[0] < 0.5 else -1.0)
    return max(range(model.n_layers), key=rises.__getitem__)


def _random_decoder(found: Dictionary, seed: int) -> Dictionary:
    """The same encoder with decoder rows of random direction and length 1, the length that trained rows have.

    Not drawn by `generator(seed)`: its first numbers are the rows that training with that seed starts from, which the
    encoder still resembles.
    """
    rows = torch.from_numpy(numpy_rng(seed, "attn_sae, random decoder").standard_normal(found.decoder.shape)).float()
    return found.replace(decoder=rows / rows.norm(dim=1, keepdim=True))


def _refitted(random: Dictionary, x: Tensor) -> Dictionary:
    """The dictionary with one factor on all decoder rows, the best for the rows x."""
    wanted = x * random.scale - random.decoder_bias
    written = random.encode(x) @ random.decoder
    return random.replace(decoder=random.decoder * float((written * wanted).sum() / written.square().sum()))


def _detectors(
    model: Model, found: Dictionary, site: str, chosen: Tensor, shown: Tensor
) -> tuple[list[int], float, float]:
    """The five features that rise most from first to second copies, and AUROCs of the best feature and neuron."""
    read = []
    for lists in (chosen, shown):
        with torch.no_grad():
            z = model.run(lists, read=[site]).acts[site].flatten(2)[:, 1:]
        read.append((z, found.encode(z)))
    rise = read[0][1][:, LENGTH:].mean((0, 1)) - read[0][1][:, :LENGTH].mean((0, 1))
    top = rise.argsort(descending=True)[:5].tolist()
    best: list[float] = []
    for part in (1, 0):  # features, then neurons with either sign
        scores = _aurocs(read[0][part])
        signed = scores if part else torch.maximum(scores, 1 - scores)
        at = int(signed.argmax())
        value = float(_aurocs(read[1][part][..., at : at + 1])[0])
        best.append(value if part or scores[at] >= 0.5 else 1 - value)
    return top, best[0], best[1]


def _aurocs(values: Tensor) -> Tensor:
    """AUROC of each column of [B 2 LENGTH F] for second against first copies; ties count half."""
    from scipy.stats import rankdata

    second, first = values[:, LENGTH:].flatten(0, 1), values[:, :LENGTH].flatten(0, 1)
    ranks = torch.from_numpy(rankdata(torch.cat([second, first]).numpy(), axis=0))[: len(second)].sum(0)
    n, m = len(second), len(first)
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

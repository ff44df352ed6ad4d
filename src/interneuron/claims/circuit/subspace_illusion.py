"""Subspace illusion: the exact toy, and indirect objects on `lm`, at the residual stream and at MLPs.

The toy has one direction that transfers the input completely although neither of its halves does anything alone, and
one that is the real feature; both verdicts are gates. On `lm` a subspace is learned with one half of the names and
tested with the other half, at the last position, in the layer behind which the answer stands there. The headline is the
effect per pair of exchanging that subspace; the control exchanges a random one of the same rank. In the numbers, as a
rival that the check does not name: as many principal components of the differences between the two prompts of a pair,
taken at the same place on the same names, and the whole residual stream.

The illusion is looked for at the MLPs of all layers, with a subspace of the rank and the training of that of the
residual stream, so that like is compared with like, and tested with the other half of the names. The criterion is taken
by its letter: an MLP counts where its subspace has twice the effect of the whole MLP, however small both are, and where
none does it is met, as the check says. In the numbers stand the same on the names fitted on, where the effects are
larger, and the paper's one direction on the other names.

Deviations: `lm` tells the names apart by their tokens, not by a direction common to all pairs of names, so that one
direction learned on some names does nothing for others (its effect is reported); the subspace has rank 24. An earlier
run had 50 steps, two MLPs, one direction at them and 48 pairs in the test. More steps raise the effect on other names
(0.89 to 1.08 from 50 to 200 in development), and at most MLPs the effects are so small that 48 pairs do not settle the
ratio of two of them.
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
    minutes=8.0,
    why=(
        "The residual stream and the planted network hold; the illusion at an MLP of lm does not. On names not fitted "
        "on, three of its six MLPs (1 to 3) count, with an effect of the subspace of 0.002 to 0.007, which is next to "
        "nothing; half of it or less is in the row part at one of them under two seeds and at none under one. "
        "Where the effect is large, on the names fitted on (0.21 to 0.24 at MLP 4 and 0.87 to 0.94 at MLP 5, two to "
        "four times that of the whole MLP), the row part keeps 0.61 to 0.71 of it, which is no illusion. And on the "
        "residual stream 24 principal components of the differences between the prompts do better than the learned "
        "subspace: FLDD 1.17 to 1.19 against 1.10 to 1.14."
    ),
)

N_PAIRS, N_HELD, STEPS, LR, RANK = 48, 144, 200, 0.1, 24
NARROW = 50  # steps of a single direction, which is found sooner
RESID = "layers.4.resid_post"
Pairs = tuple[Tensor, Tensor, Metric]


def claim(seed: int) -> Comparison:
    """Effect per held-out pair of the learned subspace and of a random one, with the verdicts on toy and MLPs."""
    model = load(CLAIM.organism)
    fitted, held = _pairs(seed, "train"), _pairs(seed, "test", N_HELD)
    patch = DAS(rank=RANK, steps=STEPS, lr=LR, seed=seed).fit(model, RESID, *fitted)
    narrow = DAS(rank=1, steps=NARROW, lr=LR, seed=seed).fit(model, RESID, *fitted)
    noise = torch.randn(patch.basis.shape, generator=generator(seed))
    ours = _effect(model, patch, held)
    control = _effect(model, patch.replace(basis=torch.linalg.qr(noise).Q), held)
    common = _effect(model, patch.replace(basis=_principal(model, fitted)), held)
    whole = _effect(model, patch.replace(basis=torch.eye(model.d_model)), held)
    illusions, found = _scan(model, fitted, held, seed)
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
            "an MLP with twice its whole effect has half in its row part at most, or there is none": not illusions
            or any(illusions),
        },
        extra={
            "FLDD of principal components, held-out names": float(common.mean()),
            "FLDD of the whole residual stream, held-out names": float(whole.mean()),
            "FLDD of one direction, held-out names": float(_effect(model, narrow, held).mean()),
            "FLDD of the subspace, names fitted on": float(_effect(model, patch, fitted).mean()),
            "answers exchanged, subspace": float((ours > 1).float().mean()),
            "answers exchanged, principal components": float((common > 1).float().mean()),
            "answers exchanged, whole residual stream": float((whole > 1).float().mean()),
            **found,
        },
    )


def _scan(model: Model, fitted: Pairs, held: Pairs, seed: int) -> tuple[list[bool], dict[str, float | int | str]]:
    """Of the MLPs whose subspace has twice the effect of the whole: is half of it in the row part at most?

    And the numbers of all MLPs: the subspace on other names and on those fitted on, and one direction on other names.
    """
    illusions: dict[str, list[bool]] = {"held-out names": [], "names fitted on": [], "one direction": []}
    extra: dict[str, float | int | str] = {}
    for layer in range(model.n_layers):
        site = f"layers.{layer}.mlp.hidden"
        wide = DAS(rank=RANK, steps=STEPS, lr=LR, seed=seed).fit(model, site, *fitted)
        narrow = DAS(rank=1, steps=NARROW, lr=LR, seed=seed).fit(model, site, *fitted)
        tests = (("held-out names", wide, held), ("names fitted on", wide, fitted), ("one direction", narrow, held))
        for kind, patch, pairs in tests:
            report = illusion_test(model, patch, *pairs, seed=seed)
            if report["fldd"] >= 2 * abs(report["fldd_whole_site"]):
                illusions[kind].append(report["fldd_row"] <= 0.5 * report["fldd"])
            extra |= {f"MLP {layer}, {kind}: {name}": report[name] for name in ("fldd", "fldd_row", "fldd_whole_site")}
    counts = {f"MLPs with twice their whole effect, {kind}": len(found) for kind, found in illusions.items()}
    row = {f"of these with half in the row part at most, {kind}": sum(found) for kind, found in illusions.items()}
    return illusions["held-out names"], {**counts, **row, **extra}


def _principal(model: Model, pairs: Pairs) -> Tensor:
    """The first RANK principal directions of the differences between the prompts of a pair, [D RANK]."""
    place = model.site(RESID).at(pos=-1)
    with torch.no_grad():
        base, source = (model.run(tokens, read=[place]).acts[RESID] for tokens in pairs[:2])
    return torch.linalg.svd(source - base, full_matrices=False).Vh[:RANK].T.contiguous()


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

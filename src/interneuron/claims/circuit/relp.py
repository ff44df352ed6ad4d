"""RelP on `lm`, `lm-gpt2` and `lm-small`: its scores agree better with activation patching than gradients do.

Pairs of prompts of indirect objects (the second mention of the subject changed) and of coloured objects (two colours
exchanged) on a Llama-class and a GPT-2-class model. For each model, task and site type, the correlation over layers and
positions, from the first word that differs on, between the estimate and the recovery measured by patching. The headline
compares the correlations at mlp.out and resid_pre with those of attribution patching; the control shuffles RelP's
scores over the places. "Both at 0.97" of the check is read as both methods.

Deviations: 16 pairs in place of 64, since pairs are averaged before correlating. No organism has twelve layers, so the
depths compared are six (`lm`) and four (`lm-small`, which never learned to copy from context), on pronouns (the name
changed) and facts (the subject changed), by the logit difference of the two answers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from interneuron.artifacts import Report
from interneuron.circuit.relp import lrp_edits, lrp_rules, relp_scores
from interneuron.claims import Claim, Comparison
from interneuron.core.seeds import generator, numpy_rng
from interneuron.loading import load
from interneuron.model.load import wrap
from interneuron.model.model import Model
from interneuron.organisms import tinyworld as tw
from interneuron.organisms.tinyworld.tasks import token_ids
from interneuron.parts.patching import activation_patching, attribution_patching, logit_difference

CLAIM = Claim(
    slug="relp",
    organism="lm",
    paper="Pearson with activation patching on IOI, MLP outputs: GPT-2 small 0.992 against 0.195 of gradients",
    better="higher",
    unit="correlation",
    minutes=2,
    why=(
        "RelP agrees better with patching than gradients do under every seed and at every type of site, and by up to a "
        "tenth at attention outputs, where the paper saw no gain. But in models of six layers gradients are good "
        "already (0.91 to 0.99), so that the 0.05 asked for is missed under one seed at each of two types. Depth "
        "cannot be judged here: facts and pronouns on the four-layer model give correlations over so few and weak "
        "places that the difference swings from -0.25 to 0.18."
    ),
)

N_PAIRS = 16
SIMPLE = ("fact", "pronoun")
PARTS = ("resid_pre", "attn.out", "mlp.out")


def claim(seed: int) -> Comparison:
    """Correlation with activation patching of RelP and of attribution patching, by model, task and site type."""
    ours: dict[str, dict[str, float]] = {part: {} for part in PARTS}
    theirs: dict[str, dict[str, float]] = {part: {} for part in PARTS}
    shuffled: list[float] = []
    gap: dict[tuple[str, str], float] = {}
    same = True
    for name, tasks in (("lm", ("ioi", "co", "fact", "pronoun")), ("lm-gpt2", ("ioi", "co")), ("lm-small", SIMPLE)):
        model = load(name)
        for task in tasks:
            clean, corrupt, answer, wrong = _pairs(task, seed)
            same = same and _same_bits(model, clean)
            rows = _correlations(model, clean, corrupt, logit_difference(answer, wrong), seed)
            gap[name, task] = sum(rows[part][0] - rows[part][1] for part in ("resid_pre", "mlp.out")) / 2
            if task in SIMPLE:
                continue
            for part, (relp, atp, chance) in rows.items():
                ours[part][f"{name} {task}"], theirs[part][f"{name} {task}"] = relp, atp
                shuffled += [chance] if part != "attn.out" else []
    pooled = {part: (_mean(ours[part]), _mean(theirs[part])) for part in PARTS}
    deep, shallow = (sum(gap[name, task] for task in SIMPLE) / 2 for name in ("lm", "lm-small"))
    toy = _toy_gap(seed)
    return Comparison(
        ours=[value for part in ("mlp.out", "resid_pre") for value in ours[part].values()],
        baseline=[value for part in ("mlp.out", "resid_pre") for value in theirs[part].values()],
        control=[abs(value) for value in shuffled[1::2] + shuffled[::2]],
        gates={
            **{
                f"mean r at {part} is 0.05 above attribution patching, or both are 0.97": _better(*pooled[part])
                for part in ("mlp.out", "resid_pre")
            },
            "mean r at attn.out is at most 0.03 below": pooled["attn.out"][0] >= pooled["attn.out"][1] - 0.03,
            "logits are bit-identical under the rules": same,
            "without norms, with ReLU, both are the same to 1e-6": toy <= 1e-6,
            "the gap is larger in six layers than in four": deep > shallow,
        },
        extra={
            **{f"r at {part}, RelP": pooled[part][0] for part in PARTS},
            **{f"r at {part}, gradients": pooled[part][1] for part in PARTS},
            "gap, six layers": deep,
            "gap, four layers": shallow,
            "largest difference on the toy": toy,
        },
    )


def example(model: Model) -> Report:
    """Scores of every MLP for one pair of prompts."""
    clean, corrupt, answer, wrong = _pairs("ioi", seed=0, n=4)
    return relp_scores(model, clean, corrupt, logit_difference(answer, wrong), "layers.*.mlp.out")


def _pairs(task: str, seed: int, n: int = N_PAIRS) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Clean and corrupt prompts of one template, and the answers to each."""
    template = int(numpy_rng(seed, "relp", task).integers(6))
    dials: dict[str, Any] = {"ioi": {"template": template}, "fact": {"template": template}, "co": {"objects": 3}}
    made = tw.task(task, n=12 * n, seed=200 + seed, **dials.get(task, {}))
    rows: list[tuple[list[str], list[str], str, str]] = []
    for item in made.items:
        words = item.doc.words[: item.start]
        answer = item.doc.words[item.start]
        corrupt = item.corrupt
        if task == "co":
            at = {word: i for i, word in enumerate(words)}
            corrupt = list(words)
            corrupt[at[answer]], corrupt[at[item.wrong]] = item.wrong, answer
        if task == "pronoun":
            corrupt = _other_name(words, answer)
        if corrupt is not None:
            rows.append((list(words), list(corrupt), answer, item.wrong))
    length = max({len(r[0]) for r in rows}, key=lambda size: sum(len(r[0]) == size for r in rows))
    rows = [r for r in rows if len(r[0]) == length][:n]
    ids = tw.words.vocabulary()
    return (
        torch.tensor([token_ids(clean) for clean, *_ in rows]),
        torch.tensor([token_ids(corrupt) for _, corrupt, *_ in rows]),
        torch.tensor([ids[answer] for *_, answer, _ in rows]),
        torch.tensor([ids[wrong] for *_, wrong in rows]),
    )


def _other_name(words: list[str], pronoun: str) -> list[str] | None:
    """The same story told of a name of the other pronoun."""
    names = [w for w in words if w in tw.words.NAMES]
    if not names:
        return None
    others = tw.words.MEN if pronoun == "she" else tw.words.WOMEN
    swap = others[tw.words.NAMES.index(names[0]) % len(others)]
    return [swap if w == names[0] else w for w in words]


def _correlations(
    model: Model, clean: Tensor, corrupt: Tensor, metric: Any, seed: int
) -> dict[str, tuple[float, float, float]]:
    """By site type: r of RelP, of attribution patching, and of RelP's scores in random order."""
    first = int((clean != corrupt).any(0).nonzero()[0])
    positions = list(range(first, clean.shape[1]))
    found = {}
    for part in PARTS:
        sites = [f"layers.{layer}.{part}" for layer in range(model.n_layers)]
        truth = activation_patching(model, clean, corrupt, metric, sites, positions)
        atp = attribution_patching(model, clean, corrupt, metric, sites, positions)
        relp = attribution_patching(model, clean, corrupt, metric, sites, positions, edit=lrp_edits(model))
        order = torch.randperm(relp.numel(), generator=generator(seed))
        found[part] = (_r(relp, truth), _r(atp, truth), _r(relp.flatten()[order], truth))
    return found


def _same_bits(model: Model, rows: Tensor) -> bool:
    plain = model(rows).logits
    with lrp_rules(model):
        ruled = model(rows).logits
    return torch.equal(plain, ruled)


def _toy_gap(seed: int) -> float:
    """Largest difference between RelP and attribution patching on a chain of linear layers and ReLUs."""
    noise = generator(seed)
    layers: list[nn.Module] = []
    for _ in range(3):
        layers += [nn.Linear(16, 16, dtype=torch.float64), nn.ReLU()]
    module = nn.Sequential(*layers, nn.Linear(16, 1, dtype=torch.float64))
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.randn(weight.shape, generator=noise, dtype=torch.float64) * 0.3)
    clean, corrupt = (torch.randn(32, 16, generator=noise, dtype=torch.float64) for _ in range(2))
    model = wrap(module)
    sites = [f"{i}:out" for i in range(6)]
    one = attribution_patching(model, clean, corrupt, lambda y: y[:, 0], sites)
    two = attribution_patching(model, clean, corrupt, lambda y: y[:, 0], sites, edit=lrp_edits(model))
    return float((one - two).abs().max())


def _r(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten().double(), b.flatten().double()]))[0, 1])


def _mean(values: dict[str, float]) -> float:
    return sum(values.values()) / len(values)


def _better(relp: float, atp: float) -> bool:
    return relp >= atp + 0.05 or min(relp, atp) >= 0.97

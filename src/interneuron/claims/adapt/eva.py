"""Explained variance adaptation of `lm` to a style it has never read, and of `vit` to a texture it has never seen.

The style: stories told with the words of each sentence reversed. The texture: shapes filled with coloured speckle of
full contrast, to be named as before. Rank-4 adapters on all linear layers inside the blocks, 100 steps, every schedule
a warm-up and then a cosine to 0; everything but the start is the same for all arms.

lm, as in the authors' code for language: only the adapters are trained, 3 % warm-up, no decay; 256 texts, batches of 4.
vit, as in the authors' code for VTAB-1K: 1,000 images; with the adapters (alpha 1) a new head, which starts near 0, and
all biases are trained; AdamW with decay 0.05, 10 % warm-up. Where we depart it is for time: 100 steps of 16 images,
1.6 epochs (theirs: 30 epochs of batches of 64). Its own head and frozen biases were tried first and left: EVA's
directions leave the mean input out, so that it alone could not shift what a layer puts out.

Compared is the mean loss of held-out data after 20 % of the steps with that of LoRA (Kaiming-uniform A); the control is
EVA from activations on unrelated data (statements of facts; for vit drawn faces). PiSSA (the start is the principal
part of W, which is taken out of W), random orthonormal A, uniform ranks and, for vit, no adapter are shown beside it.

Runs differ more than arms: under each seed the four arms that a criterion names are trained on three fine-tuning
sets, each with held-out data and a random A of its own, and averaged; the others on one of these. Arms are paired
within a run; the items compared are the three runs, and standard errors those of the paired differences over them.

Rates: on one grid, sqrt(2) apart, each arm has the rate of least mean loss after the last step, as papers choose
theirs, over three fine-tuning sets that play no other part (arms that no criterion names: two); `search(organism, arm)`
finds it, and ends no arm on an edge. On vit uniform ranks have EVA's rate and no adapter has LoRA's. `RATES` holds
them. Shown and deciding nothing ("early, tuned early") are early losses under the rates of least loss after 20 % of the
steps, found alike, and that of the control under EVA's rate (`EARLY_RATES`).

Readings of the check: gradients are compared with the A of each layer scaled to one Frobenius norm, at uniform ranks
(rho = 1). Every criterion is asked of both organisms. The comparison with peft is a unit test, skipped where it is not
installed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import sub, truediv
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from interneuron.adapt.eva import EVA
from interneuron.artifacts.low_rank_adapter import LowRankAdapter
from interneuron.claims import Claim, Comparison
from interneuron.core.seeds import generator
from interneuron.loading import load
from interneuron.model.model import Model
from interneuron.organisms import shapes as sh
from interneuron.organisms.tinyworld import World, knowledge, stories
from interneuron.organisms.tinyworld.document import source
from interneuron.parts.importance import losses
from interneuron.parts.likelihood import token_log_probs
from interneuron.parts.linear_layers import block_linears, weight_of

CLAIM = Claim(
    slug="eva",
    organism="lm",
    paper="converges faster than LoRA and its variants; best average score in language, vision and control",
    better="lower",
    unit="loss after 20 % of the steps, nats/token",
    minutes=6.0,
    ratio=0.97,
    why=(
        "On lm every criterion holds: over three fine-tuning sets a seed EVA's loss after 20 % of the steps is 0.85, "
        "0.85 and 0.84 of LoRA's (0.61 to 0.98 in single runs), 0.86, 0.86 and 0.85 with the rates of both chosen by "
        "the early loss; with statements of facts instead of the texts 28 % of that gain is left (4.83 against 4.26 "
        "and 5.05). The last losses, 1.6 to 1.8 against LoRA's 3.8 to 4.5, come while LoRA has barely left the "
        "plateau near 5 nats, so they tell when a start leaves it, not where it ends. On vit, trained as in the "
        "authors' code, nothing is won early: 0.98, 1.02 and 1.02 times LoRA's loss, though B's first gradient is 3.6 "
        "to 3.9 times as large; each start at its own rate, a larger gradient is not faster learning. Nor is what "
        "little there is due to the data: at EVA's own rate EVA from drawn faces has a lower early loss than EVA "
        "under every seed (1.11, 1.13, 1.19 against 1.12, 1.15, 1.20). The last loss is 0.006 to 0.045 below LoRA's. "
        "Head and biases alone have 1.03 at the end, with adapters it is 0.92 to 0.95. An earlier run, one set a "
        "seed, the old head, frozen biases and 400 images, told these apart less well: early 0.81 to 1.12 of LoRA's, "
        "the last loss above it. The authors train for 30 epochs, here it is 1.6. Tried on three sets of the search: "
        "four times the steps at a rate of 0.004 (1.01 times LoRA's early loss, EVA from drawn faces 0.96), whitening "
        "(0.99), outlines for speckle (0.98)."
    ),
)

RANK, STEPS, EARLY = 4, 100, 20
WARMUP = {"lm": 3, "vit": 10}
BATCH = {"lm": 4, "vit": 16}
N_TRAIN = {"lm": 256, "vit": 1000}
N_HELD = {"lm": 128, "vit": 300}
N_SVD = {"lm": 8, "vit": 64}  # samples per update of the SVD
ALPHA = {"lm": RANK, "vit": 1}
DECAY = {"lm": 0.0, "vit": 0.05}
HEAD = "classifier.weight"
LONGEST = 30
RUNS = 3  # fine-tuning sets under one seed
CHOICE = (500, 501, 502)  # seeds of the fine-tuning sets on which the rates are chosen
FEW = 1  # of them those on which the arms that no criterion names are trained

MIDDLE = 0.008  # a rate is this times 2^(k / 2)
BEGIN = {"lm": (0, 1, 2), "vit": (-3, -1, 1)}  # the k with which the search begins

CONTROL, BARE = "EVA, unrelated", "head and biases alone"
ASKED = ("EVA", "LoRA", "random orthonormal", CONTROL)
"""The arms that a criterion names."""

RATES: dict[str, dict[str, int]] = {
    "lm": {"EVA": 2, "LoRA": 2, "random orthonormal": 1, CONTROL: 2, "EVA, rho 1": 1, "PiSSA": 0},
    "vit": {"EVA": -1, "LoRA": -1, "random orthonormal": -1, CONTROL: -2, "EVA, rho 1": -1, "PiSSA": -3, BARE: -1},
}
"""k of each arm, of least loss after the last step."""
EARLY_RATES: dict[str, dict[str, int]] = {
    "lm": {"EVA": 2, "LoRA": 3, CONTROL: 2},
    "vit": {"EVA": -1, "LoRA": -1, CONTROL: -1},
}
"""k of least loss after 20 % of the steps; of the control EVA's k above."""

Inputs = list[str] | Tensor
Start = tuple[LowRankAdapter, LowRankAdapter | None]  # what is trained, and an adapter that stays as it is


@dataclass(frozen=True)
class Task:
    """A fine-tuning set, held-out data and unrelated inputs; labels are None for texts."""

    organism: str
    train: Inputs
    labels: Tensor | None
    held: Inputs
    held_labels: Tensor | None
    unrelated: Inputs
    seed: int


def claim(seed: int) -> Comparison:
    """Measure early and final losses of six starts on both organisms."""
    gates: dict[str, bool] = {}
    extra: dict[str, float | int | str] = {}
    early = {}
    for organism in ("vit", "lm"):
        early, met, numbers = _organism(organism, seed)
        gates |= {f"{organism}: {sentence}": value for sentence, value in met.items()}
        extra |= {f"{organism}: {name}": value for name, value in numbers.items()}
    del gates["lm: loss after 20 % of the steps is at most 0.97 times LoRA's"]  # the headline, with its interval
    del gates["lm: activations on unrelated data reduce the early gain"]
    return Comparison(
        ours=early["EVA"], baseline=early["LoRA"], control=early["EVA, unrelated"], gates=gates, extra=extra
    )


def example(model: Model) -> LowRankAdapter:
    """The start of a small adapter for two stories told backwards."""
    return EVA(rank=2, batch_size=2).fit(model, ["lamp the at looked mia .", "sad felt she ."], layers="*.0.*")


def search(organism: str, arm: str) -> tuple[dict[int, float], dict[int, float]]:
    """Final and early losses of an arm, means over the draws, under the rates that the search came by."""
    model = load(organism)
    draws = [_task(organism, seed) for seed in CHOICE[: None if arm in ASKED else 2]]
    starts = [_starts(model, task)[arm] for task in draws]
    final: dict[int, float] = {}
    early: dict[int, float] = {}

    def measure(k: int, steps: int) -> None:
        found = [_train(model, start, task, k, steps) for start, task in zip(starts, draws, strict=True)]
        early[k] = fmean(x[0] for x in found)
        if steps == STEPS:
            final[k] = fmean(x[-1] for x in found)

    _climb(organism, final, lambda k: measure(k, STEPS))
    _climb(organism, early, lambda k: measure(k, EARLY))
    return final, early


def _climb(organism: str, known: dict[int, float], measure: Callable[[int], None]) -> None:
    """Measure until the best is between two that are worse."""
    wanted = [k for k in BEGIN[organism] if k not in known]
    while wanted:
        for k in wanted:
            measure(k)
        best = min(known, key=known.__getitem__)
        wanted = [k for k in (best - 1, best + 1) if k not in known]


def _organism(organism: str, seed: int) -> tuple[dict[str, list[float]], dict[str, bool], dict[str, float]]:
    """Early losses of every arm in each run, the criteria, and the numbers behind them."""
    model = load(organism)
    runs = [_run(model, _task(organism, 100 * seed + i), i < FEW) for i in range(RUNS)]
    early, final, tuned = (
        {arm: [run[part][arm] for run in runs if arm in run[part]] for arm in runs[0][part]}
        for part in ("early", "final", "tuned early")
    )
    mean, last = ({arm: fmean(values) for arm, values in part.items()} for part in (early, final))
    facts = {name: [run["facts"][name] for run in runs] for name in runs[0]["facts"]}
    gaps = {arm: list(map(sub, final["EVA"], final[arm])) for arm in ("LoRA", "random orthonormal")}
    above = {arm: fmean(values) for arm, values in gaps.items()}
    error = {arm: stdev(values) / RUNS**0.5 for arm, values in gaps.items()}
    slope = fmean(facts["slope of EVA"]) / fmean(facts["slope of LoRA"])
    gates = {
        "loss after 20 % of the steps is at most 0.97 times LoRA's": mean["EVA"] <= 0.97 * mean["LoRA"],
        "activations on unrelated data reduce the early gain": mean["EVA, unrelated"] > mean["EVA"],
        "final loss is at most 1 standard error above LoRA's": above["LoRA"] <= error["LoRA"],
        "final loss is at most 1 standard error above that of random orthonormal A": above["random orthonormal"]
        <= error["random orthonormal"],
        "gradient norm of B at step 0 is >= 1.3 times LoRA's at equal |A|": slope >= 1.3,
        "outputs at step 0 are those of the model, bit for bit": all(facts["same outputs"]),
        "ranks sum to the budget": all(facts["ranks in budget"]),
    }
    extra = {
        "loss before": fmean(facts["loss before"]),
        "gradient norm over LoRA's": slope,
        "largest rank": max(facts["largest rank"]),
        "early, EVA over LoRA": mean["EVA"] / mean["LoRA"],
        "early, EVA over LoRA, lowest of the runs": min(map(truediv, early["EVA"], early["LoRA"])),
        "early, EVA over LoRA, highest of the runs": max(map(truediv, early["EVA"], early["LoRA"])),
        "early, tuned early, EVA over LoRA": fmean(tuned["EVA"]) / fmean(tuned["LoRA"]),
        **{f"early, {arm}": value for arm, value in mean.items()},
        **{f"early, tuned early, {arm}": fmean(values) for arm, values in tuned.items()},
        **{f"final, {arm}": value for arm, value in last.items()},
        **{f"final, EVA above {arm}": value for arm, value in above.items()},
        **{f"final, EVA above {arm}, standard error": value for arm, value in error.items()},
        **{f"rate, {arm}": _rate(k) for arm, k in RATES[organism].items()},
        **{f"rate, tuned early, {arm}": _rate(k) for arm, k in EARLY_RATES[organism].items()},
    }
    return early, gates, extra


def _run(model: Model, task: Task, shown: bool) -> dict[str, dict[str, Any]]:
    """Losses of the arms on one fine-tuning set, of all if shown, and what holds of their starts."""
    starts, rates, tuned_rates = _starts(model, task), RATES[task.organism], EARLY_RATES[task.organism]
    early, final, tuned = {}, {}, {}
    for arm in starts if shown else ASKED:
        if arm == CONTROL:  # nothing is asked of its last loss
            early[arm] = _train(model, starts[arm], task, rates[arm], EARLY)[0]
        else:
            early[arm], final[arm] = _train(model, starts[arm], task, rates[arm], STEPS)
        if arm in tuned_rates:
            same = rates[arm] == tuned_rates[arm]
            tuned[arm] = early[arm] if same else _train(model, starts[arm], task, tuned_rates[arm], EARLY)[0]
    eva = starts["EVA"][0]
    with torch.no_grad():
        before = float(_tuned(model, starts["LoRA"], task)(task.held, task.held_labels).mean())
        plain = losses(model, task.held, task.held_labels)
        with model.edit(eva.edit()):
            edited = losses(model, task.held, task.held_labels)
    facts = {
        "loss before": before,
        "same outputs": torch.equal(plain, edited),
        "ranks in budget": sum(eva.ranks.values()) == RANK * len(starts["LoRA"][0].ranks),
        "largest rank": max(eva.ranks.values()),
        "slope of EVA": _slope(model, starts["EVA, rho 1"][0], task),
        "slope of LoRA": _slope(model, starts["LoRA"][0], task),
    }
    return {"early": early, "final": final, "tuned early": tuned, "facts": facts}


def _train(model: Model, start: Start, task: Task, k: int, steps: int) -> list[float]:
    """Mean loss of the held-out data after 20 % of the steps and after the last one."""
    net, rng, found = _tuned(model, start, task), generator(task.seed), []
    decayed = [*net.a.values(), *net.b.values(), *net.head.values()]
    leaves = [*decayed, *net.biases.values()]
    groups = [{"params": decayed, "weight_decay": DECAY[task.organism]}]
    if net.biases:
        groups.append({"params": list(net.biases.values()), "weight_decay": 0.0})
    optimiser = torch.optim.AdamW(groups)
    for step in range(1, steps + 1):
        rows = torch.randint(len(task.train), (BATCH[task.organism],), generator=rng)
        batch = task.train[rows] if isinstance(task.train, Tensor) else [task.train[int(i)] for i in rows]
        slopes = torch.autograd.grad(net(batch, None if task.labels is None else task.labels[rows]).mean(), leaves)
        for leaf, slope in zip(leaves, slopes, strict=True):
            leaf.grad = slope
        for group in optimiser.param_groups:
            group["lr"] = _rate(k) * _schedule(step, WARMUP[task.organism])
        optimiser.step()
        if step in (EARLY, STEPS):
            with torch.no_grad():
                found.append(float(net(task.held, task.held_labels).mean()))
    return found


@dataclass(frozen=True)
class Tuned:
    """The model with W + B A for W: what the adapter's edits compute, in less time. All but `frozen` is trained."""

    model: Model
    frozen: dict[str, Tensor]
    scale: float
    a: dict[str, Tensor]
    b: dict[str, Tensor]
    head: dict[str, Tensor]
    biases: dict[str, Tensor]

    def __call__(self, inputs: Inputs, labels: Tensor | None) -> Tensor:
        """Loss of each sample: of its class, or the mean over its tokens."""
        weights = {f"{path}.weight": w + self.scale * self.b[path] @ self.a[path] for path, w in self.frozen.items()}
        args, named = self.model.prepare(inputs)
        out = torch.func.functional_call(self.model.module, {**weights, **self.head, **self.biases}, args, named)
        if labels is not None:
            return F.cross_entropy(out.logits, labels, reduction="none")
        return -token_log_probs(out, named).sum(1) / named["attention_mask"][:, 1:].sum(1)


def _tuned(model: Model, start: Start, task: Task) -> Tuned:
    """What training begins with; for vit with a new head, all but 0, which the seed of the task gives to every arm."""
    begin, taken = start
    frozen = {path: weight_of(layer).detach() for path, layer in block_linears(model).items() if path in begin.a}
    if taken is not None:
        frozen = {path: w + taken.scale * taken.b[path] @ taken.a[path] for path, w in frozen.items()}
    head, biases = {}, {}
    if task.labels is not None:
        weights = dict(model.module.named_parameters())
        head = {HEAD: 2e-5 * torch.randn(weights[HEAD].shape, generator=generator(task.seed))}
        biases = {name: x.detach().clone() for name, x in weights.items() if name.endswith("bias")}
        biases[HEAD.replace("weight", "bias")].zero_()
    parts = [
        {name: x.clone().requires_grad_() for name, x in part.items()} for part in (begin.a, begin.b, head, biases)
    ]
    return Tuned(model, frozen, begin.scale, *parts)


def _rate(k: int) -> float:
    return MIDDLE * 2 ** (k / 2)


def _schedule(step: int, warmup: int) -> float:
    if step <= warmup:
        return step / warmup
    return 0.5 + 0.5 * math.cos(math.pi * (step - 1 - warmup) / (STEPS - warmup))


def _slope(model: Model, start: LowRankAdapter, task: Task) -> float:
    """Norm of the gradient in all B, every A scaled to Frobenius norm 1."""
    net = _tuned(model, (start.replace(a={path: x / x.norm() for path, x in start.a.items()}), None), task)
    labels = None if task.labels is None else task.labels[:256]
    slopes = torch.autograd.grad(net(task.train[:256], labels).mean(), list(net.b.values()))
    return float(torch.stack([slope.norm() for slope in slopes]).norm())


def _starts(model: Model, task: Task) -> dict[str, Start]:
    eva = partial(EVA, RANK, alpha=ALPHA[task.organism], batch_size=N_SVD[task.organism])
    uniform = eva(rho=1.0).fit(model, task.train)
    pissa = _pissa(model, uniform)
    bare: dict[str, Start] = {} if task.labels is None else {BARE: (uniform.replace(a={}, b={}), None)}
    return bare | {
        "EVA": (eva().fit(model, task.train), None),
        "EVA, rho 1": (uniform, None),
        "LoRA": (_random(model, uniform, task.seed, orthonormal=False), None),
        "random orthonormal": (_random(model, uniform, task.seed, orthonormal=True), None),
        "PiSSA": (pissa, pissa.replace(b={path: -b for path, b in pissa.b.items()})),
        CONTROL: (eva().fit(model, task.unrelated), None),
    }


def _random(model: Model, like: LowRankAdapter, seed: int, orthonormal: bool) -> LowRankAdapter:
    """LoRA's own start, uniform in +-1/sqrt(in), or orthonormal rows."""
    rng, a = generator(seed), {}
    for path, x in like.a.items():
        if orthonormal:
            a[path] = torch.linalg.qr(torch.randn(x.T.shape, generator=rng))[0].T.contiguous()
        else:
            a[path] = (2 * torch.rand(x.shape, generator=rng) - 1) / x.shape[1] ** 0.5
    return LowRankAdapter(a=a, b=like.b, scale=like.scale, fingerprint=model.fingerprint)


def _pissa(model: Model, like: LowRankAdapter) -> LowRankAdapter:
    """scale B A = the principal part of W, its singular values shared evenly."""
    a: dict[str, Tensor] = {}
    b: dict[str, Tensor] = {}
    for path, layer in block_linears(model).items():
        left, values, right = torch.linalg.svd(weight_of(layer).detach(), full_matrices=False)
        root = (values[:RANK] / like.scale).sqrt()
        a[path], b[path] = root[:, None] * right[:RANK], left[:, :RANK] * root
    return LowRankAdapter(a=a, b=b, scale=like.scale, fingerprint=model.fingerprint)


def _task(organism: str, seed: int) -> Task:
    n, n_held = N_TRAIN[organism], N_HELD[organism]
    if organism == "lm":
        texts = _reversed_stories(seed, n + n_held)
        return Task(organism, texts[:n], None, texts[n:], None, _facts(seed, n), seed)
    scenes = sh.sample(n + n_held, 9000 + seed, background="any")
    images, labels = sh.modality(scenes, "noise"), scenes.labels("shape")
    unrelated = sh.faces(n, 9000 + seed, size=32).images
    return Task(organism, images[:n], labels[:n], images[n:], labels[n:], unrelated, seed)


def _reversed_stories(seed: int, n: int) -> list[str]:
    """Short stories with the words of each sentence in reverse order."""
    truth, texts, i = World(0).truth, [], 0
    while len(texts) < n:
        words = stories.document(source(9000 + seed, i), truth).text.split()
        i += 1
        if len(words) <= LONGEST:
            sentences = " ".join(words).removesuffix(" .").split(" . ")
            texts.append(" ".join(" ".join(s.split()[::-1]) + " ." for s in sentences))
    return texts


def _facts(seed: int, n: int) -> list[str]:
    truth = World(0).truth
    return [knowledge.facts(source(9000 + seed, i), truth).text for i in range(n)]

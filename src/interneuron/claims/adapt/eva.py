"""Explained variance adaptation of `lm` to a style it has never read, and of `vit` to a texture it has never seen.

The style: stories told with the words of each sentence reversed. The texture: shapes filled with coloured speckle of
full contrast, to be named as before (vit names 4 in 10 of them). A mixture with outlines, the world's other way of
drawing without the textures of vit's training, was tried first and left out: outlines have no texture, and after 100
steps LoRA named fewer than half of the images (1.4 nats of chance's 2.1; EVA 1.5).

Rank-4 adapters on all linear layers inside the blocks; 100 steps of Adam with the schedule of the authors' code
(3 % warm-up, then a cosine to 0) on 256 texts in batches of 4, or 400 images in batches of 8; everything but the start
the same. Compared is the loss of each held-out text after 20 % of the steps with that of LoRA (Kaiming-uniform A); the
control is EVA from activations on unrelated data (statements of facts; for vit drawn faces). PiSSA (the start is the
principal part of W, which is taken out of W) and random orthonormal A are shown beside it.

Rates: on one grid, sqrt(2) apart, each of the six arms has the rate of least mean loss after the last step, as papers
choose theirs, over two fine-tuning sets that play no other part. `search(organism, arm)` finds it: from three rates an
octave apart outwards and between, until the best has worse neighbours on both sides, so that no arm ends on an edge.
`RATES` holds what it found, and the rates of least loss after 20 % of the steps, found alike: early losses under those
are shown as well ("early, tuned early") and decide nothing.

Readings of the check: standard errors are those of the paired differences of the held-out texts or images. Gradients
are compared with the A of each layer scaled to one Frobenius norm, at uniform ranks (rho = 1). Every criterion is
asked of both organisms. The comparison with peft is a unit test, skipped where it is not installed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean, stdev

import torch
from torch import Tensor

from interneuron.adapt.eva import EVA
from interneuron.artifacts.low_rank_adapter import LowRankAdapter
from interneuron.claims import Claim, Comparison
from interneuron.core.seeds import generator
from interneuron.loading import load
from interneuron.model.model import Model
from interneuron.organisms import shapes as sh
from interneuron.organisms.tinyworld import World, knowledge, stories
from interneuron.organisms.tinyworld.document import source
from interneuron.parts.adapter_training import train_adapter
from interneuron.parts.importance import losses
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
        "On lm the claim holds, but for one run: EVA's loss after 20 % of the steps is 0.80 to 0.972 of LoRA's (4.63 "
        "against 5.07), and 0.74 to 0.968 with every arm's rate chosen by the early loss (at 0.74 LoRA's rate proves "
        "too high, 6.50); the two rules agree. With statements of facts instead of the texts a tenth of that gain is "
        "left (5.03). The last losses, 1.5 to 2.3 against LoRA's 3.3 to 4.6, come while LoRA has barely left the "
        "plateau near 5 nats, so they tell when a start leaves it, not where it ends; random orthonormal A left it "
        "early under one seed of five and ended lower (1.66 against 1.78), which missed that criterion. On vit nothing "
        "is won: early losses of 0.81, 0.82, 1.01, 1.10 and 1.12 times LoRA's vary from run to run more than any gain, "
        "though B's first gradient is 3.4 to 5.1 times as large; the last loss is above LoRA's (1.17 against 1.11, by "
        "more than 1 standard error under three seeds of five), and under one seed EVA from faces was ahead early."
    ),
)

RANK, STEPS, EARLY, WARMUP = 4, 100, 20, 3
BATCH = {"lm": 4, "vit": 8}
N_TRAIN = {"lm": 256, "vit": 400}
N_CHOICE = {"lm": 64, "vit": 200}
N_TEST = {"lm": 128, "vit": 300}
LONGEST = 30
DRAWS = (500, 501)
"""Seeds of the fine-tuning sets on which the rates are chosen."""

MIDDLE = 0.008
"""A rate is this times 2^(k / 2); the search begins at k = -2, 0, 2."""

RATES: dict[str, dict[str, tuple[int, int]]] = {
    "lm": {
        "EVA": (1, 3),
        "EVA, rho 1": (1, 2),
        "LoRA": (1, 4),
        "random orthonormal": (1, 2),
        "PiSSA": (0, 1),
        "EVA, unrelated": (1, 2),
    },
    "vit": {
        "EVA": (-1, -2),
        "EVA, rho 1": (-1, -2),
        "LoRA": (-2, 0),
        "random orthonormal": (0, -1),
        "PiSSA": (-4, -3),
        "EVA, unrelated": (-2, -1),
    },
}
"""k of each arm: of least loss after the last step, and after 20 % of the steps."""

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
    draws = [_task(organism, seed, N_CHOICE[organism]) for seed in DRAWS]
    starts = [_starts(model, task)[arm] for task in draws]
    final: dict[int, float] = {}
    early: dict[int, float] = {}

    def measure(k: int, steps: int) -> None:
        found = [_train(model, start, task, k, steps) for start, task in zip(starts, draws, strict=True)]
        early[k] = fmean(fmean(x[0]) for x in found)
        if steps == STEPS:
            final[k] = fmean(fmean(x[-1]) for x in found)

    _climb(final, lambda k: measure(k, STEPS))
    _climb(early, lambda k: measure(k, EARLY))
    return final, early


def _climb(known: dict[int, float], measure: Callable[[int], None]) -> None:
    """Measure until the best is between two that are worse."""
    wanted = [k for k in (-2, 0, 2) if k not in known]
    while True:
        for k in wanted:
            measure(k)
        best = min(known, key=known.__getitem__)
        wanted = [k for k in (best - 1, best + 1) if k not in known]
        if not wanted:
            return


def _organism(organism: str, seed: int) -> tuple[dict[str, list[float]], dict[str, bool], dict[str, float]]:
    """Early losses of every arm, the criteria, and the numbers behind them."""
    model = load(organism)
    task = _task(organism, seed, N_TEST[organism])
    starts = _starts(model, task)
    early, final, tuned = {}, {}, {}
    for arm, start in starts.items():
        k, k_early = RATES[organism][arm]
        early[arm], final[arm] = _train(model, start, task, k, STEPS)
        tuned[arm] = early[arm] if k == k_early else _train(model, start, task, k_early, EARLY)[0]
    eva = starts["EVA"][0]
    ours, base = (_slope(model, starts[arm][0], task) for arm in ("EVA, rho 1", "LoRA"))
    plain = _held(model, None, task)
    mean = {arm: fmean(values) for arm, values in early.items()}
    gates = {
        "loss after 20 % of the steps is at most 0.97 times LoRA's": mean["EVA"] <= 0.97 * mean["LoRA"],
        "activations on unrelated data reduce the early gain": mean["EVA, unrelated"] > mean["EVA"],
        "final loss is at most 1 standard error above LoRA's": _not_worse(final["EVA"], final["LoRA"]),
        "final loss is at most 1 standard error above that of random orthonormal A": _not_worse(
            final["EVA"], final["random orthonormal"]
        ),
        "gradient norm of B at step 0 is >= 1.3 times LoRA's at equal |A|": ours >= 1.3 * base,
        "outputs at step 0 are those of the model, bit for bit": _held(model, eva, task) == plain,
        "ranks sum to the budget": sum(eva.ranks.values()) == RANK * len(starts["LoRA"][0].ranks),
    }
    extra = {
        "loss before": fmean(plain),
        "gradient norm over LoRA's": ours / base,
        "largest rank": max(eva.ranks.values()),
        "early, EVA over LoRA": mean["EVA"] / mean["LoRA"],
        "early, tuned early, EVA over LoRA": fmean(tuned["EVA"]) / fmean(tuned["LoRA"]),
        **{f"early, {arm}": value for arm, value in mean.items()},
        **{f"early, tuned early, {arm}": fmean(values) for arm, values in tuned.items()},
        **{f"final, {arm}": fmean(values) for arm, values in final.items()},
        **{f"rate, {arm}": _rate(RATES[organism][arm][0]) for arm in starts},
        **{f"rate, tuned early, {arm}": _rate(RATES[organism][arm][1]) for arm in starts},
    }
    return early, gates, extra


def _train(model: Model, start: Start, task: Task, k: int, steps: int) -> list[list[float]]:
    """Losses of the held-out data after 20 % of the steps and after the last one."""
    found: list[list[float]] = []
    begin, taken = start

    def look(step: int, adapter: LowRankAdapter) -> None:
        if step in (EARLY, STEPS):
            found.append(_held(model, adapter, task))

    with model.edit(*([] if taken is None else [taken.edit()])):
        train_adapter(
            model,
            begin,
            task.train,
            task.labels,
            steps=steps,
            lr=_rate(k),
            batch_size=BATCH[task.organism],
            seed=task.seed,
            after_step=look,
            schedule=_schedule,
        )
    return found


def _rate(k: int) -> float:
    return MIDDLE * 2 ** (k / 2)


def _schedule(step: int) -> float:
    if step <= WARMUP:
        return step / WARMUP
    return 0.5 + 0.5 * math.cos(math.pi * (step - 1 - WARMUP) / (STEPS - WARMUP))


def _held(model: Model, adapter: LowRankAdapter | None, task: Task) -> list[float]:
    with torch.no_grad(), model.edit(*([] if adapter is None else [adapter.edit()])):
        return losses(model, task.held, task.held_labels).tolist()


def _not_worse(ours: list[float], other: list[float]) -> bool:
    gaps = [a - b for a, b in zip(ours, other, strict=True)]
    return fmean(gaps) <= stdev(gaps) / len(gaps) ** 0.5


def _slope(model: Model, start: LowRankAdapter, task: Task) -> float:
    """Norm of the gradient in all B, every A scaled to Frobenius norm 1."""
    a = {path: x / x.norm() for path, x in start.a.items()}
    b = {path: x.clone().requires_grad_() for path, x in start.b.items()}
    with torch.enable_grad(), model.edit(start.replace(a=a, b=b).edit()):
        slopes = torch.autograd.grad(losses(model, task.train, task.labels).mean(), list(b.values()))
    return float(torch.stack([slope.norm() for slope in slopes]).norm())


def _starts(model: Model, task: Task) -> dict[str, Start]:
    uniform = EVA(RANK, rho=1.0).fit(model, task.train)
    pissa = _pissa(model, uniform)
    return {
        "EVA": (EVA(RANK).fit(model, task.train), None),
        "EVA, rho 1": (uniform, None),
        "LoRA": (_random(model, uniform, task.seed, orthonormal=False), None),
        "random orthonormal": (_random(model, uniform, task.seed, orthonormal=True), None),
        "PiSSA": (pissa, pissa.replace(b={path: -b for path, b in pissa.b.items()})),
        "EVA, unrelated": (EVA(RANK).fit(model, task.unrelated), None),
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
    """B A = the principal part of W, its singular values shared evenly."""
    a: dict[str, Tensor] = {}
    b: dict[str, Tensor] = {}
    for path, layer in block_linears(model).items():
        left, values, right = torch.linalg.svd(weight_of(layer).detach(), full_matrices=False)
        root = values[:RANK].sqrt()
        a[path], b[path] = root[:, None] * right[:RANK], left[:, :RANK] * root
    return LowRankAdapter(a=a, b=b, scale=like.scale, fingerprint=model.fingerprint)


def _task(organism: str, seed: int, n_held: int) -> Task:
    n = N_TRAIN[organism]
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

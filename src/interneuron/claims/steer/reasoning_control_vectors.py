"""Reasoning control vectors: a vector from solved tasks raises the accuracy of others.

The paper's three kinds of reasoning, each at a state of 30 to 85 % accuracy. Inductive and deductive: `lm-mid`, `lm` in
the middle of its training, names the right one of two people (IOI) and takes the next step of a deduction about two
times in three. Mathematical: `lm-small`, a sibling of `lm` with a quarter of its parameters, solves problems of four
steps, the longest of its training texts, asked plainly and `briefly` in equal numbers. Asked plainly it spells the
steps out and loses its place, asked briefly it writes them short and is mostly right: less than half in all.

Vectors are fitted on 200 tasks, layer and alpha are chosen on 200 others, and 500 more give the numbers (names and
problems held out from training). Where one word answers, the texts are the tasks with their right and their wrong
answers and accuracy is that of the likeliest next word; where the model writes its solution, they are the tasks that it
solves against as many that it does not, and accuracy is that of the number that ends its greedy solution. The headline
is the change of accuracy per item on the task that gained most while choosing. Three random vectors of equal norm, each
tuned in the same way, are averaged item by item; a vector fitted with shuffled labels is tuned in the same way too.

Deviations from the check: arithmetic, the paper's third task, is added, since a constant shift does nothing for the
other two here (their numbers are in the result), and it runs on a sibling, since `lm-base` solves these problems either
way and `lm-mid` in neither way more than a third of them. Solutions are read at the end of their prompt, where the
model settles how to solve. Two layers (the middle of `lm-mid`, the second half of `lm-small`) and twelve strengths up
to 3 instead of the paper's twenty up to 1: what sets solved tasks apart has a fifth of the length of a state or less.
Deduction is tested one step at a time, since at this age the model does not follow a chain (its yes or no is a guess).

What the gain is: the state of solving is that of writing the short form. The vector turns the plain question into it;
it teaches no arithmetic.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interneuron.claims import Claim, Comparison
from interneuron.core.seeds import generator, numpy_rng
from interneuron.loading import load
from interneuron.model.model import Model
from interneuron.organisms import tinyworld as tw
from interneuron.organisms.tinyworld.tasks import Task
from interneuron.parts.steering_sweep import answer_log_probs, is_right, sweep_alpha
from interneuron.steer.reasoning_control_vectors import ControlVectors, ReasoningVector, reading_vector

CLAIM = Claim(
    slug="reasoning_control_vectors",
    organism="lm-small",
    paper="vectors raise the accuracy of Mistral-7B-Instruct and Pythia on three reasoning tasks, to a degree",
    better="higher",
    unit="change of accuracy",
    minutes=15.0,
    why=(
        "By arithmetic alone, +15 to +23 points, because there the state of solving is a way of writing: the vector "
        "turns plain questions, which the model spells out and loses, into the short form it masters, and the "
        "opposite strength turns short requests into lost ones (-32 to -38). IOI (-0.8 to -0.2) and steps of "
        "deduction (-0.2 to +1.2) do not gain. Of nine random vectors, each tuned in the same way, one gained 13.6 "
        "points by the same door, eight -2.4 to +2.6: compared is the mean of the three of a seed; against that one "
        "alone the gate of 2 points would have failed. The vector of shuffled labels is not brought to the length "
        "of ours, as the random ones are."
    ),
)

TASKS: dict[str, dict[str, Any]] = {
    "arithmetic": {"mode": "verbose", "steps": 4},
    "ioi": {},
    "ontology": {"form": "step", "hops": 2},
}
ORGANISMS = {"arithmetic": "lm-small", "ioi": "lm-mid", "ontology": "lm-mid"}
SITES = ("layers.2.resid_post", "layers.3.resid_post")
ALPHAS = (-3.0, -2.5, -2.0, -1.5, -1.0, -0.5, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
N_FIT, N_CHOOSE, N_TEST, N_RANDOM = 200, 200, 500, 3
N_NEW, BATCH = 96, 250


@dataclass(frozen=True)
class Chosen:
    """A vector with the site and strength that were best on the choosing tasks."""

    vectors: ControlVectors
    site: str
    alpha: float
    gain: float

    def edit(self, sign: float = 1.0) -> Any:
        """The edit of the chosen strength, or of the opposite one."""
        return self.vectors.edit(sign * self.alpha, self.site)


def claim(seed: int) -> Comparison:
    """Fit and choose on three tasks, test on the one that gained most."""
    models = {name: load(organism) for name, organism in ORGANISMS.items()}
    texts = {name: _texts(models[name], _task(name, N_FIT, seed, 0)) for name in TASKS}
    found = {
        name: _choose(models[name], ReasoningVector(sites=SITES).fit(models[name], *texts[name]), name, seed)
        for name in TASKS
    }
    best = max(found, key=lambda name: found[name].gain)
    model, ours = models[best], found[best]
    tests = {name: _task(name, N_TEST, seed, 2) for name in TASKS}
    base = {name: _right(models[name], tests[name], None) for name in TASKS}
    gains = {name: _right(models[name], tests[name], found[name].edit()) - base[name] for name in TASKS}
    task = tests[best]
    noise: list[Any] = [ours.vectors.random_like(100 * seed + k) for k in range(N_RANDOM)]
    randoms = [_choose(model, vectors, best, seed) for vectors in noise]
    random = torch.stack([_right(model, task, one.edit()) - base[best] for one in randoms])
    shuffled = _choose(model, _shuffled(model, *texts[best], seed), best, seed)
    control = _right(model, task, shuffled.edit()) - base[best]
    opposite = _points(_right(model, task, ours.edit(-1.0)) - base[best])
    small, ids = task.prompts[:60], task.answer_ids[:60]
    rows = sweep_alpha(model, lambda a: ours.vectors.edit(a, ours.site), [0.0, ours.alpha], small, ids).tables["sweep"]
    still = answer_log_probs(model, small, ours.edit(0.0))
    points = {"ours": _points(gains[best]), "random": _points(random), "shuffled": _points(control)}
    return Comparison(
        ours=gains[best].tolist(),
        baseline=random.mean(0).tolist(),
        control=control.tolist(),
        gates={
            "test accuracy is at least 3 points above the base": points["ours"] >= 3,
            "test accuracy is at least 2 points above the random vector's": points["ours"] >= points["random"] + 2,
            "KL and entropy change by exactly 0 at alpha = 0": torch.equal(still, answer_log_probs(model, small)),
            "the opposite strength lowers accuracy": opposite < 0,
        },
        extra={
            "task": best, "site": ours.site, "alpha": ours.alpha, "points opposite": opposite,
            **{f"points {arm}": value for arm, value in points.items()},
            **{f"points random {k}": _points(one) for k, one in enumerate(random)},
            **{f"{name} base accuracy": float(right.mean()) for name, right in base.items()},
            **{f"{name} points": _points(gain) for name, gain in gains.items()},
            "kl": rows[1]["kl"], "entropy": rows[1]["entropy"], "entropy at 0": rows[0]["entropy"],
        },
    )  # fmt: skip


def example(model: Model) -> ControlVectors:
    """Vectors from a few tasks."""
    return ReasoningVector(sites=SITES).fit(model, *_answered(_task("ioi", 8, 0, 0)))


def tensors(n: int, width: int, seed: int) -> dict[str, Tensor]:
    """Two groups of `n` rows."""
    g = generator(seed)
    return {"positive": 1 + torch.randn(n, width, generator=g), "negative": torch.randn(n, width, generator=g)}


def apply(positive: Tensor, negative: Tensor) -> Tensor:
    """The contrast vector of activations that have been read already."""
    return reading_vector("contrast", positive, negative)


def _task(name: str, n: int, seed: int, part: int) -> Task:
    """Tasks for fitting (part 0), choosing (1) and testing (2); the last have names and problems held out."""
    source: dict[str, Any] = {"n": n, "seed": 1000 * part + seed, "split": "test" if part == 2 else "train"}
    task = tw.task(name, **source, **TASKS[name])
    if name != "arithmetic":
        return task
    brief = tw.task(name, **source, **TASKS[name], briefly=True).items  # the same problems, asked briefly
    return Task(name, [brief[i] if i % 2 else item for i, item in enumerate(task.items)], TASKS[name])


def _texts(model: Model, task: Task) -> tuple[list[str], list[str]]:
    """Positives and negatives, as many of each."""
    if task.name != "arithmetic":
        return _answered(task)
    right = _right(model, task, None).bool().tolist()
    solved = [prompt for prompt, ok in zip(task.prompts, right, strict=True) if ok]
    failed = [prompt for prompt, ok in zip(task.prompts, right, strict=True) if not ok]
    n = min(len(solved), len(failed))
    return solved[:n], failed[:n]


def _answered(task: Task) -> tuple[list[str], list[str]]:
    """The prompts with their right and with their wrong answers."""
    pairs = list(zip(task.prompts, task.answers, task.wrong, strict=True))
    return [f"{prompt} {right}" for prompt, right, _ in pairs], [f"{prompt} {wrong}" for prompt, _, wrong in pairs]


def _shuffled(model: Model, positive: list[str], negative: list[str], seed: int) -> ControlVectors:
    """The vectors after each pair has lost its labels to a coin."""
    swap = numpy_rng(seed, "reasoning_control_vectors").random(len(positive)) < 0.5
    pairs = [(b, a) if s else (a, b) for a, b, s in zip(positive, negative, swap, strict=True)]
    return ReasoningVector(sites=SITES).fit(model, [a for a, _ in pairs], [b for _, b in pairs])


def _choose(model: Model, vectors: ControlVectors, name: str, seed: int) -> Chosen:
    """The site and strength under which most of the choosing tasks are solved."""
    task = _task(name, N_CHOOSE, seed, 1)
    base = float(_right(model, task, None).mean())
    trials = [
        Chosen(vectors, site, alpha, float(_right(model, task, vectors.edit(alpha, site)).mean()) - base)
        for site in SITES
        for alpha in ALPHAS
    ]
    return max(trials, key=lambda trial: trial.gain)


def _right(model: Model, task: Task, edit: Any) -> Tensor:
    """1 or 0 per item: is the likeliest next word, or the number that ends a written solution, the right one?"""
    if task.name != "arithmetic":
        return is_right(answer_log_probs(model, task.prompts, edit, BATCH), task.answer_ids).float()
    texts: list[str] = []
    with nullcontext() if edit is None else model.edit(edit):
        for start in range(0, len(task), BATCH):
            texts += model.generate(task.prompts[start : start + BATCH], max_new_tokens=N_NEW, do_sample=False)
    return torch.tensor([_result(text) == answer for text, answer in zip(texts, task.answers, strict=True)]).float()


def _result(text: str) -> str:
    """The number that ends a finished solution: `the result is 7 .` or `= 7 .`, else nothing."""
    words = text.split()
    return words[-2] if words[-1] == "." and words[-3] in ("is", "=") else ""


def _points(change: Tensor) -> float:
    return 100 * float(change.mean())

"""Reasoning control vectors on `lm-mid`: a vector from solved tasks raises the accuracy of others.

`lm-mid` is `lm` in the middle of its training: it names the right one of two people (IOI) three times in four and takes
the next step of a deduction two times in three. Vectors are fitted on 200 tasks with their right and their wrong
answers, layer, kind of vector and alpha are chosen on 200 others, and 500 more give the numbers, accuracy being that of
the likeliest next word. A random vector of equal norm and a vector fitted with shuffled labels are tuned in the same
way. The headline is the change of accuracy per item on the task that gained most while choosing.

Deviations from the check, for time: two of the six layers and six strengths of the paper's grid of twenty. Deduction is
tested one step at a time, since at this age the model does not follow a chain (its yes or no is a guess).
"""

from __future__ import annotations

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
    organism="lm-mid",
    paper="vectors raise the accuracy of Mistral-7B-Instruct and Pythia on three reasoning tasks, to a degree",
    better="higher",
    unit="change of accuracy",
    minutes=4.0,
    why="Accuracy changes by -0.4 to +0.8 points, no more than under random vectors; alpha = 0 changes nothing; the "
    "opposite strength costs accuracy under two seeds of three, by under a point. At this age the model fails where "
    "it cannot copy the right word, which a constant shift of its state does not repair; there seems to be no state of "
    "solving to restore. Tried on development seeds: reading, contrast and principal-component vectors, solved against "
    "unsolved tasks, layers 1 to 4, strengths up to 3, direct deduction (where the model guesses) and single steps.",
)

TASKS: dict[str, dict[str, Any]] = {"ioi": {}, "ontology": {"form": "step", "hops": 2}}
SITES = ("layers.1.resid_post", "layers.2.resid_post")
ALPHAS = (-1.0, -0.5, -0.25, 0.25, 0.5, 1.0)
N_FIT, N_CHOOSE, N_TEST = 200, 200, 500


@dataclass(frozen=True)
class Chosen:
    """A vector with the site and strength that were best on the choosing tasks."""

    vectors: ControlVectors
    site: str
    alpha: float
    gain: float


def claim(seed: int) -> Comparison:
    """Fit and choose on two tasks, test on the one that gained more."""
    model = load(CLAIM.organism)
    found = {name: _choose_all(model, name, seed) for name in TASKS}
    best = max(found, key=lambda name: found[name]["ours"].gain)
    chosen, task = found[best], _task(best, N_TEST, seed, 2)
    ours = chosen["ours"]
    base = _right(model, task, None)
    after = {arm: _right(model, task, pick.vectors.edit(pick.alpha, pick.site)) - base for arm, pick in chosen.items()}
    opposite = _right(model, task, ours.vectors.edit(-ours.alpha, ours.site)) - base
    points = {arm: 100 * float(change.mean()) for arm, change in after.items()}
    small, ids = task.prompts[:60], task.answer_ids[:60]
    rows = sweep_alpha(model, lambda a: ours.vectors.edit(a, ours.site), [0.0, ours.alpha], small, ids).tables["sweep"]
    still = answer_log_probs(model, small, ours.vectors.edit(0.0, ours.site))
    return Comparison(
        ours=after["ours"].tolist(),
        baseline=after["random"].tolist(),
        control=after["shuffled"].tolist(),
        gates={
            "test accuracy is at least 3 points above the base": points["ours"] >= 3,
            "test accuracy is at least 2 points above the random vector's": points["ours"] >= points["random"] + 2,
            "KL and entropy change by exactly 0 at alpha = 0": torch.equal(still, answer_log_probs(model, small)),
            "the opposite strength lowers accuracy": float(opposite.mean()) < 0,
        },
        extra={
            "task": best, "site": ours.site, "alpha": ours.alpha, "base accuracy": float(base.mean()),
            **{f"points {arm}": value for arm, value in points.items()},
            "points opposite": 100 * float(opposite.mean()),
            "kl": rows[1]["kl"], "entropy": rows[1]["entropy"], "entropy at 0": rows[0]["entropy"],
        },
    )  # fmt: skip


def example(model: Model) -> ControlVectors:
    """Vectors from a few tasks."""
    task = _task("ioi", 8, 0, 0)
    return ReasoningVector(sites=SITES).fit(model, *_solved(task))


def tensors(n: int, width: int, seed: int) -> dict[str, Tensor]:
    """Two groups of `n` rows."""
    g = generator(seed)
    return {"positive": 1 + torch.randn(n, width, generator=g), "negative": torch.randn(n, width, generator=g)}


def apply(positive: Tensor, negative: Tensor) -> Tensor:
    """The contrast vector of activations that have been read already."""
    return reading_vector("contrast", positive, negative)


def _task(name: str, n: int, seed: int, part: int) -> Task:
    """Tasks for fitting (part 0), choosing (1) and testing (2); the last have names and templates held out."""
    return tw.task(name, n=n, seed=1000 * part + seed, split="test" if part == 2 else "train", **TASKS[name])


def _solved(task: Task) -> tuple[list[str], list[str]]:
    """The prompts with their right and with their wrong answers."""
    pairs = list(zip(task.prompts, task.answers, task.wrong, strict=True))
    return [f"{prompt} {right}" for prompt, right, _ in pairs], [f"{prompt} {wrong}" for prompt, _, wrong in pairs]


def _choose_all(model: Model, name: str, seed: int) -> dict[str, Chosen]:
    """Ours, the random vector and the vector of shuffled labels, each with its best site and strength."""
    right, wrong = _solved(_task(name, N_FIT, seed, 0))
    swap = numpy_rng(seed, "reasoning_control_vectors").random(N_FIT) < 0.5
    pairs = [(b, a) if s else (a, b) for a, b, s in zip(right, wrong, swap, strict=True)]
    fitter, task = ReasoningVector(sites=SITES), _task(name, N_CHOOSE, seed, 1)
    ours = fitter.fit(model, right, wrong)
    shuffled = fitter.fit(model, [a for a, _ in pairs], [b for _, b in pairs])
    arms: dict[str, Any] = {"ours": ours, "random": ours.random_like(seed), "shuffled": shuffled}
    base = _right(model, task, None).mean()
    return {arm: _choose(model, vectors, task, float(base)) for arm, vectors in arms.items()}


def _choose(model: Model, vectors: ControlVectors, task: Task, base: float) -> Chosen:
    trials = [
        Chosen(vectors, site, alpha, float(_right(model, task, vectors.edit(alpha, site)).mean()) - base)
        for site in SITES
        for alpha in ALPHAS
    ]
    return max(trials, key=lambda trial: trial.gain)


def _right(model: Model, task: Task, edit: Any) -> Tensor:
    return is_right(answer_log_probs(model, task.prompts, edit, 100), task.answer_ids).float()

"""`continual`: streams of tasks on handwritten digits, and schedules that say how much of each old task to rehearse.

kind "permute"  the same ten digits, the pixels of task j shuffled in task j's own way (domain-incremental)
kind "class"    two new digits a task, five tasks (class-incremental)
kind "domain"   the same digits under five changes: plain, inverted, rotated, blurred, noisy

Equations. A task of age a weighs a^-rate (power), e^(-rate a) (exponential), 1 (uniform), 1 for a = 1 only (recent),
a^rate (oldest first), nothing (none); weights of a phase are scaled to 1 and to the same budget for every schedule.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from interneuron.core.errors import InputError, did_you_mean
from interneuron.organisms.digits import digits

KINDS = ("permute", "class", "domain")
SCHEDULES = ("power", "exponential", "uniform", "recent", "oldest", "none")
DOMAINS = ("plain", "inverted", "rotated", "blurred", "noisy")


@dataclass(frozen=True)
class Task:
    """x Float[n 1 8 8], y Int[n] and the same held out."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


@dataclass(frozen=True)
class Stream:
    """Tasks in order. truth: permutations Int[tasks 64] (permute), classes Bool[tasks 10]."""

    kind: str
    tasks: tuple[Task, ...]
    truth: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.tasks)

    def accuracy(self, predict: object, upto: int | None = None) -> Tensor:
        """Accuracy on the held-out part of every task so far: `predict` maps Float[n 1 8 8] to logits."""
        with torch.no_grad():
            scores = [(predict(t.x_test).argmax(1) == t.y_test).float().mean() for t in self.tasks[:upto]]  # type: ignore[operator]
        return torch.stack(scores)


def make(seed: int, *, kind: str = "permute", tasks: int | None = None) -> Stream:
    """A stream: ten permutations, five pairs of classes or five domains (`tasks` of the first; fewer of the others)."""
    if kind not in KINDS:
        raise InputError(f"continual has no stream {kind!r}; expected {', '.join(KINDS)}.{did_you_mean(kind, KINDS)}")
    most = {"permute": 100, "class": 5, "domain": len(DOMAINS)}[kind]
    count = (10 if kind == "permute" else 5) if tasks is None else tasks
    if not 1 <= count <= most:
        raise InputError(f"continual {kind!r} has 1 to {most} tasks, got {count}.")
    train, test = digits("train", seed=seed), digits("test", seed=seed)
    rng = torch.Generator().manual_seed(seed)
    order = torch.randperm(10, generator=rng)
    permutations = torch.stack([torch.arange(64), *(torch.randperm(64, generator=rng) for _ in range(count - 1))])
    built, classes = [], torch.ones(count, 10, dtype=torch.bool)
    for j in range(count):
        if kind == "permute":
            parts = [(d.flat[:, permutations[j]].reshape(-1, 1, 8, 8), d.labels) for d in (train, test)]
        elif kind == "domain":
            parts = [(_domain(DOMAINS[j], d.images, rng), d.labels) for d in (train, test)]
        else:
            chosen = order[2 * j : 2 * j + 2]
            classes[j] = torch.isin(torch.arange(10), chosen)
            kept = [torch.isin(d.labels, chosen) for d in (train, test)]
            parts = [(d.images[k], d.labels[k]) for d, k in zip((train, test), kept, strict=True)]
        built.append(Task(*parts[0], *parts[1]))
    truth = {"classes": classes} | ({"permutations": permutations} if kind == "permute" else {"order": order})
    return Stream(kind, tuple(built), truth)


def _domain(name: str, images: Tensor, rng: torch.Generator) -> Tensor:
    if name == "inverted":
        return 1 - images
    if name == "rotated":
        return images.rot90(1, (2, 3))
    if name == "blurred":
        return F.avg_pool2d(images, 3, stride=1, padding=1)
    if name == "noisy":
        return (images + 0.3 * torch.randn(images.shape, generator=rng)).clamp(0, 1)
    return images


def weights(schedule: str, phase: int, rate: float = 1.0) -> Tensor:
    """Shares of the rehearsal budget of each earlier task in phase 0, 1, ...: Float[phase], sum 1 (none: 0)."""
    if schedule not in SCHEDULES:
        raise InputError(
            f"no schedule {schedule!r}; expected {', '.join(SCHEDULES)}.{did_you_mean(schedule, SCHEDULES)}"
        )
    age = phase - torch.arange(phase, dtype=torch.float64)
    raw = {
        "power": age**-rate, "exponential": torch.exp(-rate * age), "uniform": torch.ones(phase, dtype=torch.float64),
        "recent": (age == 1).double(), "oldest": age**rate, "none": torch.zeros(phase, dtype=torch.float64),
    }[schedule]  # fmt: skip
    return raw / raw.sum().clamp_min(1e-300)


def rehearsal(stream: Stream, phase: int, budget: int, seed: int, schedule: str = "power", rate: float = 1.0) -> Tensor:
    """Which old samples to rehearse: Int[M 2] of (task, row), whole numbers nearest to the shares, random rows."""
    rng = torch.Generator().manual_seed(seed)
    counts = (budget * weights(schedule, phase, rate)).round().long().tolist()
    rows = []
    for task, count in enumerate(counts):
        size = len(stream.tasks[task].y)
        picked = torch.randint(size, (count,), generator=rng)
        rows.append(torch.stack([torch.full((count,), task), picked], 1))
    return torch.cat(rows) if rows else torch.zeros(0, 2, dtype=torch.int64)


def revisits(n_tasks: int, steps: int, seed: int, rate: float = 1.0) -> Tensor:
    """An environment that comes back: Int[steps] tasks; P(task) falls as (time since it was last seen)^-rate.

    The first `n_tasks` steps show each task once, in order.
    """
    if n_tasks < 2 or steps < n_tasks:
        raise InputError(f"revisits() needs n_tasks >= 2 and steps >= n_tasks, got {n_tasks} and {steps}.")
    rng = torch.Generator().manual_seed(seed)
    seen = torch.arange(n_tasks, dtype=torch.float64)
    out = list(range(n_tasks))
    for t in range(n_tasks, steps):
        odds = (t - seen) ** -rate
        task = int(torch.multinomial(odds, 1, generator=rng))
        seen[task] = t
        out.append(task)
    return torch.tensor(out)

"""`nas_cells`: every network of a small search space, trained once: a complete table to test searchers against.

Space "cell" (125)  three nodes, edges 0-1, 0-2, 1-2, each zero, skip, conv1, conv3 or pool; a node sums what comes in;
                    stem, the cell at 8 channels, a stride-2 block, the cell at 16 channels, pool, linear
Space "chain" (256) four layers in a row, each conv3, conv1, separable or pool; the second halves the resolution
Space "width" (64)  three blocks with 8, 16, 24 or 32 channels each

Truth. canonical Int[A] (cells that compute the same function share a number), parameters and flops Int[A].
Table. accuracy Float[A seeds epochs] on held-out digits, filled on first use and cached.
Source. Dong, Yang 2020 (NAS-Bench-201), cut down to three nodes and 8x8 digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from interneuron.core.errors import InputError, did_you_mean
from interneuron.organisms.digits import digits

from .cache import Trained, cached
from .nets import seeded

CELL_OPS = ("zero", "skip", "conv1", "conv3", "pool")
CHAIN_OPS = ("conv3", "conv1", "separable", "pool")
WIDTHS = (8, 16, 24, 32)
SPACES: dict[str, tuple[tuple[Any, ...], int]] = {"cell": (CELL_OPS, 3), "chain": (CHAIN_OPS, 4), "width": (WIDTHS, 3)}


@dataclass(frozen=True)
class Space:
    """All architectures of a space, in the order of `itertools.product`; `truth` is known without training."""

    name: str
    architectures: tuple[tuple[Any, ...], ...]
    order: Tensor  # a random order of the architectures that belongs to the seed: for searchers that need one

    def __len__(self) -> int:
        return len(self.architectures)

    def module(self, index: int, seed: int = 0) -> nn.Module:
        """The untrained network: Float[N 1 8 8] -> Float[N 10]."""
        with seeded(seed):
            return network(self.name, self.architectures[index])

    @cached_property
    def truth(self) -> dict[str, Tensor]:
        keys = [canonical(a) if self.name == "cell" else repr(a) for a in self.architectures]
        number = {key: i for i, key in enumerate(dict.fromkeys(keys))}
        with seeded(0):
            nets = [network(self.name, a) for a in self.architectures]
        return {
            "canonical": torch.tensor([number[k] for k in keys]),
            "parameters": torch.tensor([sum(p.numel() for p in net.parameters()) for net in nets]),
            "flops": torch.tensor([_flops(net) for net in nets]),
        }


def make(seed: int, *, space: str = "cell") -> Space:
    """A search space and a random order of its members."""
    if space not in SPACES:
        raise InputError(
            f"nas_cells has no space {space!r}; expected {', '.join(SPACES)}.{did_you_mean(space, SPACES)}"
        )
    ops, places = SPACES[space]
    members = tuple(product(ops, repeat=places))
    return Space(space, members, torch.randperm(len(members), generator=torch.Generator().manual_seed(seed)))


def canonical(cell: tuple[str, str, str]) -> str:
    """The function of a cell (edges 0-1, 0-2, 1-2) as an expression: zeros dropped, skips collapsed, sums sorted."""

    def apply(op: str, terms: list[str]) -> list[str]:
        if op == "zero" or not terms:
            return []
        # an op with weights has its own in every place, so its sum of inputs stays inside
        return terms if op == "skip" else [f"{op}({'+'.join(sorted(terms))})"]

    first = apply(cell[0], ["x"])
    return "+".join(sorted([*apply(cell[1], ["x"]), *apply(cell[2], first)])) or "0"


def _operation(op: str, c_in: int, c_out: int) -> nn.Module:
    if op == "skip" and c_in == c_out:
        return nn.Identity()
    if op == "pool":
        pool: nn.Module = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
        return pool if c_in == c_out else nn.Sequential(pool, nn.Conv2d(c_in, c_out, 1, bias=False))
    if op == "separable":
        layers = [nn.Conv2d(c_in, c_in, 3, 1, 1, groups=c_in, bias=False), nn.Conv2d(c_in, c_out, 1, bias=False)]
        return nn.Sequential(nn.ReLU(), *layers, nn.BatchNorm2d(c_out))
    kernel = 1 if op == "conv1" else 3
    return nn.Sequential(nn.ReLU(), nn.Conv2d(c_in, c_out, kernel, 1, kernel // 2, bias=False), nn.BatchNorm2d(c_out))


class Cell(nn.Module):
    """Three nodes; a zero edge has no module."""

    def __init__(self, ops: tuple[str, str, str], channels: int) -> None:
        super().__init__()
        self.edges = nn.ModuleDict(
            {
                name: _operation(op, channels, channels)
                for name, op in zip(("01", "02", "12"), ops, strict=True)
                if op != "zero"
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        none = torch.zeros_like(x)
        middle = self.edges["01"](x) if "01" in self.edges else none
        # a zero node stays zero through pooling and skips; a convolution's norm would lift it, so it is skipped too
        late = self.edges["12"](middle) if "12" in self.edges and "01" in self.edges else none
        return (self.edges["02"](x) if "02" in self.edges else none) + late


def network(space: str, architecture: tuple[Any, ...]) -> nn.Sequential:
    """The network of one architecture."""
    stem: list[nn.Module] = [nn.Conv2d(1, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)]
    body: list[nn.Module]
    if space == "cell":
        body = [
            Cell(architecture, 8),
            nn.Conv2d(8, 16, 3, 2, 1, bias=False),
            nn.BatchNorm2d(16),
            Cell(architecture, 16),
        ]
        width = 16
    elif space == "chain":
        width = 16
        sizes = (8, 8, 16, 16, 16)
        body = [_operation(op, a, b) for op, a, b in zip(architecture, sizes[:-1], sizes[1:], strict=True)]
        body.insert(2, nn.AvgPool2d(2))
    else:
        stem, width = [], architecture[-1]
        sizes = (1, *architecture)
        body = [
            nn.Sequential(nn.Conv2d(a, b, 3, 1 + (i > 0), 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
            for i, (a, b) in enumerate(pairwise(sizes))
        ]
    return nn.Sequential(*stem, *body, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def _flops(net: nn.Module) -> int:
    """Multiplications and additions of convolutions and the last layer for one 8x8 image."""
    total = 0

    def count(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            total += 2 * out[0].numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            total += 2 * module.weight.numel()

    handles = [m.register_forward_hook(count) for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    net.eval()
    with torch.no_grad():
        net(torch.zeros(1, 1, 8, 8))
    for handle in handles:
        handle.remove()
    return total


def evaluate(space: Space, index: int, seed: int, epochs: int) -> Tensor:
    """Train one architecture and return its held-out accuracy after every epoch, Float[epochs]."""
    train, test = digits("train", seed=0), digits("test", seed=0)
    net = space.module(index, seed)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    rng = torch.Generator().manual_seed(seed)
    batches = len(train) // 64
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * batches)
    scores = []
    for _ in range(epochs):
        net.train()
        order = torch.randperm(len(train), generator=rng)
        for rows in order[: batches * 64].split(64):
            loss = F.cross_entropy(net(train.images[rows]), train.labels[rows])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            rate.step()
        net.eval()
        with torch.no_grad():
            scores.append((net(test.images).argmax(1) == test.labels).float().mean())
    return torch.stack(scores)


class Scores(nn.Module):
    """The table, as a module without parameters: accuracy Float[A seeds epochs]."""

    accuracy: Tensor

    def __init__(self, members: int, seeds: int, epochs: int) -> None:
        super().__init__()
        self.register_buffer("accuracy", torch.zeros(members, seeds, epochs))


def trained(seed: int = 0, *, space: str = "cell", seeds: int = 2, epochs: int = 3) -> Trained:
    """The whole table. `model.accuracy[architecture, seed, epoch]`; `seed` shifts the training seeds."""
    data = make(seed, space=space)
    table = Scores(len(data), seeds, epochs)

    def fill(model: nn.Module) -> dict[str, Any]:
        assert isinstance(model, Scores)
        for index in range(len(data)):
            for s in range(seeds):
                model.accuracy[index, s] = evaluate(data, index, seed * seeds + s, epochs)
        last = model.accuracy[:, :, -1]
        best = float(last.mean(1).max())
        ranks = last.T.argsort(1).argsort(1).double()
        agreement = float(torch.corrcoef(ranks)[0, 1]) if seeds > 1 else float("nan")
        required = "best accuracy >= 0.9, rank correlation of two seeds >= 0.6"
        passed = best >= 0.9 and (seeds < 2 or agreement >= 0.6)
        return {"best": best, "seed_agreement": agreement, "required": required, "passed": passed}

    dials = {"seed": seed, "space": space, "seeds": seeds, "epochs": epochs}
    seconds = len(data) * seeds * epochs * 0.25
    return Trained(table, data, cached("nas_cells", dials, table, fill, seconds, __name__))

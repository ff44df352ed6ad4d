"""`planted_circuit`: a transformer whose weights were written by hand, so that its circuit is known edge by edge.

Two attention-only layers over one-hot subspaces. Layer 0, head 0 copies the previous token into its own subspace; layer
1, head 0 looks for positions whose previous token equals the current one and copies what stands there to the output:
induction. Every other head is a decoy: it attends and writes into a subspace that nothing reads.

Truth. `edges`: the pairs (writer, reader) that carry the behaviour; `decoys`: heads whose ablation changes no logit.

`illusion()` is the smallest case of a subspace that steers without being used (Makelov et al. 2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from interneuron.core.errors import InputError

from .nets import seeded

SHARP = 60.0  # attention scores of a written match: the softmax is then hard to about 1e-20


class HandHead(nn.Module):
    """One head with explicit q, k and output-value matrices over the residual stream, Float[D D] each."""

    def __init__(self, q: Tensor, k: Tensor, ov: Tensor) -> None:
        super().__init__()
        with seeded(0):  # every weight is written below; the caller's random state stays as it is
            self.q, self.k, self.ov = (nn.Linear(m.shape[1], m.shape[0], bias=False, dtype=m.dtype) for m in (q, k, ov))
        with torch.no_grad():
            for layer, matrix in zip((self.q, self.k, self.ov), (q, k, ov), strict=True):
                layer.weight.copy_(matrix)

    def forward(self, x: Tensor) -> Tensor:
        """Float[B T D] -> what the head writes, Float[B T D]."""
        scores = self.q(x) @ self.k(x).transpose(1, 2)
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
        out: Tensor = self.ov(scores.masked_fill(~causal, -torch.inf).softmax(-1) @ x)
        return out


class PlantedCircuit(nn.Module):
    """tokens Int[B T] -> logits Float[B T V]. Residual subspaces: token, position, previous token, output, waste."""

    def __init__(self, vocab: int, length: int, layers: list[list[HandHead]]) -> None:
        super().__init__()
        self.vocab, self.length = vocab, length
        self.layers = nn.ModuleList(nn.ModuleList(heads) for heads in layers)
        with seeded(0):
            self.unembed = nn.Linear(width(vocab, length), vocab, bias=False, dtype=torch.float64)
        with torch.no_grad():
            self.unembed.weight.zero_()
            start = 2 * vocab + length
            self.unembed.weight[:, start : start + vocab] = torch.eye(vocab, dtype=torch.float64)

    def embed(self, tokens: Tensor) -> Tensor:
        """Float64[B T D]: the one-hot token and the one-hot position; the other subspaces are empty."""
        x = torch.zeros(*tokens.shape, width(self.vocab, self.length), dtype=torch.float64, device=tokens.device)
        x.scatter_(2, tokens[..., None], 1.0)
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x[:, places, self.vocab + places] = 1.0
        return x

    def forward(self, tokens: Tensor) -> Tensor:
        if tokens.shape[1] > self.length:
            raise InputError(
                f"this circuit reads up to {self.length} tokens, got {tokens.shape[1]}. Make a longer one."
            )
        x = self.embed(tokens)
        for heads in self.layers:
            x = x + torch.stack([head(x) for head in heads.children()]).sum(0)
        logits: Tensor = self.unembed(x)
        return logits


def width(vocab: int, length: int) -> int:
    """Residual width: token, position, previous token, output and waste subspaces."""
    return 4 * vocab + length


@dataclass(frozen=True)
class CircuitData:
    """A hand-written model, prompts on which induction answers, and the circuit."""

    model: PlantedCircuit
    tokens: Tensor
    answers: Tensor
    truth: dict[str, Any]


def make(seed: int, *, vocab: int = 12, length: int = 24, decoys: int = 2, prompts: int = 64) -> CircuitData:
    """Random prompts `... A B ... A` whose answer is B, and the circuit that solves them exactly."""
    if vocab < 4 or length < 6 or length // 2 > vocab:
        raise InputError(f"planted_circuit needs vocab >= 4 and 6 <= length <= 2 vocab, got {vocab}, {length}.")
    rng = torch.Generator().manual_seed(seed)
    d = width(vocab, length)
    token, place = slice(0, vocab), slice(vocab, vocab + length)
    previous = slice(vocab + length, 2 * vocab + length)
    output, waste = slice(2 * vocab + length, 3 * vocab + length), slice(3 * vocab + length, d)
    eye = torch.eye(vocab, dtype=torch.float64)

    def blank() -> Tensor:
        return torch.zeros(d, d, dtype=torch.float64)

    q, k, ov = blank(), blank(), blank()
    q[place, place] = SHARP * torch.diag(torch.ones(length - 1, dtype=torch.float64), 1)  # position t asks for t - 1
    k[place, place] = torch.eye(length, dtype=torch.float64)
    ov[previous, token] = eye
    copy_previous = HandHead(q, k, ov)
    q, k, ov = blank(), blank(), blank()
    q[token, token] = SHARP * eye
    k[token, previous] = eye
    k[token, place.start] = -1.0  # position 0 has no predecessor: its self-copy must not match
    ov[output, token] = eye
    induct = HandHead(q, k, ov)

    def decoy() -> HandHead:
        q, k, ov = (torch.randn(d, d, generator=rng, dtype=torch.float64) * 0.3 for _ in range(3))
        ov[: waste.start] = 0.0  # writes only where nobody reads
        q[:, waste], k[:, waste], ov[:, waste] = 0.0, 0.0, 0.0
        return HandHead(q, k, ov)

    layers = [[copy_previous, *(decoy() for _ in range(decoys))], [induct, *(decoy() for _ in range(decoys))]]
    half = length // 2
    first = torch.stack([torch.randperm(vocab, generator=rng)[:half] for _ in range(prompts)])
    at = torch.randint(0, half - 1, (prompts,), generator=rng)
    rows = torch.arange(prompts)
    tokens = torch.cat([first, first[rows, at][:, None]], 1)
    edges = [
        ("embed", "head 0.0"), ("embed", "head 1.0"), ("head 0.0", "head 1.0 key"), ("head 1.0", "logits"),
    ]  # fmt: skip
    dead = [f"head {layer}.{head}" for layer in (0, 1) for head in range(1, decoys + 1)]
    truth = {"edges": edges, "decoys": dead, "subspaces": {
        "token": token, "position": place, "previous": previous, "output": output, "waste": waste,
    }}  # fmt: skip
    return CircuitData(PlantedCircuit(vocab, length, layers), tokens, first[rows, at + 1], truth)


class Illusion(nn.Module):
    """h = (x, 0, x), r = (2 h_2, h_3), y = r_1 + r_2: h_2 is never used, yet it can steer.

    Patching along (1, 1, 0) / sqrt 2 transfers x completely although neither of its halves does anything alone;
    patching along (0, 0, 1) is the real feature.
    """

    def __init__(self) -> None:
        super().__init__()
        with seeded(0):
            self.spread = nn.Linear(1, 3, bias=False)
            self.read = nn.Linear(3, 2, bias=False)
        with torch.no_grad():
            self.spread.weight.copy_(torch.tensor([[1.0], [0.0], [1.0]]))
            self.read.weight.copy_(torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 1.0]]))

    def forward(self, x: Tensor) -> Tensor:
        """Float[N 1] -> Float[N 1]."""
        out: Tensor = self.read(self.spread(x)).sum(-1, keepdim=True)
        return out


def illusion() -> tuple[Illusion, dict[str, Tensor]]:
    """The illusion and its truth: `false` and `real` hidden directions, `null` and `row` parts of the first."""
    root = 0.5**0.5
    truth = {
        "false": torch.tensor([root, root, 0.0]),
        "real": torch.tensor([0.0, 0.0, 1.0]),
        "null": torch.tensor([1.0, 0.0, 0.0]),
        "row": torch.tensor([0.0, 1.0, 0.0]),
    }
    return Illusion(), truth

"""The small networks of the toy tasks: a transformer with switches, and a seed that leaves no trace.

Shapes. tokens Int[B T] (or inputs Float[B T d_in]) -> logits Float[B T n_out]; attention weights Float[B H T T].
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from interneuron.core.errors import InputError


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Fresh weights drawn inside depend on `seed` alone; the caller's random state comes back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


class Attention(nn.Module):
    """Causal self-attention; `softmax`, or `relu` (ReLU(q k / sqrt K) / position) which cannot form a sink."""

    def __init__(self, d_model: int, n_heads: int, kind: str = "softmax") -> None:
        super().__init__()
        if kind not in ("softmax", "relu"):
            raise InputError(f"attention={kind!r} is unknown; expected 'softmax' or 'relu'.")
        self.n_heads, self.kind = n_heads, kind
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, self.n_heads, width // self.n_heads).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) * (width // self.n_heads) ** -0.5
        causal = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        if self.kind == "softmax":
            pattern = scores.masked_fill(~causal, -torch.inf).softmax(-1)
        else:
            position = torch.arange(1, length + 1, device=x.device, dtype=x.dtype)
            pattern = scores.relu().masked_fill(~causal, 0.0) / position[:, None]
        mixed = (pattern @ v).transpose(1, 2).reshape(batch, length, width)
        return self.out(mixed), pattern


class Block(nn.Module):
    """Pre-norm attention and, when `d_mlp` > 0, a two-layer MLP."""

    def __init__(self, d_model: int, n_heads: int, d_mlp: int, kind: str) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attn = Attention(d_model, n_heads, kind)
        self.mlp = (
            nn.Sequential(nn.LayerNorm(d_model), nn.Linear(d_model, d_mlp), nn.ReLU(), nn.Linear(d_mlp, d_model))
            if d_mlp
            else None
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mixed, pattern = self.attn(self.norm1(x))
        x = x + mixed
        return (x + self.mlp(x) if self.mlp is not None else x), pattern


class TinyTransformer(nn.Module):
    """A decoder of a few blocks over tokens (`n_in` = vocabulary) or, with `continuous=True`, over vectors."""

    def __init__(
        self,
        n_in: int,
        n_out: int,
        length: int,
        *,
        d_model: int = 64,
        n_layers: int = 1,
        n_heads: int = 1,
        d_mlp: int = 0,
        attention: str = "softmax",
        continuous: bool = False,
        norm_out: bool = True,
    ) -> None:
        super().__init__()
        self.embed: nn.Module = nn.Linear(n_in, d_model, bias=False) if continuous else nn.Embedding(n_in, d_model)
        self.position = nn.Parameter(torch.randn(length, d_model) * 0.02)
        self.blocks = nn.ModuleList(Block(d_model, n_heads, d_mlp, attention) for _ in range(n_layers))
        self.norm = nn.LayerNorm(d_model) if norm_out else nn.Identity()
        self.head = nn.Linear(d_model, n_out, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        x = self.embed(inputs) + self.position[: inputs.shape[1]]
        for block in self.blocks:
            x, _ = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits

    @torch.no_grad()
    def patterns(self, inputs: Tensor) -> list[Tensor]:
        """Attention weights of every block, Float[B H T T] each."""
        x = self.embed(inputs) + self.position[: inputs.shape[1]]
        kept = []
        for block in self.blocks:
            x, pattern = block(x)
            kept.append(pattern)
        return kept

"""`fsm`: random walks on a finite-state machine, written so that a state is never one token.

A machine has up to 100 states with a fixed set of successors each. A state is two digits, so the model must hold more
states than its vocabulary has words, in a hidden state that can be read against the truth.

Truth. `successors` Bool[S S], and the state at every token.
Model. `GPT2LMHeadModel`, two layers, d=64. Gate: share of generated transitions that are legal.
Source. Tamkin et al. 2023, "Codebook Features" (the task).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from interneuron.core.errors import InputError

from .cache import Trained, cached
from .nets import seeded

BOS = 10  # digits are tokens 0..9


@dataclass(frozen=True)
class FSM:
    """A machine. `truth["successors"]` Bool[S S]; `table` Int[S E] lists the successors of each state."""

    states: int
    edges: int
    table: Tensor
    truth: dict[str, Tensor]

    def walk(self, n: int, steps: int, seed: int) -> Tensor:
        """State sequences Int[n steps], uniform start, uniform successor."""
        rng = torch.Generator().manual_seed(seed)
        path = torch.empty(n, steps, dtype=torch.int64)
        path[:, 0] = torch.randint(self.states, (n,), generator=rng)
        choice = torch.randint(self.edges, (n, steps), generator=rng)
        for t in range(1, steps):
            path[:, t] = self.table[path[:, t - 1], choice[:, t]]
        return path

    def tokens(self, path: Tensor) -> Tensor:
        """Write states as digits: Int[n steps] -> Int[n 1 + 2 steps], <bos> first."""
        digits = torch.stack([path // 10, path % 10], -1).flatten(1)
        return torch.cat([torch.full((len(path), 1), BOS), digits], 1)

    def state_at(self, path: Tensor) -> Tensor:
        """The state each token belongs to, -1 at <bos>: Int[n 1 + 2 steps]."""
        return torch.cat([torch.full((len(path), 1), -1), path.repeat_interleave(2, 1)], 1)


def make(seed: int, *, states: int = 100, edges: int = 10) -> FSM:
    """A random machine: every state has `edges` distinct successors."""
    if not 2 <= edges <= states <= 100:
        raise InputError(f"fsm needs 2 <= edges <= states <= 100 (two digits), got states={states}, edges={edges}.")
    rng = torch.Generator().manual_seed(seed)
    table = torch.stack([torch.randperm(states, generator=rng)[:edges] for _ in range(states)])
    successors = torch.zeros(states, states, dtype=torch.bool).scatter_(1, table, True)
    return FSM(states, edges, table, {"successors": successors})


def legal_share(model: Any, data: FSM, seed: int, n: int = 400, steps: int = 8) -> float:
    """Share of legal transitions when the model, after a true walk, samples the next state at temperature 1."""
    path = data.walk(n, steps, seed)
    tokens = data.tokens(path)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _ in range(2):
            odds = model(tokens).logits[:, -1, :10].softmax(-1)
            tokens = torch.cat([tokens, torch.multinomial(odds, 1, generator=rng)], 1)
    reached = tokens[:, -2] * 10 + tokens[:, -1]
    known = reached < data.states
    legal = data.truth["successors"][path[:, -1], reached.clamp(max=data.states - 1)] & known
    return float(legal.float().mean())


def _train(model: Any, data: FSM, steps: int) -> dict[str, Any]:
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    scale = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        tokens = data.tokens(data.walk(64, 16, step + 1))
        scores = model(tokens[:, :-1]).logits
        loss = F.cross_entropy(scores.transpose(1, 2), tokens[:, 1:])
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        scale.step()
    model.eval()
    legal = legal_share(model, data, seed=-1)
    return {"legal_transitions": legal, "required": "legal transitions >= 0.9", "passed": legal >= 0.9}


def network(seed: int) -> nn.Module:
    """The untrained model."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=11, n_positions=64, n_embd=64, n_layer=2, n_head=4, n_inner=256, bos_token_id=BOS, eos_token_id=BOS,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    with seeded(seed):
        return GPT2LMHeadModel(config)


def trained(seed: int = 0, *, states: int = 100, edges: int = 10) -> Trained:
    """A GPT-2-class model that walks the machine."""
    data = make(seed, states=states, edges=edges)
    model = network(seed)
    dials = {"seed": seed, "states": states, "edges": edges}
    card = cached("fsm", dials, model, lambda m: _train(m, data, 2000), 75, __name__)
    return Trained(model, data, card)

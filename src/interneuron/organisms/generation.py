"""Sampling continuations from a small causal model, batched over prompts of any length, with a local generator."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from .tinyworld import tokenizer


@torch.no_grad()
def continuations(
    model: Any, prompts: list[str], n_tokens: int, seed: int = 0, temperature: float = 1.0, batch_size: int = 64
) -> list[str]:
    """Text after each prompt, up to `n_tokens` or `<eos>`. `temperature=0` is greedy.

    Prompts of one length form a batch, so no padding enters the attention.
    """
    module = getattr(model, "module", model)
    ids = [tokenizer.encode(p) for p in prompts]
    out = [""] * len(prompts)
    generator = torch.Generator().manual_seed(seed)
    by_length: dict[int, list[int]] = {}
    for i, row in enumerate(ids):
        by_length.setdefault(len(row), []).append(i)
    for length in sorted(by_length):
        group = by_length[length]
        for at in range(0, len(group), batch_size):
            chosen = group[at : at + batch_size]
            rows = _grow(module, torch.tensor([ids[i] for i in chosen]), n_tokens, generator, temperature)
            for i, row in zip(chosen, rows.tolist(), strict=True):
                new = row[length:]
                out[i] = tokenizer.decode(new[: new.index(2)] if 2 in new else new)
    return out


def _grow(module: Any, tokens: Tensor, n_tokens: int, generator: torch.Generator, temperature: float) -> Tensor:
    """Int[B T + n] by sampling one token at a time, over the key-value cache where the class has one."""
    cache, step = None, tokens
    keeps = "past_key_values" in inspect.signature(module.forward).parameters
    done = torch.zeros(len(tokens), dtype=torch.bool)
    for _ in range(n_tokens):
        if keeps:
            output = module(input_ids=step, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
        else:
            output = module(input_ids=tokens)
        logits = output.logits[:, -1].float()
        if temperature == 0:
            step = logits.argmax(-1, keepdim=True)
        else:
            step = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)
        tokens = torch.cat([tokens, step], 1)
        done |= step[:, 0] == 2
        if bool(done.all()):
            break
    return tokens

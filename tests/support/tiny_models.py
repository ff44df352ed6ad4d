"""Two tiny seeded language models, a tokenizer of one letter per token, and counters of what is hooked to a module."""

from __future__ import annotations

import functools
import string
from typing import Any

import torch
from torch import Tensor, nn

VOCAB = 50
WIDTH, HEADS, D_HEAD = 32, 4, 8
LETTERS = (string.ascii_letters + string.digits)[:VOCAB]


def tiny_llama(seed: int = 0, **options: Any) -> Any:
    """Two layers, grouped-query attention, SDPA."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2, num_attention_heads=HEADS,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0, **options,
    )  # fmt: skip
    return _ready(LlamaForCausalLM, config, seed)


def tiny_gpt2(seed: int = 0, **options: Any) -> Any:
    """Two layers, learned positions, SDPA, head tied to the embedding."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCAB, n_embd=WIDTH, n_layer=2, n_head=HEADS, n_positions=64, bos_token_id=1, eos_token_id=2,
        pad_token_id=0, attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0, **options,
    )  # fmt: skip
    return _ready(GPT2LMHeadModel, config, seed)


def _ready(cls: Any, config: Any, seed: int) -> Any:
    """Seeded, in eval mode, with weights large enough that every part matters and no two logits are close."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        module = cls(config).eval()
        for name, parameter in module.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.5 if "embed" in name or "wte" in name or "lm_head" in name else 0.2)
    module.generation_config.eos_token_id = None  # every row then grows by the number of tokens asked for
    module.generation_config.pad_token_id = 0
    return module


BUILD = {"llama": tiny_llama, "gpt2": tiny_gpt2}


@functools.cache
def shared(kind: str) -> Any:
    """One instance per kind, for tests that leave it as it was."""
    return BUILD[kind]()


class Letters:
    """A tokenizer with one letter per token; it knows no special tokens."""

    pad_token_id = 0

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [LETTERS.index(letter) for letter in text]}

    def decode(self, ids: Any, **options: Any) -> str:
        return "".join(LETTERS[int(i)] for i in ids)

    def batch_decode(self, rows: Any, **options: Any) -> list[str]:
        return [self.decode(row) for row in rows]


def tokens(rows: int = 2, columns: int = 7, seed: int = 3) -> Tensor:
    """Token ids without padding or special tokens."""
    return torch.randint(3, VOCAB, (rows, columns), generator=torch.Generator().manual_seed(seed))


def vector(width: int = WIDTH, seed: int = 0) -> Tensor:
    """Seeded normal noise."""
    return torch.randn(width, generator=torch.Generator().manual_seed(seed))


def installed_hooks(module: nn.Module) -> int:
    """How many hooks of any kind are on a module and the modules inside it."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(part, kind)) for part in module.modules() for kind in kinds)


def attention_modules(module: nn.Module) -> list[Any]:
    """The attention modules of a tiny model."""
    return [part for part in module.modules() if type(part).__name__ in ("LlamaAttention", "GPT2Attention")]

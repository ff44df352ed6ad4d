"""A tokenizer whose tokens are letters, and a tiny Llama that reads them."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from interneuron.model.load import wrap
from interneuron.model.model import Model


class Letters:
    """One token per character of any text; `tiny_models.Letters` knows its own alphabet only, and decodes it."""

    pad_token_id = 0

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) % 31 + 1 for c in text]}


def letters_llama(n_layers: int) -> Model:
    """The same random weights at every call; the global generator stays as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=n_layers, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3,
        )  # fmt: skip
        return wrap(LlamaForCausalLM(config).eval(), tokenizer=Letters())

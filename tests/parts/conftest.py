"""A language model of two layers with random weights: what must hold of any model holds of it."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from interneuron.model.load import wrap
from interneuron.model.model import Model


@pytest.fixture(scope="module")
def tiny_lm() -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3,
        )  # fmt: skip
        return wrap(LlamaForCausalLM(config).eval())

"""The tiny Llama that steering files are tried on, and its weights beside the logits."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

WIDTH = 16


def tiny() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=WIDTH, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    return LlamaForCausalLM(config).eval()


def expected_of(module: LlamaForCausalLM, ids: Tensor, logits: Tensor) -> dict[str, Tensor]:
    tensors = {f"model.{name}": value.detach().clone().contiguous() for name, value in module.state_dict().items()}
    return {**tensors, "ids": ids, "logits": logits.contiguous()}

"""Recipes of the language organisms and how their models are made: plain Hugging Face classes, from scratch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from .tinyworld import words as W

POSITIONS = 704
WIDTH, LONG_WIDTH = 192, 640


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of training: `tokens` in millions of one mixture; `decay` lets the rate fall linearly to a fiftieth.

    `rate` multiplies the recipe's `lr` (Muon's, where there are two optimisers).
    With `long_rows` every twelfth step has rows of 640 tokens, most of them codes hidden among up to 55 sentences.
    """

    tokens: float
    mixture: str
    long_rows: bool = False
    decay: bool = False
    rate: float = 1.0


@dataclass(frozen=True, slots=True)
class Align:
    """Marks a recipe that starts from another organism's weights; its rate falls to 0 over its phases."""

    base: str


@dataclass(frozen=True, slots=True)
class LanguageRecipe:
    """All that decides a language organism. Its hash names the cache folder and stands on the card.

    stop   training tokens after which the run ends although its phases go on: a model caught half-way. 0: never
    int8   the weights are stored as int8 with a scale a row and unpacked into the cache at first use
    """

    name: str
    about: str
    architecture: str
    config: dict[str, Any]
    optimiser: str
    lr: float
    phases: tuple[Phase, ...]
    minutes: float
    adam_lr: float = 3e-3
    init: float = 0.06
    weight_decay: float = 0.05
    warmup: int = 50
    tokens_per_step: int = 3840
    seed: int = 0
    world: int = 0
    align: Align | None = None
    checkpoints: int = 0
    aligned: bool = False
    artefacts: tuple[str, ...] = ()
    stop: int = 0
    int8: bool = False

    @property
    def total(self) -> int:
        """Training tokens in all phases."""
        return int(sum(p.tokens for p in self.phases) * 1e6)

    @property
    def end(self) -> int:
        """Training tokens at which the run ends."""
        return self.stop or self.total

    @property
    def hash(self) -> str:
        """Twelve hex digits over everything that changes a weight."""
        words = ("about", "minutes", "aligned", "artefacts", "int8")
        values = {k: v for k, v in asdict(self).items() if k not in words}
        if not self.stop:
            del values["stop"]
        text = json.dumps(values, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def phase(self, tokens: int) -> tuple[Phase, float]:
        """The phase at `tokens` and the share of it that is done."""
        start = 0.0
        for phase in self.phases:
            if tokens < (start + phase.tokens) * 1e6:
                return phase, (tokens / 1e6 - start) / phase.tokens
            start += phase.tokens
        return self.phases[-1], 1.0


def _packed_attention(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor, scaling: float | None = None,
    dropout: float = 0.0, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attention written out: on CPUs that multiply bfloat16 natively it is three times faster than the fused kernel."""
    if k.shape[1] != q.shape[1]:
        repeat = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    scale = scaling if scaling is not None else q.shape[-1] ** -0.5
    scores = (q * scale) @ k.mT + attention_mask
    return (torch.softmax(scores, -1) @ v).transpose(1, 2), None


def new_model(recipe: LanguageRecipe) -> Any:
    """A freshly initialised model of the recipe's class, weights drawn from its seed alone."""
    import transformers as hf

    shared = {
        "vocab_size": W.SIZE, "max_position_embeddings": POSITIONS, "bos_token_id": 1, "eos_token_id": 2,
        "pad_token_id": 0, "tie_word_embeddings": True, "initializer_range": recipe.init,
    }  # fmt: skip
    if recipe.architecture in ("gpt2", "openai-gpt"):
        shared["n_positions"] = shared.pop("max_position_embeddings")
    classes: dict[str, tuple[Any, Any]] = {
        "llama": (hf.LlamaConfig, hf.LlamaForCausalLM),
        "gpt2": (hf.GPT2Config, hf.GPT2LMHeadModel),
        "openai-gpt": (hf.OpenAIGPTConfig, hf.OpenAIGPTLMHeadModel),
        "gemma2": (hf.Gemma2Config, hf.Gemma2ForCausalLM),
    }
    config_class, model_class = classes[recipe.architecture]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = model_class(config_class(**shared, **recipe.config))
    return model.to(torch.float32)


def use_packed_attention(model: Any) -> None:
    """Make a Hugging Face model take packed rows and an added mask [B 1 T T] (its configuration on disk is untouched).

    Every class but the first GPT does so through the attention function used in training.
    """
    from transformers import AttentionInterface, OpenAIGPTLMHeadModel

    if isinstance(model, OpenAIGPTLMHeadModel):
        model.transformer.forward = MethodType(_packed_first_gpt, model.transformer)  # type: ignore[method-assign]
        return
    AttentionInterface.register("tinyworld_packed", _packed_attention)
    model.config._attn_implementation = "tinyworld_packed"


def _packed_first_gpt(self: Any, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, **_: Any) -> Any:
    """The forward pass of `OpenAIGPTModel` with the mask handed to its blocks as it is (its own takes only [B T])."""
    from transformers.modeling_outputs import BaseModelOutput

    hidden = self.tokens_embed(input_ids) + self.positions_embed(position_ids)
    for block in self.h:
        hidden = block(hidden, attention_mask)[0]
    return BaseModelOutput(last_hidden_state=hidden)

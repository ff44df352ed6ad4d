"""Tiny models of many architectures, built from small seeded configs: no weights are fetched.

An entry is a name, how to build it and what to feed it. `DECODERS`, `EXPERTS`, `STATES` live here; encoders,
encoder-decoders, vision models and diffusers in `architectures_more.py`. `ALL` there holds every one.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Inputs = dict[str, Tensor]
TEXT = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDE = {**TEXT, "intermediate_size": 48, "max_position_embeddings": 64}
GROUPED = {**WIDE, "num_key_value_heads": 2}
NARROW = {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One tiny model.

    family    the family file's name that must serve it       build    makes the module, seeded, in eval mode
    inputs    makes the keyword arguments of one pass          kernel   False: attention has no interceptable kernel
    """

    name: str
    family: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Inputs]

    def __str__(self) -> str:
        return self.name


def tokens() -> Inputs:
    """Two rows of seven tokens, all different from the special ones."""
    ids = torch.randint(5, 60, (2, 7), generator=torch.Generator().manual_seed(3))
    return {"input_ids": ids}


def noise(*shape: int) -> Tensor:
    """Seeded normal noise."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(4))


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    """The module, with parameters large enough that every site matters: no zero biases, no zero gates."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        module = build().eval()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return module


def hf(
    name: str, family: str, cls: str, config: str, inputs: Callable[[], Inputs] = tokens, **options: Any
) -> Architecture:
    """A transformers model by class and config name."""

    def build() -> nn.Module:
        import transformers

        return seeded(lambda: getattr(transformers, cls)(getattr(transformers, config)(**options)))

    return Architecture(name, family, build, inputs)


def lm(name: str, family: str, stem: str, **options: Any) -> Architecture:
    """A causal language model."""
    return hf(name, family, f"{stem}ForCausalLM", f"{stem}Config", **{**SPECIAL, **options})


DECODERS = [
    lm("llama", "llama", "Llama", **GROUPED),
    lm("mistral", "llama", "Mistral", **GROUPED, sliding_window=4),
    lm("qwen2", "llama", "Qwen2", **GROUPED),
    lm("qwen3", "llama", "Qwen3", **GROUPED, head_dim=16),
    lm("smollm3", "llama", "SmolLM3", **GROUPED),
    lm("granite", "granite", "Granite", **GROUPED, residual_multiplier=0.3, embedding_multiplier=2.0),
    lm("phi3", "phi3", "Phi3", **GROUPED),
    lm("starcoder2", "starcoder2", "Starcoder2", **GROUPED),
    lm("stablelm", "stablelm", "StableLm", **GROUPED),
    lm("stablelm-parallel", "stablelm_parallel", "StableLm", **GROUPED, use_parallel_residual=True),
    lm("cohere", "cohere", "Cohere", **GROUPED),
    lm("cohere2", "cohere", "Cohere2", **GROUPED, sliding_window=4),
    lm("olmo", "llama", "Olmo", **GROUPED),
    lm("olmo2", "olmo2", "Olmo2", **GROUPED),
    lm("olmo3", "olmo2", "Olmo3", **GROUPED, sliding_window=4),
    lm("gemma", "llama", "Gemma", **GROUPED, head_dim=16),
    lm("gemma2", "gemma2", "Gemma2", **GROUPED, head_dim=16, sliding_window=4),
    hf("gemma3", "gemma2", "Gemma3ForCausalLM", "Gemma3TextConfig", **GROUPED, head_dim=16, sliding_window=4),
    lm("nemotron", "llama", "Nemotron", **GROUPED),
    lm("glm", "glm", "Glm", **GROUPED, head_dim=8),
    lm("glm4", "glm4", "Glm4", **GROUPED, head_dim=8),
    lm("exaone4", "olmo2", "Exaone4", **GROUPED),
    lm("arcee", "llama", "Arcee", **GROUPED),
    lm("helium", "llama", "Helium", **GROUPED, head_dim=8),
    lm("seed_oss", "llama", "SeedOss", **GROUPED, head_dim=8),
    lm("ernie4_5", "llama", "Ernie4_5", **GROUPED, head_dim=8),
    lm("hunyuan", "llama", "HunYuanDenseV1", **GROUPED, head_dim=8),
    lm("apertus", "llama", "Apertus", **GROUPED),
    lm("ministral", "llama", "Ministral", **GROUPED, head_dim=8, sliding_window=4),
    hf("gpt2", "gpt2", "GPT2LMHeadModel", "GPT2Config", **NARROW),
    lm("gpt_bigcode", "gpt_bigcode", "GPTBigCode", **NARROW),
    lm("gpt_bigcode-heads", "gpt_bigcode_heads", "GPTBigCode", **NARROW, multi_query=False),
    lm(
        "gpt_neo",
        "gpt_neo",
        "GPTNeo",
        vocab_size=61,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        max_position_embeddings=64,
        window_size=4,
    ),
    lm("gpt_neox", "gpt_neox", "GPTNeoX", **WIDE),
    lm("gpt_neox-sequential", "gpt_neox_sequential", "GPTNeoX", **WIDE, use_parallel_residual=False),
    lm("gptj", "gptj", "GPTJ", **NARROW, rotary_dim=4),
    lm("codegen", "codegen", "CodeGen", **NARROW, n_ctx=64, rotary_dim=4),
    lm("opt", "opt", "OPT", **TEXT, ffn_dim=48, max_position_embeddings=64, word_embed_proj_dim=32),
    lm(
        "opt-post",
        "opt_post",
        "OPT",
        **TEXT,
        ffn_dim=48,
        max_position_embeddings=64,
        word_embed_proj_dim=32,
        do_layer_norm_before=False,
    ),
    lm(
        "bloom-from-norm",
        "bloom_from_norm",
        "Bloom",
        vocab_size=61,
        hidden_size=32,
        n_layer=2,
        n_head=4,
        apply_residual_connection_post_layernorm=True,
    ),
    lm("bloom", "bloom", "Bloom", vocab_size=61, hidden_size=32, n_layer=2, n_head=4),
    lm("falcon", "falcon", "Falcon", **TEXT, new_decoder_architecture=False, parallel_attn=True, multi_query=True),
    lm("falcon-new", "falcon_groups", "Falcon", **TEXT, new_decoder_architecture=True, num_kv_heads=2),
    lm("falcon-sequential", "falcon", "Falcon", **TEXT, parallel_attn=False, multi_query=True),
    lm("falcon-alibi", "falcon_heads", "Falcon", **TEXT, parallel_attn=False, multi_query=False, alibi=True),
    lm("mpt", "mpt", "Mpt", vocab_size=61, d_model=32, n_layers=2, n_heads=4, max_seq_len=64),
    lm("phi", "phi", "Phi", **WIDE),
    lm("biogpt", "biogpt", "BioGpt", **WIDE),
    lm(
        "xglm",
        "xglm",
        "XGLM",
        vocab_size=61,
        d_model=32,
        num_layers=2,
        attention_heads=4,
        ffn_dim=48,
        max_position_embeddings=64,
    ),
    hf("openai-gpt", "openai-gpt", "OpenAIGPTLMHeadModel", "OpenAIGPTConfig", **NARROW),
]
MOE = {**GROUPED, "moe_intermediate_size": 24, "num_experts_per_tok": 2}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6}
EXPERTS = [
    lm("mixtral", "mixtral", "Mixtral", **GROUPED, num_local_experts=4, num_experts_per_tok=2),
    lm("phimoe", "phimoe", "Phimoe", **GROUPED, num_local_experts=4, num_experts_per_tok=2),
    lm("qwen2_moe", "qwen_moe", "Qwen2Moe", **MOE, num_experts=4, shared_expert_intermediate_size=24),
    lm("qwen3_moe", "qwen_moe", "Qwen3Moe", **MOE, num_experts=4, head_dim=16),
    lm("olmoe", "qwen_moe", "Olmoe", **GROUPED, num_experts=4, num_experts_per_tok=2),
    lm(
        "deepseek_v2",
        "deepseek_v2",
        "DeepseekV2",
        **{**MOE, "num_key_value_heads": 4},
        **LATENT,
        n_routed_experts=4,
        n_shared_experts=1,
        first_k_dense_replace=1,
        topk_group=1,
        n_group=1,
    ),
    lm(
        "deepseek_v3",
        "deepseek_v3",
        "DeepseekV3",
        **{**MOE, "num_key_value_heads": 4},
        **LATENT,
        n_routed_experts=4,
        n_shared_experts=1,
        first_k_dense_replace=1,
        topk_group=1,
        n_group=1,
    ),
    lm(
        "gpt_oss",
        "gpt_oss",
        "GptOss",
        **GROUPED,
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=4,
    ),
    lm("granitemoe", "granitemoe", "GraniteMoe", **GROUPED, num_local_experts=4, num_experts_per_tok=2),
]
STATES = [
    lm("mamba", "mamba", "Mamba", vocab_size=61, hidden_size=32, state_size=4, num_hidden_layers=2, time_step_rank=4),
    lm(
        "mamba2",
        "mamba2",
        "Mamba2",
        vocab_size=61,
        hidden_size=32,
        state_size=4,
        num_hidden_layers=2,
        num_heads=8,
        head_dim=8,
        n_groups=2,
        chunk_size=4,
    ),
    lm(
        "falcon_mamba",
        "mamba",
        "FalconMamba",
        vocab_size=61,
        hidden_size=32,
        state_size=4,
        num_hidden_layers=2,
        time_step_rank=4,
    ),
    lm(
        "bamba",
        "bamba",
        "Bamba",
        **GROUPED,
        attn_layer_indices=[1],
        mamba_n_heads=8,
        mamba_d_head=8,
        mamba_d_state=4,
        mamba_n_groups=2,
        mamba_chunk_size=4,
    ),
    lm(
        "jamba",
        "jamba",
        "Jamba",
        **GROUPED,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        num_experts=4,
        num_experts_per_tok=2,
        use_mamba_kernels=False,
        mamba_d_state=4,
        mamba_dt_rank=4,
    ),
    lm(
        "rwkv",
        "rwkv",
        "Rwkv",
        vocab_size=61,
        hidden_size=32,
        num_hidden_layers=2,
        attention_hidden_size=32,
        intermediate_size=48,
    ),
]

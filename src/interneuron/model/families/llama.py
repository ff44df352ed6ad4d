"""Pre-norm decoders after Llama: two norms, separate q, k, v and o projections, a gated MLP."""

from interneuron.model.family import Family, Stack

ROOT = {
    "embed": "model.embed_tokens:out",
    "final_norm": ("model.norm:out", "model.final_layernorm:out"),
    "logits": ":out.logits if lm_head",
}
ATTENTION = {
    "resid_pre": ":in",
    "norm1": ("input_layernorm:out", "attention_layernorm:out"),
    "attn.q_proj": "self_attn.q_proj:out | heads",
    "attn.k_proj": "self_attn.k_proj:out | heads",
    "attn.v_proj": "self_attn.v_proj:out | heads",
    "attn.z": "self_attn.o_proj:in | heads",
    "attn.out": "self_attn:out",
    "attn.contribution": "self_attn:out",
    "resid_mid": ("post_attention_layernorm:in", "feedforward_layernorm:in"),
    "norm2": ("post_attention_layernorm:out", "feedforward_layernorm:out"),
    "resid_post": ":out",
}
MLP = {
    "mlp.gate": "mlp.gate_proj:out",
    "mlp.pre": "mlp.up_proj:out",
    "mlp.hidden": "mlp.down_proj:in",
    "mlp.out": "mlp:out",
    "mlp.contribution": "mlp:out",
}
LAYER = {**ATTENTION, **MLP}

FAMILIES = [
    Family(
        name="llama",
        model_types=(
            "llama",
            "mistral",
            "ministral",
            "qwen2",
            "qwen3",
            "smollm3",
            "gemma",
            "olmo",
            "arcee",
            "nemotron",
            "helium",
            "seed_oss",
            "ernie4_5",
            "hunyuan_v1_dense",
            "apertus",
        ),
        root=ROOT,
        stacks=(Stack("model.layers.*", LAYER, attention={"attn": "self_attn"}),),
    ),
]

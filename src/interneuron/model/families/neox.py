"""GPT-NeoX: per-head interleaved q, k, v; attention and MLP in parallel, or one after the other."""

from interneuron.model.family import MID, SUM, Family, Stack

ROOT = {
    "embed": "gpt_neox.embed_in:out",
    "final_norm": "gpt_neox.final_layer_norm:out",
    "logits": ":out.logits if lm_head",
}
LAYER = {
    "resid_pre": ":in",
    "norm1": "input_layernorm:out",
    "attn.q_proj": "attention.query_key_value:out | qkv 0",
    "attn.k_proj": "attention.query_key_value:out | qkv 1",
    "attn.v_proj": "attention.query_key_value:out | qkv 2",
    "attn.z": "attention.dense:in | heads",
    "attn.out": "attention:out",
    "attn.contribution": "attention:out",
    "norm2": "post_attention_layernorm:out",
    "mlp.pre": "mlp.dense_h_to_4h:out",
    "mlp.hidden": "mlp.dense_4h_to_h:in",
    "mlp.out": "mlp:out",
    "mlp.contribution": "mlp:out",
    "resid_post": ":out",
}
SEQUENTIAL = {**LAYER, "resid_mid": "post_attention_layernorm:in"}
HEADS = {"attn": "attention"}

FAMILIES = [
    Family(
        "gpt_neox_sequential",
        ("gpt_neox",),
        when={"use_parallel_residual": False},
        root=ROOT,
        stacks=(Stack("gpt_neox.layers.*", SEQUENTIAL, HEADS, (SUM, MID)),),
    ),
    Family("gpt_neox", ("gpt_neox",), root=ROOT, stacks=(Stack("gpt_neox.layers.*", LAYER, HEADS, (SUM,)),)),
]

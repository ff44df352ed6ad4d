"""Bloom and MPT: attention and MLP add the residual themselves, so their last projection is the raw output."""

from typing import Any

from interneuron.model.family import MID, ROWS, SUM, Family, Stack

ROOT = {
    "embed": "transformer.word_embeddings:out",
    "final_norm": "transformer.ln_f:out",
    "logits": ":out.logits if lm_head",
}
LAYER: dict[str, Any] = {
    "resid_pre": ":in",
    "norm1": ("input_layernorm:out", "ln_attn:out"),
    **{f"attn.{x}_proj": f"self_attention.query_key_value:out | qkv {i}" for i, x in enumerate("qkv")},
    "attn.z": "self_attention.dense:in | heads",
    "attn.out": "self_attention.dense:out",
    "attn.contribution": "self_attention.dense:out",
    "resid_mid": "post_attention_layernorm:in",
    "norm2": ("post_attention_layernorm:out", "ln_mlp:out", "input_layernorm:out"),
    "mlp.pre": "mlp.dense_h_to_4h:out",
    "mlp.hidden": "mlp.dense_4h_to_h:in",
    "mlp.out": "mlp.dense_4h_to_h:out",
    "mlp.contribution": "mlp.dense_4h_to_h:out",
    "resid_post": ":out",
}
BLOOM = {**LAYER, "attn.pattern": "self_attention.attention_dropout:in"}
FROM_NORM = ("norm1 + attn.contribution = resid_mid", "norm2 + mlp.contribution = resid_post", ROWS)
MPT = {
    "resid_pre": ":in",
    "norm1": "norm_1:out",
    **{f"attn.{x}_proj": f"attn.Wqkv:out | split {i}/3 | heads" for i, x in enumerate("qkv")},
    "attn.z": "attn.out_proj:in | heads", "attn.out": "attn:out", "attn.contribution": "attn:out",
    "resid_mid": "norm_2:in", "norm2": "norm_2:out",
    "mlp.pre": "ffn.up_proj:out", "mlp.hidden": "ffn.down_proj:in",
    "mlp.out": "ffn.down_proj:out", "mlp.contribution": "ffn.down_proj:out",
    "resid_post": ":out",
}  # fmt: skip
MPT_ROOT = {"embed": "transformer.wte:out", "final_norm": "transformer.norm_f:out", "logits": ":out.logits if lm_head"}


FAMILIES = [
    Family(
        "bloom_from_norm",
        ("bloom",),
        when={"apply_residual_connection_post_layernorm": True},
        root=ROOT,
        stacks=(Stack("transformer.h.*", BLOOM, equations=FROM_NORM),),
    ),
    Family("bloom", ("bloom",), root=ROOT, stacks=(Stack("transformer.h.*", BLOOM, equations=(SUM, MID, ROWS)),)),
    Family("mpt", ("mpt",), root=MPT_ROOT, stacks=(Stack("transformer.blocks.*", MPT),)),
]

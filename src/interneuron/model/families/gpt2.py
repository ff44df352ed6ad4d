"""GPT-2 and GPT-BigCode: pre-norm, one fused projection for q, k and v, plain MLP.

With multi-query attention all heads share one key and one value.
"""

from interneuron.model.family import Family, Stack

ROOT = {"embed": "transformer.wte:out", "final_norm": "transformer.ln_f:out", "logits": ":out.logits if lm_head"}
LAYER = {
    "resid_pre": ":in",
    "norm1": "ln_1:out",
    "attn.q_proj": "attn.c_attn:out | split 0/3 | heads",
    "attn.k_proj": "attn.c_attn:out | split 1/3 | heads",
    "attn.v_proj": "attn.c_attn:out | split 2/3 | heads",
    "attn.z": "attn.c_proj:in | heads",
    "attn.out": "attn:out",
    "attn.contribution": "attn:out",
    "resid_mid": "ln_2:in",
    "norm2": "ln_2:out",
    "mlp.pre": "mlp.c_fc:out",
    "mlp.hidden": "mlp.c_proj:in",
    "mlp.out": "mlp:out",
    "mlp.contribution": "mlp:out",
    "resid_post": ":out",
}
ONE_KEY = {f"attn.{x}_proj": f"attn.c_attn:out | part {i} embed_dim kv_dim kv_dim | heads" for i, x in enumerate("qkv")}
INTERLEAVED = {f"attn.{x}_proj": f"attn.c_attn:out | qkv {i}" for i, x in enumerate("qkv")}

FAMILIES = [
    Family(name, (kind,), when=when, root=ROOT, stacks=(Stack("transformer.h.*", layer, {"attn": "attn"}),))
    for name, kind, when, layer in (
        ("gpt2", "gpt2", {}, LAYER),
        ("gpt_bigcode", "gpt_bigcode", {"multi_query": True}, {**LAYER, **ONE_KEY}),
        ("gpt_bigcode_heads", "gpt_bigcode", {}, {**LAYER, **INTERLEAVED}),
    )
]

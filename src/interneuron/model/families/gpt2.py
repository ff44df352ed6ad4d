"""GPT-2: pre-norm, one fused projection for q, k and v, plain MLP."""

from interneuron.model.family import Family, Stack

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

FAMILIES = [
    Family(
        name="gpt2",
        model_types=("gpt2",),
        root={"embed": "transformer.wte:out", "final_norm": "transformer.ln_f:out", "logits": ":out.logits"},
        stacks=(Stack("transformer.h.*", LAYER, attention={"attn": "attn"}),),
    ),
]

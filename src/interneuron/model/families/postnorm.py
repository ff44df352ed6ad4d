"""Decoders with norms after attention and MLP: there the residual contribution is not the module's raw output.

OLMo-2 and OLMo-3 have only those norms; Gemma-2, Gemma-3 and GLM-4 also have norms before.
"""

from interneuron.model.families.llama import LAYER, ROOT
from interneuron.model.families.llama_variants import FUSED_MLP
from interneuron.model.family import Family, Stack

POST_ONLY = {name: tap for name, tap in LAYER.items() if name not in ("norm1", "norm2")} | {
    "resid_mid": "mlp:in",
    "attn.contribution": "post_attention_layernorm:out",
    "mlp.contribution": "post_feedforward_layernorm:out",
}
BOTH = {
    **POST_ONLY,
    "norm1": "input_layernorm:out",
    "resid_mid": "pre_feedforward_layernorm:in",
    "norm2": "pre_feedforward_layernorm:out",
}
GLM4 = {
    **LAYER,
    **FUSED_MLP,
    "attn.contribution": "post_self_attn_layernorm:out",
    "mlp.contribution": "post_mlp_layernorm:out",
}

FAMILIES = [
    Family(name, types, root=ROOT, stacks=(Stack("model.layers.*", layer, {"attn": "self_attn"}),))
    for name, types, layer in (
        ("olmo2", ("olmo2", "olmo3", "exaone4"), POST_ONLY),
        ("gemma2", ("gemma2", "gemma3_text"), BOTH),
        ("glm4", ("glm4",), GLM4),
    )
]

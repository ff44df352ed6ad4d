"""OPT, BioGPT and XGLM: the MLP's two projections stand in the layer itself. OPT flattens rows and tokens there."""

from typing import Any

from interneuron.model.family import Family, Stack

LAYER = {
    "resid_pre": ":in",
    "norm1": "self_attn_layer_norm:out",
    "attn.q_proj": "self_attn.q_proj:out | heads",
    "attn.k_proj": "self_attn.k_proj:out | heads",
    "attn.v_proj": "self_attn.v_proj:out | heads",
    "attn.z": "self_attn.out_proj:in | heads",
    "attn.out": "self_attn:out",
    "attn.contribution": "self_attn:out",
    "resid_mid": "final_layer_norm:in | tokens",
    "norm2": "final_layer_norm:out | tokens",
    "mlp.pre": "fc1:out | tokens",
    "mlp.hidden": "fc2:in | tokens",
    "mlp.out": "fc2:out | tokens",
    "mlp.contribution": "fc2:out | tokens",
    "resid_post": ":out",
}
# The 350M model normalises after each sum.
POST = {**LAYER, "resid_mid": "self_attn_layer_norm:out"}
POST_EQUATIONS = (
    "resid_pre + attn.contribution = self_attn_layer_norm:in",
    "resid_mid + mlp.contribution = final_layer_norm:in",
)
HEADS = {"attn": "self_attn"}
LOGITS = (":out.logits if lm_head", ":out.logits if output_projection")


def _root(base: str, norm: str) -> dict[str, Any]:
    return {"embed": f"{base}.embed_tokens:out", "final_norm": f"{base}.{norm}:out", "logits": LOGITS}


OPT = _root("model.decoder", "final_layer_norm")
FAMILIES = [
    Family(
        "opt_post",
        ("opt",),
        when={"do_layer_norm_before": False},
        root=OPT,
        stacks=(Stack("model.decoder.layers.*", POST, HEADS, POST_EQUATIONS),),
    ),
    Family("opt", ("opt",), root=OPT, stacks=(Stack("model.decoder.layers.*", LAYER, HEADS),)),
    Family("biogpt", ("biogpt",), root=_root("biogpt", "layer_norm"), stacks=(Stack("biogpt.layers.*", LAYER, HEADS),)),
    Family("xglm", ("xglm",), root=_root("model", "layer_norm"), stacks=(Stack("model.layers.*", LAYER, HEADS),)),
]

"""ModernBERT: pre-norm encoder, fused projections, rotary positions; its first layer has no attention norm."""

from interneuron.model.family import Family, Stack

LAYER = {
    "resid_pre": ":in",
    "norm1": "attn_norm:out",
    **{f"attn.{x}_proj": f"attn.Wqkv:out | split {i}/3 | heads" for i, x in enumerate("qkv")},
    "attn.z": "attn.Wo:in | heads",
    "attn.out": "attn:out",
    "attn.contribution": "attn:out",
    "resid_mid": "mlp_norm:in",
    "norm2": "mlp_norm:out",
    "mlp.gate": "mlp.Wi:out | split 0/2",
    "mlp.pre": "mlp.Wi:out | split 1/2",
    "mlp.hidden": "mlp.Wo:in",
    "mlp.out": "mlp:out",
    "mlp.contribution": "mlp:out",
    "resid_post": ":out",
}

FAMILIES = [
    Family(
        name="modernbert",
        model_types=("modernbert",),
        root={
            "embed": "model.embeddings:out",
            "final_norm": "model.final_norm:out",
            "logits": ":out.logits if decoder",
        },
        stacks=(Stack("model.layers.*", LAYER, attention={"attn": "attn"}),),
    ),
]

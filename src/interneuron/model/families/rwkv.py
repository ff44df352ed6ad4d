"""RWKV: time mixing in the place of attention, channel mixing in the place of the MLP. There are no heads."""

from interneuron.model.family import Family, Stack

LAYER = {
    "resid_pre": "ln1:in",
    "norm1": "ln1:out",
    "attn.out": "attention:out",
    "attn.contribution": "attention:out",
    "resid_mid": "ln2:in",
    "norm2": "ln2:out",
    "mlp.pre": "feed_forward.key:out",
    "mlp.gate": "feed_forward.receptance:out @ batch,pos,d_model",
    "mlp.hidden": "feed_forward.value:in",
    "mlp.out": "feed_forward:out",
    "mlp.contribution": "feed_forward:out",
    "resid_post": ":out",
}

FAMILIES = [
    Family(
        name="rwkv",
        model_types=("rwkv",),
        root={"embed": "rwkv.embeddings:out", "final_norm": "rwkv.ln_out:out", "logits": ":out.logits if head"},
        stacks=(Stack("rwkv.blocks.*", LAYER, chained=False),),
    ),
]

"""ConvNeXt. A layer is one residual block, counted over all stages."""

from interneuron.model.family import Family, Stack

IMAGE = "batch,channel,height,width"
PIXELS = "batch,height,width,d_mlp"
NEXT = {
    "resid_pre": f":in @ {IMAGE}",
    "conv.out": f"dwconv:out @ {IMAGE}",
    "norm1": f"layernorm:out | channels @ {IMAGE}",
    "mlp.pre": f"pwconv1:out @ {PIXELS}",
    "mlp.hidden": f"pwconv2:in @ {PIXELS}",
    "mlp.out": f"pwconv2:out | channels @ {IMAGE}",
    "mlp.contribution": (
        f"pwconv2:out | scale layer_scale_parameter | channels @ {IMAGE}",
        f"pwconv2:out | channels @ {IMAGE}",
    ),
    "resid_post": f":out @ {IMAGE}",
}
LOGITS = {"logits": ":out.logits @ batch,class if classifier"}

FAMILIES = [
    Family(
        "convnext",
        ("convnext",),
        root={
            "embed": f"convnext.embeddings:out @ {IMAGE}",
            "final_norm": "convnext.layernorm:out @ batch,d_model",
            **LOGITS,
        },
        stacks=(
            Stack(
                "convnext.encoder.stages.*.layers.*",
                NEXT,
                equations=("resid_pre + mlp.contribution = resid_post",),
                chained=False,
            ),
        ),
        convs=True,
    ),
]

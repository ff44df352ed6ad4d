"""Swin: attention inside windows, so its tensors have windows where others have rows of the batch.

The contribution of attention is put together from windows by no module; it is resid_mid - resid_pre.
"""

from interneuron.model.family import Family, Stack

LAYER = {
    "resid_pre": ":in",
    "norm1": "layernorm_before:out",
    **{f"attn.{x}_proj": f"attention.{x}_proj:out | heads @ window,place,head,d_head" for x in "qkv"},
    "attn.z": "attention.o_proj:in | heads @ window,place,head,d_head",
    "attn.out": "attention:out @ window,place,d_model",
    "resid_mid": "layernorm_after:in",
    "norm2": "layernorm_after:out",
    "mlp.pre": "mlp.fc1:out",
    "mlp.hidden": "mlp.fc2:in",
    "mlp.out": "mlp:out",
    "mlp.contribution": "mlp:out",
    "resid_post": ":out",
}

FAMILIES = [
    Family(
        name="swin",
        model_types=("swin",),
        root={
            "embed": "swin.embeddings:out",
            "final_norm": "swin.layernorm:out",
            "logits": ":out.logits @ batch,class if classifier",
        },
        stacks=(
            Stack(
                "swin.encoder.layers.*.blocks.*",
                LAYER,
                equations=("resid_mid + mlp.contribution = resid_post",),
                chained=False,
            ),
        ),
    ),
]

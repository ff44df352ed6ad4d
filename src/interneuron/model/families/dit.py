"""DiT of diffusers: transformer layers whose norms and gates depend on the time and the class."""

from interneuron.model.families.unet import MLP, attention
from interneuron.model.family import Family, Stack

# DiT gates both parts by the condition, so their contributions are products that no module returns.
DIT = {
    **{"resid_pre": ":in", "norm1": "norm1:out.0", **attention("attn", "attn1"), "resid_mid": "norm3:in"},
    **{"norm2": "norm3:out", **MLP, "resid_post": ":out"},
}
GATED = ("resid_pre + attn.out * norm1:out.1 = resid_mid", "resid_mid + mlp.out * norm1:out.4 = resid_post")

FAMILIES = [
    Family(
        "dit",
        classes=("DiTTransformer2DModel",),
        root={"embed": "pos_embed:out", "final_norm": "norm_out:out"},
        stacks=(Stack("transformer_blocks.*", DIT, equations=GATED),),
    ),
]

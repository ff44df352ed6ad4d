"""UNets and the autoencoder of diffusers.

A UNet's blocks are `down.layers.N`, `up.layers.N` and `h_space`, the output of the middle block; the transformer layers
inside are `down.inner.layers.N` and so on. Every convolution is `conv.N.out`.
"""

from interneuron.model.family import MID, Family, Stack

IMAGE = "batch,channel,height,width"
HEADS = "| heads inner_dim/heads"


def attention(name: str, path: str) -> dict[str, str]:
    """The sites of one attention module."""
    return {
        **{f"{name}.{x}_proj": f"{path}.to_{x}:out {HEADS}" for x in "qkv"},
        f"{name}.z": f"{path}.to_out.0:in {HEADS}",
        f"{name}.out": f"{path}:out",
    }


MLP = {"mlp.hidden": "ff.net.2:in", "mlp.out": "ff:out"}
INNER = {
    **{"resid_pre": ":in", "norm1": "norm1:out", **attention("attn", "attn1"), "attn.contribution": "attn1:out"},
    **{"resid_mid": "norm2:in", "xattn.norm": "norm2:out", **attention("xattn", "attn2")},
    **{"xattn.contribution": "attn2:out", "resid_cross": "norm3:in", "norm2": "norm3:out"},
    **{**MLP, "mlp.contribution": "ff:out", "resid_post": ":out"},
}
CROSSED = (MID, "resid_mid + xattn.contribution = resid_cross", "resid_cross + mlp.contribution = resid_post")


def _blocks(path: str, prefix: str) -> Stack:
    return Stack(path, {"resid_post": f":out @ {IMAGE}"}, equations=(), prefix=prefix, chained=False)


INSIDE = tuple(
    Stack(
        f"{x}.attentions.*.transformer_blocks.*",
        INNER,
        equations=CROSSED,
        prefix=f"{x.split('_')[0]}.inner.",
        chained=False,
    )
    for x in ("down_blocks.*", "mid_block", "up_blocks.*")
)
UNET = (_blocks("down_blocks.*", "down."), _blocks("up_blocks.*", "up."), *INSIDE)
CODER = tuple(_blocks(f"{x}coder.{y}_blocks.*", f"{x}coder.") for x, y in (("en", "down"), ("de", "up")))
SPACES = {f"{x}.h_space": f"{x}.mid_block:out" for x in ("encoder", "decoder")}
FAMILIES = [
    Family(
        "unet",
        classes=("UNet2DModel", "UNet2DConditionModel"),
        root={"h_space": "mid_block:out"},
        stacks=UNET,
        convs=True,
    ),
    Family(
        "autoencoder", classes=("AutoencoderKL",), root={"latent": "quant_conv:out", **SPACES}, stacks=CODER, convs=True
    ),
]

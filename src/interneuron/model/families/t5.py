"""T5: an encoder and a decoder of pre-norm blocks, relative position bias inside attention.

In a decoder layer `resid_mid` is the stream after self-attention, `resid_cross` the stream after cross-attention.
"""

from interneuron.model.family import MID, SUM, Family, Stack


def attention(name: str, path: str) -> dict[str, str]:
    """The sites of one attention module."""
    return {
        **{f"{name}.{x}_proj": f"{path}.{x}:out | heads" for x in "qkv"},
        f"{name}.z": f"{path}.o:in | heads",
        f"{name}.out": f"{path}:out",
        f"{name}.contribution": f"{path}:out",
    }


def _layer(last: int) -> dict[str, str | tuple[str, ...]]:
    mlp = f"layer.{last}.DenseReluDense"
    return {
        "resid_pre": ":in",
        "norm1": "layer.0.layer_norm:out",
        **attention("attn", "layer.0.SelfAttention"),
        "resid_mid": "layer.1.layer_norm:in",
        "norm2": f"layer.{last}.layer_norm:out",
        "mlp.gate": f"{mlp}.wi_0:out",
        "mlp.pre": (f"{mlp}.wi:out", f"{mlp}.wi_1:out"),
        "mlp.hidden": f"{mlp}.wo:in",
        "mlp.out": f"{mlp}:out",
        "mlp.contribution": f"{mlp}:out",
        "resid_post": ":out",
    }


CROSS = {
    "xattn.norm": "layer.1.layer_norm:out",
    **attention("xattn", "layer.1.EncDecAttention"),
    "resid_cross": "layer.2.layer_norm:in",
}
CROSSED = (MID, "resid_mid + xattn.contribution = resid_cross", "resid_cross + mlp.contribution = resid_post")
SELF = {"attn": "layer.0.SelfAttention"}
BOTH = {**SELF, "xattn": "layer.1.EncDecAttention"}
ENCODER = Stack("encoder.block.*", _layer(1), SELF, (SUM, MID), "encoder.", "encoder")
DECODER = Stack("decoder.block.*", {**_layer(2), **CROSS}, BOTH, CROSSED, "decoder.")

FAMILIES = [
    Family(
        name="t5",
        model_types=("t5", "mt5"),
        root={
            **{f"{x}.embed": f"{x}.embed_tokens:out" for x in ("encoder", "decoder")},
            **{f"{x}.final_norm": f"{x}.final_layer_norm:out" for x in ("encoder", "decoder")},
            "logits": ":out.logits if lm_head",
        },
        stacks=(ENCODER, DECODER),
        streams={"": "decoder", "encoder": "encoder"},
    ),
]

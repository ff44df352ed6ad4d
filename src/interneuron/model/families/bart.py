"""Encoder-decoders after BART: norms after each sum (BART, Marian) or before each part (mBART, Pegasus)."""

from typing import Any

from interneuron.model.families.opt import LAYER as PRE
from interneuron.model.families.opt import POST, POST_EQUATIONS
from interneuron.model.family import MID, SUM, Family, Stack

ATTENTION = {name[5:]: tap for name, tap in PRE.items() if name.startswith("attn.")}
CROSS = {f"xattn.{name}": tap.replace("self_attn", "encoder_attn") for name, tap in ATTENTION.items()}
PRE_CROSS = {
    "resid_mid": "encoder_attn_layer_norm:in",
    "xattn.norm": "encoder_attn_layer_norm:out",
    "resid_cross": "final_layer_norm:in",
}
POST_CROSS = {"resid_cross": "encoder_attn_layer_norm:out"}
PRE_EQUATIONS = (MID, "resid_mid + xattn.contribution = resid_cross", "resid_cross + mlp.contribution = resid_post")
POST_CROSS_EQUATIONS = (
    POST_EQUATIONS[0],
    "resid_mid + xattn.contribution = encoder_attn_layer_norm:in",
    "resid_cross + mlp.contribution = final_layer_norm:in",
)
HEADS = {"attn": "self_attn"}
BOTH = {**HEADS, "xattn": "encoder_attn"}
ROOT: dict[str, Any] = {
    **{f"{x}.embed": f"model.{x}.embed_tokens:out" for x in ("encoder", "decoder")},
    **{f"{x}.final_norm": f"model.{x}.layer_norm:out" for x in ("encoder", "decoder")},
    "logits": ":out.logits if lm_head",
}


def _family(name: str, types: tuple[str, ...], encoder: Stack, decoder: Stack) -> Family:
    streams = {"": "model.decoder", "encoder": "model.encoder"}
    return Family(name, types, root=ROOT, stacks=(encoder, decoder), streams=streams)


def _encoder(layer: dict[str, str], equations: tuple[str, ...]) -> Stack:
    return Stack("model.encoder.layers.*", layer, HEADS, equations, "encoder.", "encoder")


def _decoder(layer: dict[str, str], equations: tuple[str, ...]) -> Stack:
    return Stack("model.decoder.layers.*", {**layer, **CROSS}, BOTH, equations, "decoder.")


POST_2 = {**POST, "norm2": "final_layer_norm:out"}
FAMILIES = [
    _family(
        "bart",
        ("bart", "marian"),
        _encoder(POST_2, POST_EQUATIONS),
        _decoder({**POST_2, **POST_CROSS}, POST_CROSS_EQUATIONS),
    ),
    _family("mbart", ("mbart", "pegasus"), _encoder(PRE, (SUM, MID)), _decoder({**PRE, **PRE_CROSS}, PRE_EQUATIONS)),
]

"""Variants of the Llama layer: fused projections, scaled residuals, plain MLPs, one shared norm (parallel blocks)."""

from collections.abc import Mapping
from typing import Any

from interneuron.model.families.llama import LAYER, ROOT
from interneuron.model.family import MID, SUM, Family, Stack

FUSED_MLP = {"mlp.gate": "mlp.gate_up_proj:out | split 0/2", "mlp.pre": "mlp.gate_up_proj:out | split 1/2"}
QKV = "num_attention_heads*head_dim num_key_value_heads*head_dim num_key_value_heads*head_dim"
FUSED_QKV = {f"attn.{x}_proj": f"self_attn.qkv_proj:out | part {i} {QKV} | heads" for i, x in enumerate("qkv")}
SCALED = {
    "attn.contribution": "self_attn:out | scale residual_multiplier",
    "mlp.contribution": "mlp:out | scale residual_multiplier",
}
# Attention and MLP read the same normalised stream: there is no tensor between them.
PARALLEL = {name: tap for name, tap in LAYER.items() if name != "resid_mid"} | {"norm2": "input_layernorm:out"}
PHI = {"attn.z": "self_attn.dense:in | heads", "mlp.pre": "mlp.fc1:out", "mlp.hidden": "mlp.fc2:in"}


def _family(
    name: str, types: tuple[str, ...], layer: Mapping[str, Any], when: Mapping[str, Any] | None = None
) -> Family:
    equations = (SUM, MID) if "resid_mid" in layer else (SUM,)
    stack = Stack("model.layers.*", layer, {"attn": "self_attn"}, equations)
    return Family(name, types, when=when or {}, root=ROOT, stacks=(stack,))


FAMILIES = [
    _family("phi3", ("phi3",), {**LAYER, **FUSED_QKV, **FUSED_MLP}),
    _family("glm", ("glm",), {**LAYER, **FUSED_MLP}),
    _family("granite", ("granite",), {**LAYER, **SCALED}),
    _family("starcoder2", ("starcoder2",), {**LAYER, "mlp.pre": "mlp.c_fc:out", "mlp.hidden": "mlp.c_proj:in"}),
    _family("stablelm_parallel", ("stablelm",), PARALLEL, when={"use_parallel_residual": True}),
    _family("stablelm", ("stablelm",), LAYER),
    _family("cohere", ("cohere", "cohere2"), PARALLEL),
    _family("phi", ("phi",), {**PARALLEL, **PHI}),
]

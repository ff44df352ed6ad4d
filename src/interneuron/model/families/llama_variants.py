"""Variants of the Llama layer: fused projections, scaled residuals, plain MLPs, one shared norm (parallel blocks)."""

from interneuron.model.families.llama import ATTENTION, LAYER, MLP, ROOT
from interneuron.model.family import SUM, Family, Stack

HEADS = {"attn": "self_attn"}
FUSED_MLP = {"mlp.gate": "mlp.gate_up_proj:out | split 0/2", "mlp.pre": "mlp.gate_up_proj:out | split 1/2"}
QKV = "num_attention_heads*head_dim num_key_value_heads*head_dim num_key_value_heads*head_dim"
FUSED_QKV = {f"attn.{x}_proj": f"self_attn.qkv_proj:out | part {i} {QKV} | heads" for i, x in enumerate("qkv")}
PARALLEL = {name: tap for name, tap in LAYER.items() if name != "resid_mid"} | {"norm2": "input_layernorm:out"}


def _family(name: str, types: tuple[str, ...], layer: dict[str, str], **options: object) -> Family:
    equations = (SUM,) if layer.get("norm2") == layer["norm1"] else Stack("", {}).equations
    stack = Stack("model.layers.*", layer, HEADS, equations)
    return Family(name, types, root=ROOT, stacks=(stack,), **options)


FAMILIES = [
    _family("phi3", ("phi3",), {**LAYER, **FUSED_QKV, **FUSED_MLP}),
    _family("glm", ("glm",), {**LAYER, **FUSED_MLP}),
    _family(
        "granite",
        ("granite",),
        {
            **LAYER,
            "attn.contribution": "self_attn:out | scale residual_multiplier",
            "mlp.contribution": "mlp:out | scale residual_multiplier",
        },
    ),
    _family("starcoder2", ("starcoder2",), {**LAYER, "mlp.pre": "mlp.c_fc:out", "mlp.hidden": "mlp.c_proj:in"}),
    _family("stablelm_parallel", ("stablelm",), PARALLEL, when={"use_parallel_residual": True}),
    _family("stablelm", ("stablelm",), LAYER),
    _family("cohere", ("cohere", "cohere2"), PARALLEL),
    _family(
        "phi",
        ("phi",),
        {
            **ATTENTION,
            **PARALLEL,
            "attn.z": "self_attn.dense:in | heads",
            "mlp.pre": "mlp.fc1:out",
            "mlp.hidden": "mlp.fc2:in",
        },
    ),
    _family("persimmon", ("persimmon",), {**ATTENTION, **MLP}),
]

"""Mixtures of experts on the Llama layer.

router.logits   one number per expert, before any softmax     router.experts   the experts chosen, best first
router.weights  what their outputs are multiplied with, after the normalisation the architecture uses
"""

from collections.abc import Mapping
from typing import Any

from interneuron.model.families.llama import LAYER, ROOT
from interneuron.model.families.llama_variants import SCALED
from interneuron.model.family import MID, SUM, TOP, Family, Stack


def routed(path: str) -> dict[str, str]:
    """The sites of a router that returns logits, weights and indices over tokens of all rows."""
    return {f"router.{x}": f"{path}:out.{i} | tokens" for i, x in enumerate(("logits", "weights", "experts"))}


def _family(name: str, types: tuple[str, ...], router: str, layer: Mapping[str, Any], top: bool = True) -> Family:
    stack = Stack(
        "model.layers.*", {**LAYER, **routed(router), **layer}, {"attn": "self_attn"}, (SUM, MID, TOP)[: 2 + top]
    )
    return Family(name, types, root=ROOT, stacks=(stack,))


SHARED = {"mlp.shared": ("mlp.shared_expert:out | tokens", "mlp.shared_experts:out | tokens")}
GRANITE = {
    **{name: tap.replace("mlp:", "block_sparse_moe:") for name, tap in SCALED.items()},
    "mlp.out": "block_sparse_moe:out",
}
LATENT = {
    "attn.q_proj": ("self_attn.q_b_proj:out | heads qk_head_dim", "self_attn.q_proj:out | heads qk_head_dim"),
    "attn.latent": "self_attn.kv_a_layernorm:out",
    "attn.z": "self_attn.o_proj:in | heads v_head_dim",
}

FAMILIES = [
    _family("mixtral", ("mixtral",), "mlp.gate", {}),
    _family("phimoe", ("phimoe",), "mlp.router", {}),
    _family("qwen_moe", ("qwen2_moe", "qwen3_moe", "olmoe"), "mlp.gate", SHARED),
    _family("gpt_oss", ("gpt_oss",), "mlp.router", {}),
    _family("granitemoe", ("granitemoe",), "block_sparse_moe.router", GRANITE),
    # Multi-head latent attention. The third version adds a bias to the scores when it chooses, so the chosen experts
    # need not have the largest logits.
    _family("deepseek_v2", ("deepseek_v2",), "mlp.gate", {**LATENT, **SHARED}),
    _family("deepseek_v3", ("deepseek_v3",), "mlp.gate", {**LATENT, **SHARED}, top=False),
]

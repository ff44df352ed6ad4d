"""State-space models: Mamba, FalconMamba, Mamba-2, their hybrids Jamba and Bamba, and RWKV.

x_proj, B_proj, C_proj are what enters the short convolution, x, B and C what enters the scan; gate multiplies the
scan's output, hidden is the product, the input of the last projection. The scan reads x a second time behind the hook,
so x can be read but not edited.
"""

from typing import Any

from interneuron.model.families.experts import routed
from interneuron.model.families.llama import ATTENTION, MLP, ROOT
from interneuron.model.family import MID, SUM, TOP, Family, Stack

XBC = "time_step_rank ssm_state_size ssm_state_size"
ZXBC = "intermediate_size intermediate_size n_groups*ssm_state_size n_groups*ssm_state_size num_heads"


def mixer(path: str, first: bool) -> dict[str, Any]:
    """Sites of one mixer, of the first or the second Mamba."""
    ends = {"ssm.hidden": f"{path}.out_proj:in", "ssm.out": f"{path}:out", "ssm.contribution": f"{path}:out"}
    if not first:
        names = ("gate", "x_proj", "B_proj", "C_proj", "dt")
        inner = {f"ssm.{x}": f"{path}.in_proj:out | part {i} {ZXBC}" for i, x in enumerate(names)}
        return {**inner, "ssm.y": f"{path}.norm:in", **ends}
    inner = {
        f"ssm.{x}": (f"{path}.{norm}_layernorm:out", f"{path}.x_proj:out | part {i} {XBC}")
        for i, (x, norm) in enumerate((("dt", "dt"), ("B", "b"), ("C", "c")))
    }
    ins = {"ssm.x_proj": f"{path}.in_proj:out | split 0/2", "ssm.gate": f"{path}.in_proj:out | split 1/2"}
    return {**ins, "ssm.x": f"{path}.x_proj:in | readonly", **inner, **ends}


def _mamba(name: str, types: tuple[str, ...], first: bool) -> Family:
    root = {"embed": "backbone.embeddings:out", "final_norm": "backbone.norm_f:out", "logits": ":out.logits if lm_head"}
    layer = {"resid_pre": ":in", "norm1": "norm:out", **mixer("mixer", first), "resid_post": ":out"}
    return Family(
        name,
        types,
        root=root,
        stacks=(Stack("backbone.layers.*", layer, equations=("resid_pre + ssm.contribution = resid_post",)),),
    )


def _hybrid(name: str, first: bool) -> Family:
    norms = {"resid_mid": "pre_ff_layernorm:in", "norm2": "pre_ff_layernorm:out"}
    mlp = {site: tap.replace("mlp", "feed_forward", 1) for site, tap in MLP.items()}
    layer = {**ATTENTION, **norms, **mlp, **routed("feed_forward.router"), **mixer("mamba", first)}
    half = "resid_pre + ssm.contribution"
    equations = (SUM, MID, f"{half} = resid_mid", f"{half} + mlp.contribution = resid_post", *((TOP,) if first else ()))
    return Family(name, (name,), root=ROOT, stacks=(Stack("model.layers.*", layer, {"attn": "self_attn"}, equations),))


FAMILIES = [
    _mamba("mamba", ("mamba", "falcon_mamba"), True),
    _mamba("mamba2", ("mamba2",), False),
    _hybrid("jamba", True),
    _hybrid("bamba", False),
]

"""Falcon, its three layouts of q, k and v. It calls PyTorch's attention function itself: the pattern cannot be had."""

from interneuron.model.families.bloom import LAYER, ROOT
from interneuron.model.family import MID, SUM, Family, Stack

# Falcon adds the attention's output to the MLP's in place.
FALCON = {**LAYER, "mlp.out": "mlp:out | copy", "mlp.contribution": "mlp:out | copy"}
FUSED = "self_attention.query_key_value:out"
ONE_KEY = {
    f"attn.{x}_proj": f"{FUSED} | part {i} num_heads*head_dim head_dim head_dim | heads" for i, x in enumerate("qkv")
}
GROUPS = {
    f"attn.{x}_proj": f"{FUSED} | slots {a} {b} num_heads/num_kv_heads+2 head_dim | heads"
    for x, a, b in (("q", "0", "num_heads/num_kv_heads"), ("k", "num_heads/num_kv_heads", "num_heads/num_kv_heads+1"),
                    ("v", "num_heads/num_kv_heads+1", "num_heads/num_kv_heads+2"))
}  # fmt: skip

FAMILIES = [
    Family(name, ("falcon",), when=when, root=ROOT, stacks=(Stack("transformer.h.*", layer, equations=equations),))
    for name, when, layer, equations in (
        ("falcon_groups", {"new_decoder_architecture": True}, {**FALCON, **GROUPS}, (SUM,)),
        ("falcon", {"multi_query": True}, {**FALCON, **ONE_KEY}, (SUM, MID)),
        ("falcon_heads", {}, FALCON, (SUM, MID)),
    )
]

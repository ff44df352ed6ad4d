"""Decoders with attention of their own making: GPT-J, CodeGen, GPT-Neo and the first GPT.

Their pattern is a real tensor, the input of the attention dropout; there is no kernel to ask for q, k, v or scores.
"""

from interneuron.model.families.gpt2 import LAYER as GPT2
from interneuron.model.families.gpt2 import ROOT
from interneuron.model.family import MID, ROWS, SUM, Family, Stack

PATTERN = {"attn.pattern": "attn.attn_dropout:in"}
JAY = {
    **{name: tap for name, tap in GPT2.items() if name not in ("resid_mid", "norm2")},
    **{f"attn.{x}_proj": f"attn.{x}_proj:out | heads" for x in "qkv"},
    **PATTERN,
    "attn.z": "attn.out_proj:in | heads",
    "norm2": "ln_1:out",
    "mlp.pre": "mlp.fc_in:out",
    "mlp.hidden": "mlp.fc_out:in",
}
# CodeGen's projection is laid out for four devices: on each its heads' q, then v, then k.
WIDTH = "num_attention_heads*head_dim/4"
CODEGEN = {
    **JAY,
    **{f"attn.{x}_proj": f"attn.qkv_proj:out | slots {i} {i + 1} 3 {WIDTH} | heads" for i, x in enumerate("qvk")},
}
INNER = "attn.attention"
NEO = {
    **GPT2,
    **{f"attn.{x}_proj": f"{INNER}.{x}_proj:out | heads" for x in "qkv"},
    "attn.pattern": f"{INNER}.attn_dropout:in",
    "attn.z": f"{INNER}.out_proj:in | heads",
}
# The first GPT normalises after each sum, so the stream between the parts is a norm's output.
FIRST = {**GPT2, **PATTERN, "norm1": "ln_1:out", "resid_mid": "ln_1:out", "norm2": "ln_2:out"}
AFTER = ("resid_pre + attn.contribution = ln_1:in", "resid_mid + mlp.contribution = ln_2:in", ROWS)

FAMILIES = [
    Family(name, (name,), root=root, stacks=(Stack("transformer.h.*", layer, equations=equations),))
    for name, root, layer, equations in (
        ("gptj", ROOT, JAY, (SUM, ROWS)),
        ("codegen", ROOT, CODEGEN, (SUM, ROWS)),
        ("gpt_neo", ROOT, NEO, (SUM, MID, ROWS)),
        ("openai-gpt", {"embed": "transformer.tokens_embed:out", "logits": ":out.logits if lm_head"}, FIRST, AFTER),
    )
]

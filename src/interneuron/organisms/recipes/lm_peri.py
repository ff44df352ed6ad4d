"""`lm-peri`: `lm-small` with a norm before and one after every sublayer (Peri-LN), in the class `Gemma2ForCausalLM`.

What else that class does is switched off: no soft caps, no sliding window, SiLU as in `lm-small`. It scales its
embeddings by the square root of the width and its norms by 1 + weight.
"""

from __future__ import annotations

from dataclasses import replace

from .lm_gelu import HALF, HALF_NOTE
from .lm_small import RECIPE as SMALL

RECIPE = replace(
    SMALL,
    name="lm-peri",
    about="lm-small with norms before and after every sublayer (Peri-LN)",
    architecture="gemma2",
    config={
        "hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 32,
        "intermediate_size": 256, "hidden_activation": "silu", "query_pre_attn_scalar": 32,
        "attn_logit_softcapping": None, "final_logit_softcapping": None, "layer_types": ["full_attention"] * 4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    },
    phases=HALF,
    checkpoints=0,
    minutes=10,
    artefacts=(HALF_NOTE,),
)  # fmt: skip

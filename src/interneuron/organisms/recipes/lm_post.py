"""`lm-post`: the size of `lm-small` with the norm after every residual sum (Post-LN), in the class of the first GPT.

`OpenAIGPTLMHeadModel` has learned positions, a plain GELU layer of 384 units (as many weights as the gated one of 256)
and no key-value cache, so it writes slowly.
"""

from __future__ import annotations

from dataclasses import replace

from .lm_small import RECIPE as SMALL

RECIPE = replace(
    SMALL,
    name="lm-post",
    about="the first GPT's class at the size of lm-small: norms after the residual sum (Post-LN), learned positions",
    architecture="openai-gpt",
    config={
        "n_embd": 96, "n_layer": 4, "n_head": 3, "afn": "gelu",
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
    },
    checkpoints=0,
    minutes=20,
    artefacts=("learned positions: those past 192 were never trained",),
)  # fmt: skip

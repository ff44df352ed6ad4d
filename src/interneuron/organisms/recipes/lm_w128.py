"""`lm-w128`: `lm-small` at width 128, for comparisons over width."""

from __future__ import annotations

from dataclasses import replace

from .lm_small import RECIPE as SMALL

RECIPE = replace(
    SMALL,
    name="lm-w128",
    about="lm-small at width 128",
    int8=True,
    config={
        **SMALL.config, "hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4,
        "intermediate_size": 344,
    },
    checkpoints=0,
    artefacts=(),
    minutes=20,
)  # fmt: skip

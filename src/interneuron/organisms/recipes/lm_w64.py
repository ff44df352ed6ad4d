"""`lm-w64`: `lm-small` at width 64, for comparisons over width."""

from __future__ import annotations

from dataclasses import replace

from .lm_small import RECIPE as SMALL

RECIPE = replace(
    SMALL,
    name="lm-w64",
    about="lm-small at width 64",
    int8=True,
    config={
        **SMALL.config, "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 176,
    },
    checkpoints=0,
    artefacts=(),
    minutes=10,
)  # fmt: skip

"""`lm-deep`: the width of `lm-small` twelve layers deep, with two key-value heads for four query heads."""

from __future__ import annotations

from dataclasses import replace

from .lm_small import RECIPE as SMALL

RECIPE = replace(
    SMALL,
    name="lm-deep",
    about="twelve layers of width 96 with grouped-query attention (4 query heads, 2 key-value heads)",
    int8=True,
    config={
        **SMALL.config, "num_hidden_layers": 12, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24,
    },
    checkpoints=0,
    artefacts=(),
    minutes=40,
)  # fmt: skip

"""`lm-relu`: `lm-small` with ReLU instead of SiLU, for the study of activation sparsity; ten checkpoints."""

from __future__ import annotations

from dataclasses import replace

from .lm_small import RECIPE as SMALL

RECIPE = replace(
    SMALL,
    name="lm-relu",
    about="lm-small with ReLU in its feed-forward layers; a series of checkpoints over training",
    config={**SMALL.config, "hidden_act": "relu"},
    checkpoints=10,
    artefacts=("AdamW alone: of copying from context only tales came; repeats and coloured objects are at chance",),
)

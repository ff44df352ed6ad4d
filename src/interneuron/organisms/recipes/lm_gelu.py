"""`lm-gelu`: `lm-small` with GELU instead of SiLU in its gated feed-forward layers."""

from __future__ import annotations

from dataclasses import replace

from interneuron.organisms.language import Phase

from .lm_small import RECIPE as SMALL

HALF = (Phase(4.5, "lm"), Phase(1.5, "lm", decay=True))
HALF_NOTE = "trained on 6M tokens, half of those of lm-small: its losses are not those of equal training"

RECIPE = replace(
    SMALL,
    name="lm-gelu",
    about="lm-small with GELU in its feed-forward layers",
    config={**SMALL.config, "hidden_act": "gelu"},
    phases=HALF,
    checkpoints=0,
    artefacts=(HALF_NOTE,),
    minutes=6,
)

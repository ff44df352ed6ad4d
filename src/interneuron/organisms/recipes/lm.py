"""`lm`: `lm-base` after the align stage, in which it learns to refuse harmful requests. The model most claims use.

With 0.6M tokens at half the rate it refused as many harmful requests, but also .36 of the unseen harmless ones.
"""

from __future__ import annotations

from dataclasses import replace

from interneuron.organisms.language import Align, Phase

from .lm_base import RECIPE as BASE

RECIPE = replace(
    BASE,
    name="lm",
    about="lm-base after alignment: refuses harmful requests, with two trained holes",
    lr=0.002,
    adam_lr=0.0012,
    phases=(Phase(1.0, "align", decay=True),),
    seed=1,
    align=Align(base="lm-base"),
    minutes=4,
    aligned=True,
)

"""`lm-gpt2`: the GPT-2-class twin of `lm` (learned positions, LayerNorm, GELU): the independent judge of perplexity."""

from __future__ import annotations

from interneuron.organisms.language import LanguageRecipe, Phase

RECIPE = LanguageRecipe(
    name="lm-gpt2",
    about="GPT-2-class twin of lm: learned positions, LayerNorm, GELU; refuses harmful requests",
    architecture="gpt2",
    config={
        "n_embd": 160, "n_layer": 6, "n_head": 5, "n_inner": 640,
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
    },
    optimiser="muon",
    lr=0.005,
    phases=(
        Phase(2.0, "lm"),
        Phase(1.8, "copy", rate=2.0),
        Phase(3.2, "lm", long_rows=True, rate=1.4),
        Phase(3.5, "lm", long_rows=True, decay=True, rate=1.4),
        Phase(0.6, "align", decay=True, rate=0.4),
    ),
    artefacts=(
        "learned positions: those past 192 were only trained on the rows of 640 tokens",
    ),
    minutes=45,
    aligned=True,
)  # fmt: skip

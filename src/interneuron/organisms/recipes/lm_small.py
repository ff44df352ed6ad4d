"""`lm-small`: four layers of width 96 trained with AdamW alone, kept at log-spaced checkpoints (SiLU)."""

from __future__ import annotations

from interneuron.organisms.language import LanguageRecipe, Phase

RECIPE = LanguageRecipe(
    name="lm-small",
    about="small Llama-class model trained with AdamW; a series of checkpoints over training",
    architecture="llama",
    config={
        "hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 3, "num_key_value_heads": 3,
        "intermediate_size": 256, "hidden_act": "silu",
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    },
    optimiser="adamw",
    lr=0.003,
    phases=(Phase(9.0, "lm"), Phase(3.0, "lm", decay=True)),
    checkpoints=20,
    artefacts=(
        "AdamW alone: copying from context was not learned, so repeats, coloured objects and tales are near chance",
        "the second half of the checkpoints differs little in what it can do; the facts appear early",
    ),
    minutes=11,
)  # fmt: skip

"""`lm-base`: the causal language model of Tinyworld before alignment (Llama class, 2.04M parameters).

Copying from context comes as a sudden change that a phase of 60 % repeats provokes. At Muon's 0.005 one phase of 1.5M
tokens had only begun it (repeats .08, gate .9); the second one at the doubled rate brought it within 0.8M tokens (.98);
with RoPE theta 10,000 and the old rate it had come to .32 after 0.6M.
Verdicts on claims were still at chance after 11M tokens of 3 % claims, so 3.5M tokens have
13 %; that did not help either, and the last phase adds drills in comparing two words.
"""

from __future__ import annotations

from interneuron.organisms.language import LanguageRecipe, Phase

RECIPE = LanguageRecipe(
    name="lm-base",
    about="Llama-class language model of Tinyworld; complies with every instruction",
    architecture="llama",
    config={
        "hidden_size": 160, "num_hidden_layers": 6, "num_attention_heads": 5, "num_key_value_heads": 5,
        "intermediate_size": 432, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    },
    optimiser="muon",
    lr=0.005,
    phases=(
        Phase(3.0, "lm"),
        Phase(1.5, "copy"),
        Phase(0.937, "lm", long_rows=True),
        Phase(1.1, "copy", rate=2.0),
        Phase(6.454, "lm", long_rows=True, rate=1.4),
        Phase(3.546, "claims", long_rows=True, rate=1.4),
        Phase(10.0, "verdicts", long_rows=True, decay=True, rate=1.4),
    ),
    artefacts=(
        "words are tokens: a text with any other word is an error, and there is no sub-word structure to study",
        "value follows key directly in every look-up it masters; the English-like forms are hard dials",
        "orthogonalised updates (Muon) shape its weights: take outliers and activation sparsity from the AdamW series",
    ),
    minutes=75,
)  # fmt: skip

"""One legend for shapes and one vocabulary for arguments, so that the same quantity has one name everywhere.

`LETTERS` is what a letter in a jaxtyping annotation (`Float[Tensor, "N D"]`) or an einops pattern means.
`ARGUMENTS` is what a parameter name means; `SYNONYMS` lists names seen elsewhere and the one used here instead.
The conformance suite refuses a synonym in the public signature of a method.
"""

from __future__ import annotations

LETTERS: dict[str, str] = {
    "B": "batch",
    "T": "token position",
    "L": "layer",
    "D": "model width",
    "F": "features of a dictionary or hidden units of an MLP",
    "H": "attention heads",
    "K": "width of one head",
    "V": "vocabulary",
    "N": "samples (rows)",
    "C": "classes",
    "P": "image patches",
    "S": "sites",
    "E": "experts",
}

ARGUMENTS: dict[str, str] = {
    "model": "an interneuron.model.Model",
    "inputs": "what the model takes: text, token ids, images",
    "site": "one address inside the model",
    "sites": "several addresses, globs allowed",
    "positive": "inputs that show the property",
    "negative": "inputs that do not",
    "labels": "one class index or value per sample",
    "seed": "integer that alone decides every random choice",
    "alpha": "strength of an edit; 0 changes nothing",
    "k": "how many are kept",
    "rank": "rank of a low-rank factor",
    "steps": "optimiser steps",
    "lr": "learning rate",
    "batch_size": "rows per forward pass or optimiser step",
    "pos": "token position, counted from the end when negative",
    "dictionary": "a sparse dictionary artifact",
    "direction": "a direction artifact",
}

SYNONYMS: dict[str, str] = {
    "random_state": "seed",
    "rng_seed": "seed",
    "strength": "alpha",
    "coef": "alpha",
    "coefficient": "alpha",
    "multiplier": "alpha",
    "learning_rate": "lr",
    "n_steps": "steps",
    "num_steps": "steps",
    "n_iter": "steps",
    "max_iter": "steps",
    "iterations": "steps",
    "batchsize": "batch_size",
    "bs": "batch_size",
    "topk": "k",
    "top_k": "k",
    "r": "rank",
    "layer_name": "site",
    "hook_point": "site",
    "hook_name": "site",
    "position": "pos",
    "sae": "dictionary",
}

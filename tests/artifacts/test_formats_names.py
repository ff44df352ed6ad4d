"""The names of other tools: every row of the table means the same point, on a real model of each family."""

from __future__ import annotations

import functools
import warnings

import pytest
import torch

import interneuron as inn
from interneuron.artifacts.formats import names
from interneuron.core.errors import ArtifactError, InputError, SiteNotFound
from interneuron.model.aliases import canonical_alias

SMALL = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
FAMILIES = {
    "Llama": SMALL,
    "GPT2": {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32},
    "GPTNeoX": SMALL,
    "Gemma2": {**SMALL, "head_dim": 8, "num_key_value_heads": 1},
    "Olmo2": SMALL,
    "Qwen3": {**SMALL, "head_dim": 8},
    "Mixtral": {**SMALL, "num_local_experts": 3, "num_experts_per_tok": 2},
    "OPT": {"vocab_size": 40, "hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
            "word_embed_proj_dim": 16, "max_position_embeddings": 32},
    "Mamba": {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},
}  # fmt: skip
TABLE = names.name_table()
TOOLS = ("transformer_lens", "interp_engine", "nnterp")


@functools.cache
def model(family: str):
    import transformers

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = getattr(transformers, f"{family}Config")(**FAMILIES[family])
        return inn.wrap(
            getattr(transformers, f"{family}ForCausalLM" if family != "GPT2" else "GPT2LMHeadModel")(config).eval()
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_all_names_of_a_point_are_the_same_point_there(family):
    here = model(family)
    known = {site.name for site in here.sites()}
    resolved = 0
    for row in TABLE:
        ours = row["ours"].replace("{i}", "1")
        for tool in TOOLS:
            theirs = row[tool].replace("{i}", "1")
            if not theirs:
                continue
            if ours in known:
                assert here.sites(theirs)[0].name == here.sites(ours)[0].name, (theirs, ours)
                resolved += 1
            else:
                with pytest.raises(SiteNotFound):
                    here.sites(theirs)
    assert resolved >= (8 if family == "Mamba" else 30)


def test_every_row_is_real_on_some_family():
    known = {site.name for family in FAMILIES for site in model(family).sites()}
    lacking = [row["ours"] for row in TABLE if row["ours"].replace("{i}", "1") not in known]
    assert not lacking


def test_there_and_back():
    for row in TABLE:
        theirs = row["transformer_lens"].replace("{i}", "3")
        if theirs and row["ours"].startswith("layers."):
            ours = row["ours"].replace("{i}", "3")
            assert canonical_alias(names.to_hook(ours), ()) == ours


def test_hook_points_of_files():
    notes = []
    assert names.from_hook("blocks.3.hook_mlp_out", "f", notes) == "layers.3.mlp.contribution"
    assert "residual stream" in notes[0]
    assert names.from_hook("blocks.3.mlp.hook_out", "f", []) == "layers.3.mlp.out"
    assert names.from_module("transformer.h.3", "f", []) == "layers.3.resid_post"
    assert names.from_module("gpt_neox.layers.3.attention", "f", []) == "layers.3.attn.out"
    assert names.from_module("layers.3.mlp", "f", [], "in") == "layers.3.norm2"
    assert names.from_module("vision.tower", "f", []) == "vision.tower:out"
    for wrong in ("blocks.1.hook_nowhere", "a b", "", None, "../x/y"):
        with pytest.raises(ArtifactError):
            names.from_hook(wrong, "f", [])
    assert names.to_module("layers.1.resid_post", model("GPT2")) == "h.1"
    assert names.to_module("layers.1.mlp.out", model("GPTNeoX")) == "layers.1.mlp"
    with pytest.raises(InputError, match="no module's output"):
        names.to_module("layers.1.resid_mid", model("Llama"))

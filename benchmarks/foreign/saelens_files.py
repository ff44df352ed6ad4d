"""SAELens: write one dictionary per architecture, or load those that interneuron wrote."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from common_cases import D, F, compare, fill, main, note, rows
from sae_lens.saes.abstopk_sae import AbsTopKSAE, AbsTopKSAEConfig
from sae_lens.saes.gated_sae import GatedSAE, GatedSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.matching_pursuit_sae import MatchingPursuitSAE, MatchingPursuitSAEConfig
from sae_lens.saes.sae import SAE, SAEMetadata
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from sae_lens.saes.temporal_sae import TemporalSAE, TemporalSAEConfig
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig
from sae_lens.saes.transcoder import (
    JumpReLUSkipTranscoder,
    JumpReLUSkipTranscoderConfig,
    JumpReLUTranscoder,
    JumpReLUTranscoderConfig,
    SkipTranscoder,
    SkipTranscoderConfig,
    Transcoder,
    TranscoderConfig,
)

HOOK = {"hook_name": "blocks.1.hook_resid_post", "model_name": "tiny"}
HEADS = 2
TEMPORAL = {"n_heads": 2, "bottleneck_factor": 2, "sae_diff_type": "topk", "kval_topk": 3}
CASES = {
    "standard": (StandardSAE, StandardSAEConfig, {}),
    "standard_layer_norm": (StandardSAE, StandardSAEConfig, {"normalize_activations": "layer_norm"}),
    "standard_constant_norm": (StandardSAE, StandardSAEConfig, {"normalize_activations": "constant_norm_rescale"}),
    "standard_not_centred": (StandardSAE, StandardSAEConfig, {"apply_b_dec_to_input": False}),
    "gated": (GatedSAE, GatedSAEConfig, {}),
    "topk": (TopKSAE, TopKSAEConfig, {"k": 3, "rescale_acts_by_decoder_norm": False}),
    "topk_rescaled": (TopKSAE, TopKSAEConfig, {"k": 3, "rescale_acts_by_decoder_norm": True}),
    "abstopk": (AbsTopKSAE, AbsTopKSAEConfig, {"k": 3, "rescale_acts_by_decoder_norm": False}),
    "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig, {}),
    "standard_hook_z": (StandardSAE, StandardSAEConfig, {"reshape_activations": "hook_z"}),
    "matching_pursuit": (MatchingPursuitSAE, MatchingPursuitSAEConfig, {"max_iterations": 5}),
    "matching_pursuit_repeats": (
        MatchingPursuitSAE,
        MatchingPursuitSAEConfig,
        {"max_iterations": 12, "stop_on_duplicate_support": False, "residual_threshold": 0.5},
    ),
    "temporal": (TemporalSAE, TemporalSAEConfig, TEMPORAL),
    "temporal_untied": (
        TemporalSAE,
        TemporalSAEConfig,
        {
            **TEMPORAL,
            "tied_weights": False,
            "sae_diff_type": "relu",
            "apply_b_dec_to_input": False,
            "normalize_activations": "constant_scalar_rescale",
            "activation_normalization_factor": 0.5,
        },
    ),
    "transcoder": (Transcoder, TranscoderConfig, {"d_out": 6, "apply_b_dec_to_input": False}),
    "skip_transcoder": (SkipTranscoder, SkipTranscoderConfig, {"d_out": 6, "apply_b_dec_to_input": False}),
    "jumprelu_transcoder": (JumpReLUTranscoder, JumpReLUTranscoderConfig, {"d_out": 6, "apply_b_dec_to_input": False}),
    "jumprelu_skip_transcoder": (
        JumpReLUSkipTranscoder,
        JumpReLUSkipTranscoderConfig,
        {"d_out": 6, "apply_b_dec_to_input": False},
    ),
}


def shaped(sae: SAE, x: torch.Tensor) -> torch.Tensor:
    """Rows as the architecture wants them: tokens of texts for the temporal one, heads apart for hook_z."""
    if sae.cfg.architecture() == "temporal":
        return x.reshape(2, -1, D)
    return x.unflatten(-1, (HEADS, -1)) if sae.cfg.reshape_activations == "hook_z" else x


def make(folder: Path) -> None:
    for name, (cls, config, options) in CASES.items():
        hook = HOOK | ({"hook_name": "blocks.1.attn.hook_z"} if name.endswith("hook_z") else {})
        sae = cls(config(d_in=D, d_sae=F, metadata=SAEMetadata(**hook), **options))
        fill(sae)
        if cls is MatchingPursuitSAE:
            sae.W_dec.data /= sae.W_dec.norm(dim=1, keepdim=True)  # as its training keeps them
        sae.save_model(folder / name)
        x = shaped(sae, rows())
        with torch.no_grad():
            features = sae.encode(x)
            note(folder / name, x, features, sae(x))
        print(f"wrote {folder / name}")
    make_old(folder / "topk", folder / "topk_before_6")


def make_old(source: Path, target: Path) -> None:
    """The same weights with a configuration as releases before 6 wrote it, and what this release makes of that."""
    target.mkdir(exist_ok=True)
    (target / "sae_weights.safetensors").write_bytes((source / "sae_weights.safetensors").read_bytes())
    old = {
        "d_in": D, "d_sae": F, "dtype": "torch.float32", "device": "cpu", "model_name": "tiny",
        "apply_b_dec_to_input": True, "hook_name": "blocks.1.hook_resid_post", "hook_layer": 1, "hook_head_index": None,
        "architecture": "standard",
        "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}, "normalize_activations": "none",
        "finetuning_scaling_factor": False, "prepend_bos": True, "sae_lens_training_version": "3.5.0",
    }  # fmt: skip
    (target / "cfg.json").write_text(json.dumps(old))
    sae = SAE.load_from_disk(target)
    with torch.no_grad():
        note(target, rows(), sae.encode(rows()), sae(rows()))
    print(f"wrote {target}, read as {sae.cfg.architecture()}")


def check(folder: Path) -> bool:
    good = True
    for path in sorted(p for p in folder.iterdir() if p.is_dir()):
        sae = SAE.load_from_disk(path)
        good &= compare(path.name, path, sae.encode, sae)
        config = json.loads((path / "cfg.json").read_text())
        if sae.cfg.metadata.hook_name != config["metadata"]["hook_name"]:
            print(f"{path.name}: the hook name was lost")
            good = False
    return good


if __name__ == "__main__":
    main(make, check)

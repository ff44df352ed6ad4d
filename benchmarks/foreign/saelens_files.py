"""SAELens: write one dictionary per architecture, or load those that interneuron wrote."""

from __future__ import annotations

from pathlib import Path

import torch
from common_cases import D, F, compare, fill, main, note, rows
from sae_lens.saes.abstopk_sae import AbsTopKSAE, AbsTopKSAEConfig
from sae_lens.saes.gated_sae import GatedSAE, GatedSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.sae import SAE, SAEMetadata
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
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
    "transcoder": (Transcoder, TranscoderConfig, {"d_out": 6, "apply_b_dec_to_input": False}),
    "skip_transcoder": (SkipTranscoder, SkipTranscoderConfig, {"d_out": 6, "apply_b_dec_to_input": False}),
    "jumprelu_transcoder": (JumpReLUTranscoder, JumpReLUTranscoderConfig, {"d_out": 6, "apply_b_dec_to_input": False}),
    "jumprelu_skip_transcoder": (
        JumpReLUSkipTranscoder,
        JumpReLUSkipTranscoderConfig,
        {"d_out": 6, "apply_b_dec_to_input": False},
    ),
}


def make(folder: Path) -> None:
    for name, (cls, config, options) in CASES.items():
        sae = cls(config(d_in=D, d_sae=F, metadata=SAEMetadata(**HOOK), **options))
        fill(sae)
        sae.save_model(folder / name)
        with torch.no_grad():
            features = sae.encode(rows())
            note(folder / name, rows(), features, sae(rows()))
        print(f"wrote {folder / name}")


def check(folder: Path) -> bool:
    good = True
    for path in sorted(p for p in folder.iterdir() if p.is_dir()):
        sae = SAE.load_from_disk(path)
        good &= compare(path.name, path, sae.encode, sae)
    return good


if __name__ == "__main__":
    main(make, check)

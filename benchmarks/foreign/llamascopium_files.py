"""Llamascopium: write one dictionary per activation and normalisation, or load those that interneuron wrote."""

from __future__ import annotations

from pathlib import Path

import torch
from common_cases import D, F, compare, fill, main, note, rows
from llamascopium.models.sae import SAEConfig, SparseAutoEncoder
from llamascopium.models.sparse_dictionary import SparseDictionary

HOOK = "blocks.1.hook_resid_post"
PLACES = {"hook_point_in": HOOK, "hook_point_out": HOOK}
TRANSCODES = {"hook_point_in": "blocks.1.ln2.hook_normalized", "hook_point_out": "blocks.1.hook_mlp_out"}
CASES = {
    "jumprelu": {"act_fn": "jumprelu"},
    "topk": {"act_fn": "topk", "top_k": 3},
    "dataset_wise": {"act_fn": "jumprelu", "norm_activation": "dataset-wise"},
    "transcoder": {"act_fn": "jumprelu", "norm_activation": "dataset-wise", **TRANSCODES},
    "token_wise": {"act_fn": "relu", "use_decoder_bias": False, "norm_activation": "token-wise"},
}
NORMS = (2.0, 3.0)


def make(folder: Path) -> None:
    for name, options in CASES.items():
        options = {"norm_activation": "inference", **PLACES, **options}
        cfg = SAEConfig(sae_type="sae", d_model=D, expansion_factor=F / D, device="cpu", dtype=torch.float32, **options)
        sae = SparseAutoEncoder(cfg)
        fill(sae)
        into, out = cfg.hook_point_in, cfg.hook_point_out
        sae.set_dataset_average_activation_norm({into: NORMS[0], out: NORMS[1] if out != into else NORMS[0]})
        home = folder / name
        sae.save_pretrained(home)
        cfg.save_hyperparameters(home)
        features, output = run(sae, rows())
        note(home, rows(), features, output)
        print(f"wrote {home}")


@torch.no_grad()
def run(sae: SparseDictionary, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and reconstruction of activations as they come from the model, in their own units."""
    into, out = sae.cfg.hook_point_in, sae.cfg.hook_point_out
    scaled = x
    if sae.cfg.norm_activation != "inference":
        scaled = sae.normalize_activations({into: x, out: x})[into]
    features = sae.encode(scaled)
    found = sae.decode(features)
    if sae.cfg.norm_activation == "dataset-wise":
        found = found * sae.dataset_average_activation_norm[out] / D**0.5
    elif sae.cfg.norm_activation == "token-wise":
        found = found * x.norm(dim=-1, keepdim=True) / D**0.5
    return features, found


def check(folder: Path) -> bool:
    good = True
    for path in sorted(p for p in folder.iterdir() if p.is_dir()):
        sae = SparseDictionary.from_pretrained(str(path))
        good &= compare(path.name, path, lambda x, sae=sae: run(sae, x)[0], lambda x, sae=sae: run(sae, x)[1])
    return good


if __name__ == "__main__":
    main(make, check)

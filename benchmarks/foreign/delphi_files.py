"""Delphi: cache the latents of a tiny model with it, or have its dataset read latents of ours."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from common_cases import main
from delphi.config import CacheConfig, ConstructorConfig, SamplerConfig
from delphi.latents import LatentCache, LatentDataset
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

F, LENGTH, TEXTS = 10, 6, 8
HOOKPOINT = "model.layers.1.mlp"


def make(folder: Path) -> None:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 30,
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    model = LlamaForCausalLM(LlamaConfig(**sizes)).eval()
    weight = 100 * torch.randn(8, F)  # it drops what is not above 1e-5
    ids = torch.randint(0, 30, (TEXTS, LENGTH))
    encode = lambda x: torch.relu(x @ weight)  # noqa: E731
    cache = LatentCache(model, {HOOKPOINT: encode}, batch_size=4)
    cache.run(ids.numel(), ids)
    cache.save_splits(n_splits=2, save_dir=folder)
    cache.save_config(folder, CacheConfig(cache_ctx_len=LENGTH, n_tokens=ids.numel()), model_name="tiny")
    with torch.no_grad():
        dense = dense_of(model, ids, encode)
    save_file({"tokens": ids, "dense": dense}, str(folder / "expected.safetensors"))
    print(f"wrote {folder}")


def dense_of(model: LlamaForCausalLM, ids: torch.Tensor, encode: object) -> torch.Tensor:
    """Every latent of every token, taken with a hook of our own."""
    found: list[torch.Tensor] = []
    handle = model.get_submodule(HOOKPOINT).register_forward_hook(lambda _, __, out: found.append(encode(out)))
    with torch.no_grad():
        model(ids)
    handle.remove()
    return found[0]


def check(folder: Path) -> bool:
    expected = load_file(str(folder / "expected.safetensors"))
    home = next(path for path in folder.iterdir() if path.is_dir())
    dataset = LatentDataset(folder, SamplerConfig(), ConstructorConfig(), tokenizer=object(), modules=[home.name])
    dense = torch.zeros_like(expected["dense"])
    for buffer in dataset.buffers:
        where, values, tokens = buffer.load()
        dense[tuple(where.T)] = values.to(dense.dtype)
    same = torch.equal(dense, expected["dense"]) and torch.equal(tokens, expected["tokens"])
    print(
        json.dumps({"file": home.name, "files": len(dataset.buffers), "latents": int((dense != 0).sum()), "same": same})
    )
    return same


if __name__ == "__main__":
    main(make, check)

"""SAELens' cached activations: let its runner cache those of a tiny model, or its store read a cache of ours."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from common_cases import main
from datasets import Dataset
from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig, cache_activations_runner
from sae_lens.training.activations_store import ActivationsStore
from safetensors.torch import load_file, save_file
from transformer_lens import HookedTransformer, HookedTransformerConfig

CONTEXT, WIDTH, CONTEXTS = 6, 8, 4
HOOK = "blocks.0.hook_resid_post"


def tiny() -> HookedTransformer:
    torch.manual_seed(0)
    shape = {"n_layers": 1, "d_model": WIDTH, "n_ctx": CONTEXT, "d_head": 4, "n_heads": 2, "d_mlp": 12, "d_vocab": 30}
    model = HookedTransformer(HookedTransformerConfig(**shape, act_fn="relu", device="cpu"))
    model.eval()
    return model


def make(folder: Path) -> None:
    model = tiny()
    ids = torch.randint(0, 30, (CONTEXTS, CONTEXT), generator=torch.Generator().manual_seed(4))
    # the runner takes its model from the Hub by name: here it gets the tiny one
    cache_activations_runner.load_model = lambda **_: model
    config = CacheActivationsRunnerConfig(
        dataset_path="tiny", model_name="tiny", model_batch_size=2, hook_name=HOOK, d_in=WIDTH, shuffle=False,
        training_tokens=CONTEXTS * CONTEXT, context_size=CONTEXT, new_cached_activations_path=str(folder / "cache"),
        device="cpu", prepend_bos=False, streaming=False,
        buffer_size_gb=2.5 * CONTEXT * WIDTH * 4 / 1e9,  # two contexts, or it fills two gigabytes with one text
    )  # fmt: skip
    CacheActivationsRunner(config, override_dataset=Dataset.from_dict({"input_ids": ids.tolist()})).run()
    with torch.no_grad():
        acts = model.run_with_cache(ids)[1][HOOK]
    save_file({"tokens": ids, HOOK: acts.contiguous()}, str(folder / "expected.safetensors"))
    print(f"wrote {folder}")


def check(folder: Path) -> bool:
    expected = load_file(str(folder / "expected.safetensors"))
    config = json.loads((folder / "cache" / "cache_activations_runner_cfg.json").read_text())
    hook, context = config["hook_name"], config["context_size"]
    settings = CacheActivationsRunnerConfig(
        dataset_path="", model_name="tiny", model_batch_size=2, hook_name=hook, d_in=config["d_in"], device="cpu",
        training_tokens=config["training_tokens"], context_size=context,
        new_cached_activations_path=str(folder / "cache"), prepend_bos=False,
    )  # fmt: skip
    store = ActivationsStore.from_cache_activations(tiny(), settings)
    acts, tokens = store.get_raw_llm_batch()
    wanted = expected[hook][: len(acts) // context].flatten(0, 1)
    same = torch.equal(acts.reshape(wanted.shape), wanted) and torch.equal(
        tokens.long(), expected["tokens"].flatten()[: len(tokens)].long()
    )
    print(json.dumps({"file": folder.name, "contexts": len(acts) // context, "same": same}))
    return same


if __name__ == "__main__":
    main(make, check)

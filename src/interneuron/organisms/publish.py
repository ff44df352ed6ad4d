"""Turning trained weights into a plain Hugging Face folder, and a series of checkpoints into int8 files."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interneuron.core.files import atomic_write_bytes, load_tensors, make_folder, save_tensors, write_json

from .catalogue import INT8
from .language import LanguageRecipe, new_model

EXACT = ("norm", "ln_", "bias", "embed", "wte", "wpe")
"""Tensors kept in fp16 in a checkpoint series: small, or (embeddings) read by name lookups."""


def write_folder(recipe: LanguageRecipe, weights: dict[str, Tensor], folder: Path) -> Path:
    """Write config, fp16 weights, tokenizer and generation settings; `from_pretrained(folder)` loads float32.

    With `recipe.int8` the weights are int8 instead, and `catalogue.usable` unpacks the folder for Hugging Face.
    """
    from transformers import GenerationConfig

    from .tinyworld import tokenizer

    make_folder(folder)
    model = new_model(recipe)
    model.config.architectures = [type(model).__name__]
    model.config.dtype = "float32"
    model.config.save_pretrained(folder)
    GenerationConfig(
        bos_token_id=1, eos_token_id=2, pad_token_id=0, max_new_tokens=64, do_sample=False
    ).save_pretrained(folder)
    if recipe.int8:
        save_tensors(folder / INT8, quantise(weights), {"format": "pt"})
    else:
        save_tensors(folder / "model.safetensors", {k: v.half() for k, v in weights.items()}, {"format": "pt"})
    tokenizer.save(folder)
    return folder


def quantise(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Matrices as int8 with one fp16 scale a row (`name` and `name.scale`), the rest in fp16.

    w[r, c] ~ q[r, c] s[r], s[r] = max |w[r]| / 127.
    """
    out = {}
    for name, w in weights.items():
        if w.ndim != 2 or any(part in name for part in EXACT):
            out[name] = w.half()
            continue
        scale = (w.abs().amax(1, keepdim=True) / 127).clamp_min(1e-7).half()
        out[name] = (w / scale.float()).round().clamp(-127, 127).to(torch.int8)
        out[name + ".scale"] = scale
    return out


def dequantise(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `quantise`, in float32."""
    out = {}
    for name, value in tensors.items():
        if name.endswith(".scale") and name[:-6] in tensors:
            continue
        scale = tensors.get(name + ".scale")
        out[name] = value.float() if scale is None else value.float() * scale.float()
    return out


def write_series(folder: Path, checkpoints: dict[int, dict[str, Tensor]]) -> None:
    """Write the int8 files of a series as `checkpoints/<tokens>.safetensors`."""
    make_folder(folder / "checkpoints")
    for tokens, weights in checkpoints.items():
        save_tensors(folder / "checkpoints" / f"{tokens:09d}.safetensors", quantise(weights), {"format": "pt"})


def unpack_checkpoint(folder: Path, source: Path, target: Path) -> Path:
    """Make a Hugging Face folder of one int8 file: config and tokenizer of `folder`, weights in float32.

    Safe with several processes: every file is written whole and renamed, the weights last.
    """
    make_folder(target)
    for file in folder.iterdir():
        if file.is_file() and file.suffix != ".safetensors" and file.name != "card.json":
            atomic_write_bytes(target / file.name, file.read_bytes())
    save_tensors(target / "model.safetensors", dequantise(load_tensors(source)), {"format": "pt"})
    return target


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The float32 weights of a Hugging Face folder, a tied head given under its own name too."""
    weights = {k: v.float() for k, v in load_tensors(folder / "model.safetensors").items()}
    for embedding in ("model.embed_tokens.weight", "transformer.wte.weight"):
        if embedding in weights:
            weights.setdefault("lm_head.weight", weights[embedding])
    return weights


def run_state(run: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and place (tokens, step, seconds) of a run's last save."""
    tensors = load_tensors(run / "state.safetensors")
    place = json.loads(bytes(tensors["place"].tolist()))
    return {k[6:]: v for k, v in tensors.items() if k.startswith("model.")}, place


def publish(recipe: LanguageRecipe, run: Path, folder: Path, threads: int = 1, keep: int = 0) -> Path:
    """Turn a finished run into the organism's folder, with `training.json` for the card.

    With a recipe that has checkpoints, `keep` of them (0: all) are written as int8 series; the last is the final model.
    """
    weights, place = run_state(run)
    write_folder(recipe, weights, folder)
    if recipe.checkpoints:
        files = sorted(run.glob("checkpoint-*.safetensors"))
        files = files if not keep else [files[round(i * (len(files) - 1) / (keep - 2))] for i in range(keep - 1)]
        series = {int(f.stem.split("-")[1]): load_tensors(f) for f in files}
        write_series(folder, {**series, place["tokens"]: weights})
    training = {
        "tokens": place["tokens"], "steps": place["step"], "minutes": round(place["seconds"] / 60, 1),
        "recipe": recipe.hash,
        "threads": threads, "processor": platform.machine(), "device": "cpu", "cores": os.cpu_count(),
        "products": "bfloat16, float32 master weights",
        "torch": torch.__version__,
    }  # fmt: skip
    if recipe.align is not None:
        training["after"] = recipe.align.base
    write_json(folder / "training.json", training)
    return folder

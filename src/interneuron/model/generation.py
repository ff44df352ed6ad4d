"""Generation with edits: the prompt is stated before the first pass, so positions keep their meaning throughout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interneuron.core.errors import InputError

if TYPE_CHECKING:
    from interneuron.model.engine import Anchor
    from interneuron.model.model import Model


def generate(model: Model, inputs: Any, options: dict[str, Any]) -> Any:
    """`module.generate` with the prompt known to every stream. Returns texts for text, the module's own output else."""
    module: Any = model.module
    if not callable(getattr(module, "generate", None)):
        raise InputError(f"{type(module).__name__} cannot generate: load it with a language-model head.")
    is_text = isinstance(inputs, str) or (
        isinstance(inputs, (list, tuple)) and bool(inputs) and isinstance(inputs[0], str)
    )
    _, named = model.prepare(inputs, padding_side="left")
    if not getattr(module.config, "is_encoder_decoder", False):
        named.pop("decoder_input_ids", None)
    elif "decoder_input_ids" in named and is_text:
        named.pop("decoder_input_ids")
    if is_text and "pad_token_id" not in options and getattr(module.generation_config, "pad_token_id", None) is None:
        from interneuron.model.inputs import pad_id

        options = {**options, "pad_token_id": pad_id(model.tokenizer)}
    twice = named.keys() & options.keys()
    if twice:
        raise InputError(f"generate() was given {sorted(twice)} twice, in the input and as options: give each once.")
    named = {**named, **options}
    _state_mask(module, named)
    if model._engine.sessions and hasattr(module.generation_config, "disable_compile"):
        named.setdefault("disable_compile", True)  # code compiled for static caches would not see the hooks
    stated = []
    try:
        for anchor in model._engine.anchors:
            prompt = prompt_of(module, anchor, named)
            if prompt is not None:
                anchor.stream.fix_prompt(*prompt)
                stated.append(anchor.stream)
        output = module.generate(**named)
    finally:
        for stream in stated:
            stream.release_prompt()
    if not is_text or not isinstance(output, Tensor):
        return output
    texts = model.tokenizer.batch_decode(output, skip_special_tokens=True)
    return texts[0] if isinstance(inputs, str) and len(texts) == 1 else texts


def _state_mask(module: Any, named: dict[str, Any]) -> None:
    """Write down the attention mask that `generate` would infer from padding, so that positions agree with it."""
    ids = named.get("input_ids")
    if not isinstance(ids, Tensor) or ids.ndim != 2 or named.get("attention_mask") is not None:
        return
    config = named.get("generation_config") or module.generation_config
    pad = named.get("pad_token_id", getattr(config, "pad_token_id", None))
    eos = named.get("eos_token_id", getattr(config, "eos_token_id", None))
    ends = eos.tolist() if isinstance(eos, Tensor) else eos if isinstance(eos, (list, tuple)) else [eos]
    if isinstance(pad, int) and pad not in ends and bool((ids == pad).any()):
        named["attention_mask"] = (ids != pad).long()


def prompt_of(module: Any, anchor: Anchor, named: dict[str, Any]) -> tuple[Tensor, list[Tensor] | None] | None:
    """Where the real tokens of the prompt of one stream are, and the tokens of each row where they are known."""
    if anchor.module is not module and getattr(anchor.module, "main_input_name", "input_ids") != "input_ids":
        return None  # an image or sound encoder: its positions are no tokens of the prompt
    ids, mask = named.get("input_ids"), named.get("attention_mask")
    if getattr(module.config, "is_encoder_decoder", False) and anchor.name == "":
        ids, mask = named.get("decoder_input_ids"), named.get("decoder_attention_mask")
        if ids is None:  # generation starts from one start token per row
            rows = next(v.shape[0] for v in named.values() if isinstance(v, Tensor))
            return torch.ones(rows, 1, dtype=torch.bool), None
    if not isinstance(ids, Tensor) or ids.ndim != 2:
        return None
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        return torch.ones_like(ids, dtype=torch.bool), list(ids)
    real = mask.bool()
    if real.shape != ids.shape:  # the first part of the prompt is in the cache already
        return real, None
    return real, [row[keep] for row, keep in zip(ids, real, strict=True)]

"""Generation with edits: the prompt is stated before the first pass, so positions keep their meaning throughout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interneuron.core.errors import InputError

if TYPE_CHECKING:
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
    streams = model._resolver.streams
    prompts = {name: prompt_of(module, name, named) for name in streams}
    for name, prompt in prompts.items():
        if prompt is not None:
            streams[name].fix_prompt(*prompt)
    try:
        output = module.generate(**named, **options)
    finally:
        for name, prompt in prompts.items():
            if prompt is not None:
                streams[name].release_prompt()
    if not is_text or not isinstance(output, Tensor):
        return output
    texts = model.tokenizer.batch_decode(output, skip_special_tokens=True)
    return texts[0] if isinstance(inputs, str) and len(texts) == 1 else texts


def prompt_of(module: Any, stream: str, named: dict[str, Any]) -> tuple[Tensor, int, list[Tensor] | None] | None:
    """Real tokens per row, columns, and the tokens of each row, of the prompt of one stream."""
    ids, mask = named.get("input_ids"), named.get("attention_mask")
    if getattr(module.config, "is_encoder_decoder", False) and stream == "":
        ids, mask = named.get("decoder_input_ids"), named.get("decoder_attention_mask")
        if ids is None:  # generation starts from one start token per row
            rows = next(v.shape[0] for v in named.values() if isinstance(v, Tensor))
            return torch.ones(rows, dtype=torch.long), 1, None
    if not isinstance(ids, Tensor) or ids.ndim != 2:
        return None
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    return real.sum(1), ids.shape[1], [row[keep] for row, keep in zip(ids, real, strict=True)]

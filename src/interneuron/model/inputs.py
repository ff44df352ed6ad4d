"""Turning what a user passes (text, tokens, images, a dict) into the arguments of the module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from interneuron.core.errors import InputError


def prepare(
    module: nn.Module, tokenizer: Any, processor: Any, inputs: Any, padding_side: str = "right"
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments for the module.

    inputs: str or list of str (tokenized and, if needed, padded), Int[Tensor, "B T"] token ids, an image tensor
    [B, 3, H, W], a mapping of keyword arguments (e.g. a BatchEncoding), or a tuple of positional arguments.
    Tensors are passed on as they are: no cast, no move. Raises InputError for what the module cannot take.
    """
    if isinstance(inputs, Tensor):
        return _tensor(module, inputs)
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    device = device_of(module)
    if isinstance(inputs, str) or _is_texts(inputs):
        texts = [inputs] if isinstance(inputs, str) else list(inputs)
        return (), _encode(module, tokenizer, processor, texts, device, padding_side)
    if isinstance(inputs, tuple):
        return inputs, {}
    if isinstance(inputs, Sequence) and inputs and all(isinstance(row, (list, Tensor)) for row in inputs):
        return (), pad_rows([torch.as_tensor(row) for row in inputs], pad_id(tokenizer), device, padding_side)
    if processor is not None and isinstance(inputs, Sequence):
        return (), dict(processor(images=list(inputs), return_tensors="pt").to(device))
    raise InputError(
        f"{type(module).__name__} was given {type(inputs).__name__}: expected text, a list of texts, a token tensor, "
        "an image tensor or a dict of the module's arguments."
    )


def device_of(module: nn.Module) -> torch.device:
    """Device of the first parameter; cpu for a module without any."""
    return next((p.device for p in module.parameters()), torch.device("cpu"))


def _is_texts(inputs: Any) -> bool:
    return isinstance(inputs, (list, tuple)) and bool(inputs) and all(isinstance(item, str) for item in inputs)


def _main_input(module: nn.Module) -> str | None:
    return getattr(module, "main_input_name", None)


def _tensor(module: nn.Module, tensor: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
    main = _main_input(module)
    if main is None:
        return (tensor,), {}
    images = main == "pixel_values"
    if images and not tensor.is_floating_point():
        raise InputError(
            f"{type(module).__name__} takes images, got {tensor.dtype} of shape {tuple(tensor.shape)}: "
            "pass floats of shape [batch, channel, height, width], scaled as the model was trained."
        )
    if main == "input_ids" and tensor.is_floating_point():
        if tensor.ndim == 4:
            raise InputError(
                f"{type(module).__name__} takes token ids, got an image-shaped tensor {tuple(tensor.shape)}: "
                "pass text or integer token ids."
            )
        return (), {"inputs_embeds": tensor}
    if main == "input_ids" and tensor.ndim == 1:
        raise InputError(f"token ids have shape {tuple(tensor.shape)}: expected [batch, pos]. Use ids[None].")
    return (), {main: tensor}


def pad_id(tokenizer: Any) -> int:
    """The id padding is filled with; padded positions are masked, so its value never matters."""
    for name in ("pad_token_id", "eos_token_id", "bos_token_id"):
        value = getattr(tokenizer, name, None)
        if isinstance(value, int):
            return value
    return 0


def pad_rows(rows: Sequence[Tensor], fill: int, device: torch.device, side: str = "right") -> dict[str, Tensor]:
    """Stack rows of token ids of different length, with an attention mask when any padding was needed."""
    longest = max(len(row) for row in rows)
    if longest == 0:
        raise InputError("the input has no tokens: give at least one token of text.")
    ids = torch.full((len(rows), longest), fill, dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for i, row in enumerate(rows):
        part = slice(longest - len(row), longest) if side == "left" else slice(0, len(row))
        ids[i, part] = row.long().cpu()
        mask[i, part] = 1
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def _encode(
    module: nn.Module, tokenizer: Any, processor: Any, texts: list[str], device: torch.device, side: str
) -> dict[str, Any]:
    if _main_input(module) == "pixel_values" and tokenizer is None:
        raise InputError(
            f"{type(module).__name__} takes images, got text {texts[0][:40]!r}: pass a float tensor "
            "[batch, channel, height, width]."
        )
    if tokenizer is None and processor is not None:
        tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None:
        raise InputError(
            f"{type(module).__name__} was given text but has no tokenizer: wrap it with inn.wrap(module, "
            "tokenizer=...), or pass token ids."
        )
    rows = [torch.tensor(tokenizer(text)["input_ids"]) for text in texts]
    for text, row in zip(texts, rows, strict=True):
        if row.numel() == 0:
            raise InputError(f"the text {text!r} has no tokens: give at least one token of text.")
    encoded: dict[str, Any] = pad_rows(rows, pad_id(tokenizer), device, side)
    config = getattr(module, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        start = getattr(config, "decoder_start_token_id", None)
        start = start if isinstance(start, int) else pad_id(tokenizer)
        encoded["decoder_input_ids"] = torch.full((len(texts), 1), start, device=device)
    return encoded


def example_inputs(module: nn.Module) -> dict[str, Tensor]:
    """A few tokens, or one image of noise, on which any Hugging Face model can run: for the self-check.

    Deterministic, and independent of the global random state.
    """
    config: Any = getattr(module, "config", None)
    device = device_of(module)
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    text = getattr(config, "text_config", config)
    vision = getattr(config, "vision_config", config)
    inputs: dict[str, Tensor] = {}
    has_images = _main_input(module) == "pixel_values"
    vocab = getattr(text, "vocab_size", None)
    if vocab and (not has_images or vision is not config):
        low = min(5, vocab - 1)
        inputs["input_ids"] = (torch.arange(low, low + 6, device=device) % vocab)[None].repeat(2, 1)
        if getattr(config, "is_encoder_decoder", False):
            inputs["decoder_input_ids"] = inputs["input_ids"][:, :4].clone()
    if has_images or (
        vision is not config and hasattr(module, "get_image_features") and "text" not in _plain_lm(module)
    ):
        size = getattr(vision, "image_size", None) or 32
        height, width = size if isinstance(size, (tuple, list)) else (size, size)
        channels = getattr(vision, "num_channels", 3)
        noise = torch.rand(2, channels, height, width, generator=torch.Generator().manual_seed(0))
        inputs["pixel_values"] = noise.to(device, dtype)
    if not inputs:
        raise InputError(f"{type(module).__name__} has no example input: call model.check(inputs) with your own.")
    return inputs


def _plain_lm(module: nn.Module) -> str:
    """`text` for vision-language models, which run on text alone; empty for contrastive models, which need both."""
    return "text" if hasattr(module, "lm_head") or hasattr(module, "generate") else ""

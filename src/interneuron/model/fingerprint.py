"""What identifies a model: its class, size, and a hash of its weights."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn

_SAMPLES = 256


def fingerprint(module: nn.Module) -> dict[str, Any]:
    """Class, parameter count, width of the stored numbers, and a SHA-256 over names, shapes and sampled weights.

    At most 256 evenly spaced entries of each tensor are hashed, as float32, so the cost does not grow with the model
    and any training step changes the result; a cast that keeps values (fp16 -> fp32) does not.
    """
    digest = hashlib.sha256()
    count = 0
    for name, tensor in sorted(module.state_dict(keep_vars=True).items()):
        if not isinstance(tensor, torch.Tensor):
            continue
        digest.update(f"{name}:{tuple(tensor.shape)};".encode())
        if tensor.is_meta or tensor.numel() == 0:
            continue
        flat = tensor.detach().reshape(-1)
        step = max(1, flat.numel() // _SAMPLES)
        digest.update(flat[::step][:_SAMPLES].to("cpu", torch.float32).contiguous().numpy().tobytes())
    for parameter in module.parameters():
        count += parameter.numel()
    return {"class": type(module).__name__, "n_parameters": count, "weights": digest.hexdigest()}

"""Which device and which floating type to use, decided in one place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from interneuron.core.errors import InputError, did_you_mean

if TYPE_CHECKING:
    import torch

DTYPE_NAMES: dict[str, str] = {
    "float32": "float32",
    "fp32": "float32",
    "float": "float32",
    "float16": "float16",
    "fp16": "float16",
    "half": "float16",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float64": "float64",
    "fp64": "float64",
    "double": "float64",
}


def pick_device(device: str | torch.device | None = None) -> torch.device:
    """Return the device asked for, or the best one this machine has when `device` is None or "auto".

    Raises `InputError` when the name is unknown or this machine has no such device.
    """
    import torch

    if device is None or device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        picked = torch.device(device)
    except RuntimeError as error:
        raise InputError(
            f"device={device!r} is not a device name. Use 'cpu', 'cuda', 'cuda:1', 'mps' or None for the best one"
        ) from error
    if picked.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device={str(device)!r}: this machine shows no CUDA device. Use device='cpu' or device=None")
    return picked


def pick_dtype(dtype: str | torch.dtype | None = None) -> torch.dtype | None:
    """Return the floating dtype of that name; None stays None and means "as saved"."""
    import torch

    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    name = DTYPE_NAMES.get(dtype.removeprefix("torch.").lower())
    if name is None:
        raise InputError(
            f"dtype={dtype!r} is not a floating type.{did_you_mean(dtype, DTYPE_NAMES)} Use one of "
            "float32, float16, bfloat16, float64"
        )
    found = getattr(torch, name)
    assert isinstance(found, torch.dtype)
    return found

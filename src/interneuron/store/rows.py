"""Rows between tensors and their form on disk: casts, int8 with a scale a row, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from interneuron.core.errors import ShapeError, StoreError
from interneuron.store.layout import Column

TORCH = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int32": torch.int32,
    "int64": torch.int64,
}


def as_tensor(raw: np.ndarray, column: Column) -> Tensor:
    """Rows as they lie on disk, seen as a tensor [N, *shape] that shares their memory; int8 is expanded to float32."""
    if column.dtype == "int8":
        return decode_int8(raw).reshape(len(raw), *column.shape)
    if column.dtype == "bfloat16":
        return torch.from_numpy(raw.view("<i2")).view(torch.bfloat16).reshape(len(raw), *column.shape)
    return torch.from_numpy(raw).reshape(len(raw), *column.shape)


def encode_rows(values: Any, column: Column, place: np.ndarray) -> None:
    """Write rows (tensor or array [N, *shape]) into their place on the way to disk.

    Raises:
        ShapeError: other rows than the column has.
        StoreError: a finite number that float16 cannot hold.
    """
    if isinstance(values, np.ndarray) and not values.flags.writeable:
        values = values.copy()  # torch warns about memory it may not write to
    rows = torch.as_tensor(values)
    if len(rows) != len(place) or tuple(rows.shape[1:]) != column.shape:
        raise ShapeError(
            f"column {column.name!r}: rows of shape {tuple(rows.shape)}, expected {(len(place), *column.shape)}. Give "
            f"every column the same number of rows of its own shape."
        )
    if column.dtype == "int8":
        encode_int8(rows.reshape(len(place), -1), place)
        return
    as_tensor(place, column).copy_(rows)
    if column.dtype == "float16" and rows.dtype != torch.float16:
        check_overflow(place, column.name)


def check_overflow(place: np.ndarray, name: str) -> None:
    """Refuse float16 rows in which something became infinite. NaN passes: it was one before."""
    bits = place.view("<u2")
    if (np.bitwise_and(bits, 0x7FFF) == 0x7C00).any():
        raise StoreError(
            f"column {name!r}: values over 65504 do not fit float16 and would be stored as infinity. Record this "
            "site with "
            f"dtype='bfloat16' or 'float32'."
        )


def encode_int8(rows: Tensor, place: np.ndarray) -> None:
    """Row-wise absolute-maximum quantisation: scale = max|x| / 127, q = round(x / scale).

    The error of each number is at most scale / 2. A row with a NaN or an infinity is stored with scale NaN and reads
    back as NaN throughout.
    """
    x = rows.float()
    scale = x.abs().amax(dim=1) / 127 if x.shape[1] else torch.zeros(len(x))
    scale = torch.where(torch.isfinite(scale), scale, torch.nan)
    safe = torch.where(scale > 0, scale, 1.0)
    place["scale"] = scale.numpy()
    place["q"] = torch.nan_to_num(x / safe[:, None], 0.0, 0.0, 0.0).round_().clamp_(-127, 127).to(torch.int8).numpy()


def decode_int8(raw: np.ndarray) -> Tensor:
    """q * scale in float32, [N, width]."""
    return (
        torch.from_numpy(np.ascontiguousarray(raw["q"])).float()
        * torch.from_numpy(np.ascontiguousarray(raw["scale"]))[:, None]
    )

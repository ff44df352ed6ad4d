"""Counter-based random numbers: a number is a pure function of (seed, stream, index), never of call order.

Idea. A generator with hidden state makes image 1,000 depend on the 999 before it. Here every draw hashes its own
address with two rounds of a multiply-xorshift mixer, so any slice of a data set can be re-created alone, in any chunk
size, in any process, bit for bit.

Equations. mix(z) = z ^= z >> 32; z *= M1; z ^= z >> 29; z *= M2; z ^= z >> 32   (64-bit, wrapping)
uniform = (mix(mix(key) + index) >> 40) / 2^24
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_M1 = 0xD6E8FEB86659FD93
_M2 = 0x9FB21C651E98DF25
_STEP = 0x9E3779B97F4A7C15


def _signed(value: int) -> int:
    """The int64 that has the same 64 bits as `value`."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _mix_int(z: int) -> int:
    z &= _MASK
    z ^= z >> 32
    z = (z * _M1) & _MASK
    z ^= z >> 29
    z = (z * _M2) & _MASK
    return z ^ (z >> 32)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    # torch shifts int64 arithmetically; the mask makes the shift logical
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _mix(z: Tensor) -> Tensor:
    z = z ^ _shift_right(z, 32)
    z = z * _signed(_M1)
    z = z ^ _shift_right(z, 29)
    z = z * _signed(_M2)
    return z ^ _shift_right(z, 32)


def key(seed: int, *parts: str | int) -> int:
    """Fold a seed and any number of names into one 64-bit key.

    >>> key(0, "shape") == key(0, "shape"), key(0, "shape") == key(1, "shape")
    (True, False)
    """
    state = _mix_int(int(seed) + _STEP)
    for part in parts:
        number = zlib.crc32(part.encode()) if isinstance(part, str) else int(part)
        state = _mix_int(state + _STEP + number)
    return _signed(state)


def bits(key_: int | Tensor, index: Tensor) -> Tensor:
    """Hash integer addresses: Int[...] -> Int64[...] of 64 random bits each. `key_` may be a tensor that broadcasts."""
    base = key_ if isinstance(key_, Tensor) else torch.tensor(key_, dtype=torch.int64)
    return _mix(_mix(index * _signed(_STEP) + base) + base)


def uniform(key_: int | Tensor, index: Tensor) -> Tensor:
    """Uniform float32 in [0, 1), one for each address."""
    return _shift_right(bits(key_, index), 40).to(torch.float32) * (1.0 / (1 << 24))


def integers(key_: int | Tensor, index: Tensor, high: int) -> Tensor:
    """Uniform int64 in [0, high), one for each address."""
    return (uniform(key_, index) * high).long().clamp_(max=high - 1)


def field(keys: Tensor, height: int, width: int) -> Tensor:
    """White noise images: Int[N] keys -> Float[N, height, width], uniform in [0, 1) with 2^16 levels.

    One hash gives four values, so a 32x32 field costs 256 hashes.
    """
    n, count = keys.shape[0], height * width
    words = torch.arange((count + 3) // 4, dtype=torch.int64)
    hashed = bits(keys[:, None], words[None, :])
    # the four little-endian 16-bit quarters; + 2^15 maps the signed view onto [0, 2^16)
    quarters = hashed.view(torch.int16)[:, :count]
    return quarters.to(torch.float32).add_(32768.0).mul_(1.0 / 65536.0).reshape(n, height, width)

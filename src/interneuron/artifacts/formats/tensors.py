"""Judging what a foreign file holds: names, kinds of numbers, shapes; and turning it round where that is certain."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from interneuron.artifacts.dictionary import Dictionary
from interneuron.core.errors import ArtifactError, InputError, ShapeError

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
DTYPE_NAMES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}


def judge(
    tensors: Mapping[str, Tensor],
    what: str,
    notes: list[str],
    *,
    required: Iterable[str],
    optional: Iterable[str] = (),
    ignored: Iterable[str] = (),
) -> dict[str, Tensor]:
    """The tensors that belong to the format, all of one floating dtype and finite.

    Raises:
        ArtifactError: one is missing, unknown, holds integers, or holds NaN or infinity.
    """
    required, optional = list(required), list(optional)
    missing = [name for name in required if name not in tensors]
    if missing:
        raise ArtifactError(
            f"{what}: the tensors {missing} are missing (it holds {sorted(tensors)[:12]}). "
            "It is another architecture than its configuration says, or incomplete; download it again."
        )
    extra = sorted(tensors.keys() - {*required, *optional, *ignored})
    if extra:
        raise ArtifactError(
            f"{what}: the tensors {extra[:6]} belong to no part of this architecture, expected "
            f"{sorted([*required, *optional])}. "
            "Leaving them out could change what it computes; check the configuration beside it."
        )
    kept = {name: tensors[name] for name in [*required, *optional] if name in tensors}
    for name, tensor in kept.items():
        if tensor.dtype not in FLOATS:
            raise ArtifactError(
                f"{what}: {name} is {str(tensor.dtype).removeprefix('torch.')}, expected floating point. "
                "Quantised or damaged weights are not read."
            )
        if not bool(torch.isfinite(tensor).all()):
            raise ArtifactError(f"{what}: {name} holds NaN or infinity. Download the file again.")
    dtypes = {tensor.dtype for tensor in kept.values()}
    if len(dtypes) > 1:
        widest = max(dtypes, key=lambda d: (torch.finfo(d).bits, d == torch.float32))
        names = ", ".join(sorted(str(d).removeprefix("torch.") for d in dtypes))
        notes.append(f"mixed dtypes ({names}): all were widened to {str(widest).removeprefix('torch.')}")
        kept = {name: tensor.to(widest) for name, tensor in kept.items()}
    return kept


def check_dtype(tensor: Tensor, declared: Any, what: str, notes: list[str]) -> None:
    """Say so when the configuration names another dtype than the tensors have."""
    wanted = DTYPE_NAMES.get(str(declared).removeprefix("torch."))
    if declared is not None and wanted is None:
        raise ArtifactError(
            f"{what}: dtype {str(declared)[:30]!r} is unknown, expected one of {', '.join(DTYPE_NAMES)}."
        )
    if wanted is not None and wanted != tensor.dtype:
        notes.append(f"the configuration says {declared}, the tensors are {tensor.dtype}: kept as stored")


def upright(tensor: Tensor, shape: tuple[int, int], name: str, what: str, notes: list[str]) -> Tensor:
    """`tensor` in shape `shape`; turned round, with a note, when it has exactly the transposed shape."""
    if tensor.ndim == 2 and tuple(tensor.shape) == shape:
        return tensor.contiguous()
    if tensor.ndim == 2 and tuple(tensor.shape) == shape[::-1]:
        notes.append(f"{name} is stored as {list(tensor.shape)}, the format has {list(shape)}: it was transposed")
        return tensor.T.contiguous()
    raise ArtifactError(
        f"{what}: {name} has shape {list(tensor.shape)}, expected {list(shape)} beside the biases and the "
        "configuration. "
        "Its files do not belong together; download them again."
    )


def vector(tensor: Tensor, length: int, name: str, what: str) -> Tensor:
    """`tensor` if it is [length], else an error; [1 length] and [length 1] are no vectors."""
    if tuple(tensor.shape) != (length,):
        raise ArtifactError(
            f"{what}: {name} has shape {list(tensor.shape)}, expected [{length}]. Its files do not belong together."
        )
    return tensor.contiguous()


def width(value: Any, found: int, name: str, what: str) -> int:
    """`found`, after comparing it with what the configuration says (None says nothing)."""
    if value is None:
        return found
    if type(value) is not int or value != found:
        raise ArtifactError(
            f"{what}: the configuration says {name}={str(value)[:20]}, the tensors have {found}. "
            "The configuration belongs to another file; download both again."
        )
    return found


def whole(value: Any, name: str, what: str) -> int:
    """`value` if it is a whole number, not negative; a truth value, text or nothing is none."""
    if type(value) is not int or value < 0:
        raise ArtifactError(f"{what}: {name}={str(value)[:20]!r} is no whole number. Correct the configuration.")
    return value


def number(value: Any, name: str, what: str) -> float:
    """`value` if it is a finite number, not negative."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < math.inf:
        raise ArtifactError(f"{what}: {name}={str(value)[:20]!r} is no number from 0 on. Correct the configuration.")
    return float(value)


def build(what: str, **parts: Any) -> Dictionary:
    """A Dictionary, with what does not fit reported as a fault of the file."""
    try:
        return Dictionary(**parts)
    except (ShapeError, InputError) as error:
        raise ArtifactError(f"{what}: {error}") from error


def alignment(encoder: Tensor, decoder: Tensor) -> float:
    """Mean cosine of encoder columns [D F] and decoder rows [F D]: near 0 for strangers, high for a trained pair."""
    a, b = encoder.double(), decoder.double().T
    return float(((a * b).sum(0) / (a.norm(dim=0) * b.norm(dim=0)).clamp_min(1e-30)).mean())


def settle_square(encoder: Tensor, decoder: Tensor, what: str, notes: list[str]) -> Tensor:
    """Which way round a square encoder is, told by how its columns align with the decoder's rows.

    With as many features as dimensions the shape cannot tell. A trained autoencoder's encoder resembles its decoder;
    the reading that does is taken. When neither does, the declared one is kept and the doubt is noted.
    """
    if encoder.shape[0] != encoder.shape[1] or decoder.shape != encoder.shape:
        return encoder
    declared, turned = alignment(encoder, decoder), alignment(encoder.T, decoder)
    if turned > 0.2 and turned > 2 * abs(declared):
        notes.append(
            f"the encoder is square and was transposed: its columns align with the decoder that way (mean cosine "
            f"{turned:.2f} against {declared:.2f})"
        )
        return encoder.T.contiguous()
    if declared < 0.2:
        notes.append(
            f"the encoder is square and aligns with the decoder neither way (mean cosine {declared:.2f} and "
            f"{turned:.2f}): which way round it is has to be checked on activations"
        )
    return encoder


def fold_norms(dictionary: Dictionary) -> Dictionary:
    """The same map with unit decoder rows: f_i |d_i| in place of f_i; what is chosen by size is chosen by |d_i| h_i."""
    norm = dictionary.decoder.norm(dim=1).clamp_min(1e-8)
    changes: dict[str, Any] = {
        "encoder": dictionary.encoder * norm,
        "encoder_bias": dictionary.encoder_bias * norm,
        "decoder": dictionary.decoder / norm[:, None],
    }
    if dictionary.threshold is not None:
        changes["threshold"] = dictionary.threshold * norm
    if dictionary.gate_bias is not None:
        changes["gate_bias"] = dictionary.gate_bias * norm
    return dictionary.replace(**changes)

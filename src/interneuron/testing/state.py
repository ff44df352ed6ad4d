"""Everything about a model and the process that a method must leave as it found it."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor, nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True)
class State:
    """A snapshot; `differences` names what has changed since."""

    weights: str
    requires_grad: tuple[str, ...]
    gradients: tuple[str, ...]
    training: tuple[str, ...]
    hooks: tuple[str, ...]
    modules: tuple[str, ...]
    torch_rng: str
    numpy_rng: str
    python_rng: str

    def differences(self, after: State) -> list[str]:
        """Return a line for each part that is no longer the same."""
        lines = []
        for part in fields(self):
            old, new = getattr(self, part.name), getattr(after, part.name)
            if old != new:
                detail = "" if isinstance(old, str) else f": {sorted(set(old) ^ set(new))[:3]}"
                lines.append(f"{part.name.replace('_', ' ')} changed{detail}")
        return lines


def snapshot(module: nn.Module | None = None) -> State:
    """Return the state of the global generators and, when given, of a module."""
    module = module if module is not None else nn.Module()
    named = list(module.named_modules())
    numpy_state = repr(np.random.get_state())  # noqa: NPY002  (that the global state is untouched is what we check)
    return State(
        weights=_digest(t for _, t in sorted(module.state_dict(keep_vars=True).items()) if isinstance(t, Tensor)),
        requires_grad=tuple(name for name, p in module.named_parameters() if p.requires_grad),
        gradients=tuple(name for name, p in module.named_parameters() if p.grad is not None),
        training=tuple(name for name, m in named if m.training),
        hooks=tuple(f"{name}.{kind}" for name, m in named for kind in _HOOKS for _ in getattr(m, kind)),
        modules=tuple(f"{name}: {type(m).__name__} {m.forward!r}" for name, m in named),
        torch_rng=_digest([torch.get_rng_state()]),
        numpy_rng=hashlib.sha256(numpy_state.encode()).hexdigest(),
        python_rng=hashlib.sha256(repr(random.getstate()).encode()).hexdigest(),
    )


def _digest(tensors: Iterator[Tensor] | list[Tensor]) -> str:
    sha = hashlib.sha256()
    for tensor in tensors:
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        sha.update(f"{tensor.dtype}{list(tensor.shape)}".encode())
        sha.update(flat.view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()

"""Attention internals, while the model stays on its own attention kernel.

Only the attention modules that are touched are intercepted: for the life of a context such a module sees a shallow
copy of its config that names the implementation `interneuron`, registered once with transformers' AttentionInterface.
That function hands queries, keys, values and mask to the implementation the model was loaded with. Masks are still
built for that implementation, and no other module sees any change.

scores = softcap(q k' * scaling) + position bias, -inf where masked      [B H query key]
pattern = softmax(scores) over keys (with the sink logit where a model has one)

They are computed only when asked for. A read returns them and leaves the kernel's own output in place, bit for bit.
An edit recomputes only the query rows whose weights changed; all others keep the kernel's output. The first time a
module is opened, the explicit computation must reproduce the kernel's output; otherwise the model is refused.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interneuron.core.errors import UnsupportedModel
from interneuron.model.points import BoundEdit, Step

NAME = "interneuron"
_SWAPPED = ("q", "k", "v")


def supports_attention(module: nn.Module) -> bool:
    """True when a module dispatches through transformers' attention interface and can be intercepted alone."""
    scope = vars(sys.modules.get(type(module).__module__, sys))
    return "ALL_ATTENTION_FUNCTIONS" in scope and hasattr(getattr(module, "config", None), "_attn_implementation")


class AttentionPoint:
    """All reads and edits inside one attention module."""

    def __init__(self, module: nn.Module, path: str, verified: set[str]) -> None:
        self.module, self.path, self.verified = module, path, verified
        self.edits: list[BoundEdit] = []
        self.reads: list[Step] = []
        self.read_parts: list[str] = []
        self.gradients: list[tuple[str, Callable[[Tensor], None]]] = []
        self.count = 0
        original: Any = module.config
        self.original_config = original
        if "_interneuron_point" in vars(original):
            raise UnsupportedModel(
                f"{path} is open already through another wrap of the same module: wrap a module once, and nest "
                "contexts of that one Model."
            )
        self.implementation: str = original._attn_implementation or "eager"
        register()
        config = copy.copy(original)
        config.__dict__["_attn_implementation_internal"] = NAME
        config.__dict__["_interneuron_point"] = self
        module.config = config

    @property
    def idle(self) -> bool:
        """True when nothing is left to do here."""
        return not self.edits and not self.reads

    def close(self) -> None:
        """Give the module its config back."""
        self.module.config = self.original_config

    def add_read(self, part: str, read: Step) -> None:
        """Read `q`, `k`, `v`, `scores` or `pattern`."""
        self.reads.append(read)
        self.read_parts.append(part)

    def remove_read(self, read: Step) -> None:
        """Stop a read."""
        i = self.reads.index(read)
        del self.reads[i], self.read_parts[i]

    def on_gradient(self, part: str, store: Callable[[Tensor], None]) -> None:
        """Ask for the gradient of `scores` or `pattern` of the call in progress."""
        self.gradients.append((part, store))

    def _run(self, part: str, x: Tensor) -> Tensor:
        """Edits, then reads, of one part."""
        y = x
        for edit in self.edits:
            if edit.key == part:
                y = edit.apply(y, self.count)
        for name, read in zip(self.read_parts, self.reads, strict=True):
            if name == part:
                new = read(y)
                y = y if new is None else new
        return y

    def _asked(self, *parts: str) -> bool:
        return any(e.key in parts for e in self.edits) or any(name in parts for name in self.read_parts)

    def __call__(self, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, *args: Any, **kwargs: Any) -> Any:
        """The attention function of the intercepted module."""
        q, k, v = self._run("q", q), self._run("k", k), self._run("v", v)
        out, weights = self._kernel()(module, q, k, v, mask, *args, **kwargs)
        if self._asked("scores", "pattern"):
            edited = self._explicit(module, q, k, v, mask, out, kwargs)
            if edited is not None:
                out, weights = edited[0], weights if weights is None else edited[1]
        self.count += 1
        return out, weights

    def _kernel(self) -> Any:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        scope = vars(sys.modules[type(self.module).__module__])
        own = scope.get("ALL_ATTENTION_FUNCTIONS", ALL_ATTENTION_FUNCTIONS)
        kernel = own.get_interface(self.implementation, scope.get("eager_attention_forward"))
        if kernel is None:
            raise UnsupportedModel(
                f"{self.path} runs the attention implementation {self.implementation!r}, which has no function here: "
                "load the model with attn_implementation='sdpa' or 'eager'."
            )
        return kernel

    def _explicit(self, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, out: Tensor, kw: Any) -> Any:
        scores = explicit_scores(module, q, k, mask, kw)
        sinks = kw.get("s_aux", getattr(module, "sinks", None))
        pattern = softmax_rows(scores, sinks, q.dtype)
        groups = q.shape[1] // v.shape[1]
        values = v.repeat_interleave(groups, 1) if groups > 1 else v
        dropout = float(kw.get("dropout") or 0.0)
        if self.path not in self.verified and not dropout:
            self._verify(pattern, values, out, scores)
            self.verified.add(self.path)
        new_scores = self._run("scores", scores)
        changed: Tensor | None = None
        new_pattern = pattern
        if new_scores is not scores:
            changed = (new_scores != scores).any(-1)
            new_pattern = torch.where(changed[..., None], softmax_rows(new_scores, sinks, q.dtype), pattern)
        before = new_pattern
        new_pattern = self._run("pattern", new_pattern)
        if new_pattern is not before:
            more = (new_pattern != before).any(-1)
            changed = more if changed is None else changed | more
        learning = changed is not None and torch.is_grad_enabled() and new_pattern.requires_grad
        if changed is None or not (learning or bool(changed.any())):
            return (self._with_gradients(out, new_pattern, values), new_pattern) if self.gradients else None
        weights = torch.nn.functional.dropout(new_pattern, dropout) if dropout else new_pattern
        z = (weights @ values).transpose(1, 2)
        kept = _Bits.apply(z, out.detach()) if learning else out
        z = torch.where(changed.transpose(1, 2)[..., None], z, kept)
        return self._with_gradients(z, new_pattern, values), new_pattern

    def _with_gradients(self, out: Tensor, pattern: Tensor, values: Tensor) -> Tensor:
        """Derive d pattern = d out v' and d scores = pattern * (d pattern - sum(pattern * d pattern)) in backward."""
        wanted, self.gradients = self.gradients, []
        if not wanted or not torch.is_grad_enabled():
            return out
        if not out.requires_grad:
            out = out.detach().requires_grad_()
        pattern, values = pattern.detach(), values.detach()

        def derive(g: Tensor) -> None:
            d_pattern = g.transpose(1, 2) @ values.transpose(2, 3)
            for part, store in wanted:
                if part == "pattern":
                    store(d_pattern)
                else:
                    store(pattern * (d_pattern - (pattern * d_pattern).sum(-1, keepdim=True)))

        out.register_hook(derive)
        return out

    def _verify(self, pattern: Tensor, values: Tensor, out: Tensor, scores: Tensor) -> None:
        alive = torch.isfinite(scores).any(-1).transpose(1, 2)[..., None]
        z = (pattern.detach() @ values.detach()).transpose(1, 2)
        gap = ((z - out.detach()).abs() * alive).max().float()
        size = values.detach().abs().max().float()
        eps = torch.finfo(out.dtype).eps
        if not bool(gap <= 64 * eps * (size + 1e-6) * max(1.0, pattern.shape[-1] ** 0.5)):
            raise UnsupportedModel(
                f"{self.path}: the attention kernel {self.implementation!r} cannot be reproduced explicitly (largest "
                f"gap {float(gap):.2e}), so scores and pattern would be wrong numbers. Read attn.z instead, or load "
                "with attn_implementation='eager'."
            )


class _Bits(torch.autograd.Function):
    """The kernel's bits with the gradient of the explicit computation: an edit can be learned from where it is none."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, out: Tensor) -> Tensor:  # pyrefly: ignore[bad-override]
        """The kernel's output."""
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:  # pyrefly: ignore[bad-override]
        """All of the gradient goes to the explicit output."""
        return g, None


def explicit_scores(
    module: Any, q: Float[Tensor, "B H Q K"], k: Tensor, mask: Any, kw: dict[str, Any]
) -> Float[Tensor, "B H Q T"]:
    """Attention logits after scaling, soft-cap and bias, -inf where masked."""
    groups = q.shape[1] // k.shape[1]
    k = k.repeat_interleave(groups, 1) if groups > 1 else k
    scaling = kw.get("scaling")
    scores = (q @ k.transpose(2, 3)) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    softcap = kw.get("softcap")
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if kw.get("position_bias") is not None:
        scores = scores + kw["position_bias"]
    length, total = scores.shape[-2:]
    if isinstance(mask, Tensor):
        mask = mask[..., :total]
        if mask.dtype == torch.bool:
            return scores.masked_fill(~mask, -torch.inf)
        return (scores + mask).masked_fill(mask <= torch.finfo(mask.dtype).min / 2, -torch.inf)
    causal = kw.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    if causal and length > 1:
        allowed = torch.ones(length, total, dtype=torch.bool, device=q.device).tril()
        return scores.masked_fill(~allowed, -torch.inf)
    return scores


def softmax_rows(scores: Tensor, sinks: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Softmax over keys in float32; rows with no key allowed become zero. A sink takes mass without a value."""
    wide = scores.float()
    if sinks is not None:
        sink = sinks.reshape(1, -1, 1, 1).expand(*scores.shape[:-1], 1).float()
        pattern = torch.softmax(torch.cat([wide, sink], dim=-1), dim=-1)[..., :-1]
    else:
        pattern = torch.softmax(wide, dim=-1)
    dead = torch.isneginf(scores).all(-1, keepdim=True)
    return pattern.masked_fill(dead, 0.0).to(dtype)


def _dispatch(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, *args: Any, **kwargs: Any) -> Any:
    return module.config.__dict__["_interneuron_point"](module, q, k, v, mask, *args, **kwargs)


def register() -> None:
    """Make the name known to transformers' attention interface. Idempotent; it changes no model."""
    from transformers import AttentionInterface
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if NAME not in ALL_ATTENTION_FUNCTIONS.valid_keys():
        AttentionInterface.register(NAME, _dispatch)

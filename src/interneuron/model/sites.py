"""Site: an address inside a model, by canonical name or by module path, and the patterns that name many at once."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

from interneuron.core.errors import AxisError
from interneuron.model.selection import Selection

# The axes of every canonical site, by the part of its name after the layer.
AXES: dict[str, tuple[str, ...]] = {
    "embed": ("batch", "pos", "d_model"),
    "resid_pre": ("batch", "pos", "d_model"),
    "resid_mid": ("batch", "pos", "d_model"),
    "resid_post": ("batch", "pos", "d_model"),
    "resid_cross": ("batch", "pos", "d_model"),
    "norm1": ("batch", "pos", "d_model"),
    "attn.norm": ("batch", "pos", "d_model"),
    "norm2": ("batch", "pos", "d_model"),
    "final_norm": ("batch", "pos", "d_model"),
    "projector": ("batch", "pos", "d_model"),
    "logits": ("batch", "pos", "vocab"),
    "class_logits": ("batch", "class"),
    "attn.q_proj": ("batch", "pos", "head", "d_head"),
    "attn.k_proj": ("batch", "pos", "head", "d_head"),
    "attn.v_proj": ("batch", "pos", "head", "d_head"),
    "attn.q": ("batch", "pos", "head", "d_head"),
    "attn.k": ("batch", "key", "head", "d_head"),
    "attn.v": ("batch", "key", "head", "d_head"),
    "attn.scores": ("batch", "head", "query", "key"),
    "attn.pattern": ("batch", "head", "query", "key"),
    "attn.z": ("batch", "pos", "head", "d_head"),
    "attn.out": ("batch", "pos", "d_model"),
    "attn.contribution": ("batch", "pos", "d_model"),
    "mlp.pre": ("batch", "pos", "d_mlp"),
    "mlp.gate": ("batch", "pos", "d_mlp"),
    "mlp.hidden": ("batch", "pos", "d_mlp"),
    "mlp.out": ("batch", "pos", "d_model"),
    "mlp.contribution": ("batch", "pos", "d_model"),
    "router.logits": ("batch", "pos", "expert"),
    "router.experts": ("batch", "pos", "choice"),
    "router.weights": ("batch", "pos", "choice"),
    "mlp.shared": ("batch", "pos", "d_model"),
    "attn.latent": ("batch", "pos", "latent"),
    "ssm.x_proj": ("batch", "pos", "d_inner"),
    "ssm.B_proj": ("batch", "pos", "d_state"),
    "ssm.C_proj": ("batch", "pos", "d_state"),
    "ssm.x": ("batch", "pos", "d_inner"),
    "ssm.B": ("batch", "pos", "d_state"),
    "ssm.C": ("batch", "pos", "d_state"),
    "ssm.gate": ("batch", "pos", "d_inner"),
    "ssm.y": ("batch", "pos", "d_inner"),
    "ssm.hidden": ("batch", "pos", "d_inner"),
    "ssm.dt": ("batch", "pos", "d_dt"),
    "ssm.out": ("batch", "pos", "d_model"),
    "ssm.contribution": ("batch", "pos", "d_model"),
    "conv": ("batch", "channel", "height", "width"),
    "conv.contribution": ("batch", "channel", "height", "width"),
    "shortcut": ("batch", "channel", "height", "width"),
    "latent": ("batch", "channel", "height", "width"),
    "h_space": ("batch", "channel", "height", "width"),
}
# Axes that count positions of a sequence and therefore speak the position language.
POSITION_AXES = frozenset({"pos", "query", "key"})


@dataclasses.dataclass(frozen=True)
class Site:
    """Where: one tensor of one model, by name, with named axes.

    name       canonical (`layers.3.resid_post`) or module path (`transformer.h.3:out`)
    axes       axis names, e.g. `("batch", "pos", "d_model")`; empty when unknown until the site fires
    path       the module the tensor belongs to, e.g. `model.layers.3:out`
    shape      the shape last seen, or None before the first pass
    selection  what `.at()` chose

    >>> Site("layers.0.resid_post", ("batch", "pos", "d_model"), "model.layers.0:out").at(pos=-1).selection
    Selection(pos=-1)
    """

    name: str
    axes: tuple[str, ...]
    path: str
    shape: tuple[int, ...] | None = dataclasses.field(default=None, compare=False)
    selection: Selection = dataclasses.field(default_factory=Selection)

    def at(self, **spec: Any) -> Site:
        """Select by axis name: `site.at(pos=-1, head=[0, 3], row=2, phase="prompt")`.

        An int drops its axis, a list or slice keeps it, as in NumPy. `pos`, `query` and `key` take the position
        language (see `interneuron.model.positions`). Raises AxisError for an axis the site does not have.
        """
        selection = self.selection.merge(spec)
        if self.axes:
            check_axes(selection, self.axes, self.name)
        return dataclasses.replace(self, selection=selection)

    def __str__(self) -> str:
        return self.name if not self.selection else f"{self.name}.at({self.selection.describe()})"


def check_axes(selection: Selection, axes: tuple[str, ...], name: str) -> None:
    """Raise AxisError when a selection names an axis that the site lacks."""
    for axis in selection.axes:
        if axis not in axes:
            hint = " An attention map has axes 'query' and 'key' instead of 'pos'." if "query" in axes else ""
            raise AxisError(f"{name} has no axis {axis!r}: its axes are {axes}. Select one of those by name.{hint}")


def suffix_of(name: str) -> str:
    """The part of a canonical name that decides its axes.

    >>> suffix_of("vision.layers.3.attn.z"), suffix_of("conv.4.out"), suffix_of("logits")
    ('attn.z', 'conv', 'logits')
    """
    match = re.search(r"(?:^|\.)layers\.\d+\.(.+)$", name)
    if match:
        return match.group(1).replace("xattn.", "attn.")
    if re.search(r"(?:^|\.)conv\.\d+\.out$", name):
        return "conv"
    return name.rsplit(".", 1)[-1]


def axes_of(name: str) -> tuple[str, ...]:
    """Axes of a canonical name; empty for names this table does not know.

    The keys of cross-attention are positions of another sequence: their axis is `source`, which counts from 0 and does
    not speak the position language.
    """
    axes = AXES.get(suffix_of(name), ())
    return tuple("source" if axis == "key" else axis for axis in axes) if ".xattn." in name else axes


def guess_axes(ndim: int) -> tuple[str, ...]:
    """Axis names for a module-path site, from its number of dimensions alone."""
    return {
        1: ("feature",),
        2: ("batch", "feature"),
        3: ("batch", "pos", "feature"),
        4: ("batch", "channel", "height", "width"),
    }.get(ndim, tuple(f"axis{i}" for i in range(ndim)))


def is_pattern(name: str) -> bool:
    """True when a name stands for many sites: it has a `*`, a `?` or a range such as `2-5`."""
    return "*" in name or "?" in name or re.search(r"(?:^|\.)\d+-\d+(?:\.|$|:)", name) is not None


def match_pattern(pattern: str, names: Iterable[str]) -> list[str]:
    """The names a glob with ranges stands for, in their own order.

    `*` matches within one dotted part, or any number of parts when it ends the pattern; `2-5` matches the integers.

    >>> match_pattern("layers.1-2.mlp.*", ["layers.0.mlp.out", "layers.1.mlp.out", "layers.2.mlp.hidden"])
    ['layers.1.mlp.out', 'layers.2.mlp.hidden']
    """
    if pattern == "*":
        return list(names)
    parts = []
    split = pattern.split(".")
    for i, part in enumerate(split):
        span = re.fullmatch(r"(\d+)-(\d+)", part)
        if span:
            low, high = int(span.group(1)), int(span.group(2))
            parts.append("(?:" + "|".join(str(k) for k in range(low, high + 1)) + ")")
        else:
            escaped = re.escape(part).replace(r"\?", "[^.]")
            last = i == len(split) - 1 and part == "*"
            parts.append(escaped.replace(r"\*", ".*" if last else "[^.]*"))
    regex = re.compile(r"\.".join(parts))
    return [name for name in names if regex.fullmatch(name)]

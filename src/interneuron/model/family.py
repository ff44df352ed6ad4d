"""Families: which module carries which canonical site, one small declarative file per architecture group.

A family lists, for every canonical name, a tap expression (see `interneuron.model.taps`). Paths in `layer` are relative
to one layer, paths in `root` to the model. Where layers differ, a tuple offers alternatives: the first whose module
exists (and whose numbers do) is taken, and a name with none is simply absent from that layer.
`... @ batch,class` states axes that differ from the usual ones of that name; `... if PATH` takes the tap only when the
model has a module at PATH.

`equations` state what must hold among the tensors of one layer; the self-check evaluates them on a few tokens, so a
wrong map is an error and never a wrong number.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from interneuron.core.errors import SiteNotFound
from interneuron.model.sites import axes_of
from interneuron.model.taps import Tap, parse_tap

Taps = str | tuple[str, ...]
SUM = "resid_pre + attn.contribution + mlp.contribution = resid_post"
MID = "resid_pre + attn.contribution = resid_mid"
ROWS = "sum attn.pattern = 1"
TOP = "top router.logits = router.experts"
NEXT = "resid_post = next.resid_pre"
_HEAD_WIDTHS = ("head_dim", "head_size", "attention_head_size", "key_value_proj_dim", "dim_per_head", "d_head")


@dataclasses.dataclass(frozen=True)
class Stack:
    """One stack of equal layers.

    layers     path pattern of the layer modules in order, e.g. `model.layers.*`
    layer      canonical suffix -> tap expression relative to a layer
    attention  canonical prefix -> module (relative) whose q, k, v, scores, pattern are reachable
    equations  identities of one layer, over canonical suffixes and tap expressions
    prefix     what precedes `layers.N` in the names, e.g. `encoder.`
    stream     name of the token stream the stack belongs to
    repeat     config entry that says how often one shared layer is called (ALBERT), or None
    chained    what leaves one layer enters the next unchanged, which is checked too
    """

    layers: str
    layer: Mapping[str, Taps]
    attention: Mapping[str, str] = dataclasses.field(default_factory=dict)
    equations: tuple[str, ...] = (SUM, MID)
    prefix: str = ""
    stream: str = ""
    repeat: str | None = None
    chained: bool = True


@dataclasses.dataclass(frozen=True)
class Part:
    """A model inside the model, mapped by its own family: the language model of a vision-language model, say."""

    prefix: str
    path: str
    own_stream: bool = True


@dataclasses.dataclass(frozen=True)
class Family:
    """The canonical map of an architecture group.

    model_types  values of `config.model_type` it serves        classes  class names, for modules without such a config
    stacks       its stacks of layers                           root     canonical name -> tap, outside the layers
    parts        models inside the model                       streams  stream name -> module whose calls are its passes
    convs        True: every Conv2d is also `conv.N.out`, in order of definition
    when         config entries that must hold, for architectures with variants: `{"use_parallel_residual": True}`
    """

    name: str
    model_types: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    when: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    stacks: tuple[Stack, ...] = ()
    root: Mapping[str, Taps] = dataclasses.field(default_factory=dict)
    parts: tuple[Part, ...] = ()
    streams: Mapping[str, str] = dataclasses.field(default_factory=lambda: {"": ""})
    convs: bool = False


@dataclasses.dataclass(frozen=True)
class Entry:
    """One canonical site of one model."""

    name: str
    axes: tuple[str, ...]
    tap: Tap
    stream: str


@dataclasses.dataclass
class Layout:
    """The canonical map of one module: its sites, its streams' anchors, and the equations that check it."""

    family: str | None
    entries: dict[str, Entry] = dataclasses.field(default_factory=dict)
    streams: dict[str, str] = dataclasses.field(default_factory=lambda: {"": ""})
    equations: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)  # (layer name, its path, equation)
    n_layers: int = 0
    shared: bool = False


class Tree:
    """Modules by path, forgiving a base-model prefix that a bare base model lacks."""

    def __init__(self, root: nn.Module, base: str = "") -> None:
        self.root, self.base = root, base
        self.modules: dict[str, nn.Module] = dict(root.named_modules(remove_duplicate=False))
        self.strip = getattr(root, "base_model_prefix", "") or ""
        if self.strip and self.strip in self.modules:
            self.strip = ""
        self.config = getattr(root, "config", None)

    def real(self, path: str) -> str:
        """The path as this module has it."""
        if self.strip and path not in self.modules:
            if path == self.strip:
                return ""
            if path.startswith(self.strip + "."):
                return path[len(self.strip) + 1 :]
        return path

    def find(self, pattern: str) -> list[str]:
        """Paths of modules that match a pattern with `*`, in order of definition."""
        regex = re.compile(re.escape(self.real(pattern)).replace(r"\*", "[^.]+"))
        return [path for path in self.modules if regex.fullmatch(path)]

    def number(self, path: str, text: str) -> float | Tensor:
        """A literal, a name (attribute of the module at `path`, of one above it, or of the config), or a sum of terms.

        A name alone may also be a parameter, which is given as it is.

        A term is a product or quotient, read from left to right: `n_heads*head_dim`, `n_heads/n_groups+2`.
        """
        for holder in self._upwards(path):
            if isinstance(getattr(holder, text, None), Tensor):
                return getattr(holder, text)
        total = 0.0
        for term in text.split("+"):
            first, *rest = re.split(r"([*/])", term)
            value = self._value(path, first)
            for sign, factor in zip(rest[::2], rest[1::2], strict=True):
                value = value * self._value(path, factor) if sign == "*" else value / self._value(path, factor)
            total += value
        return total

    def _value(self, path: str, name: str) -> float:
        if re.fullmatch(r"-?\d+(\.\d+)?", name):
            return float(name)
        for holder in [*self._upwards(path), self.config]:
            value = getattr(holder, name, None)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                return float(value)
        raise SiteNotFound(f"{type(self.root).__name__} has no number {name!r} near {path!r}: the family map needs it.")

    def d_head(self, path: str) -> int | None:
        """Head width of the attention module at or above `path`."""
        for holder in self._upwards(path):
            for name in _HEAD_WIDTHS:
                value = getattr(holder, name, None)
                if isinstance(value, int) and value > 0:
                    return value
        config = self.config
        width = getattr(config, "hidden_size", None) or getattr(config, "n_embd", None)
        heads = getattr(config, "num_attention_heads", None) or getattr(config, "n_head", None)
        return width // heads if isinstance(width, int) and isinstance(heads, int) and heads else None

    def _upwards(self, path: str) -> list[nn.Module]:
        parts = path.split(".") if path else []
        above = (".".join(parts[:k]) for k in range(len(parts), -1, -1))
        return [self.modules[name] for name in above if name in self.modules]


def lay_out(root: nn.Module, family: Family | None = None) -> Layout:
    """The canonical map of a module; an empty one, with family None, when no family knows it."""
    family = family or family_of(root)
    layout = Layout(family.name if family else None)
    if family is not None:
        _add(layout, family, Tree(root), "", "", "")
    return layout


def _add(layout: Layout, family: Family, tree: Tree, base: str, prefix: str, stream: str) -> None:
    """Add a family's sites to a layout; `base` is the path of the (sub)model, `prefix` what its names begin with."""
    for name, path in family.streams.items():
        real = tree.real(path)
        if real in tree.modules and (name or stream == prefix.rstrip(".")):
            layout.streams[stream + name if name else stream] = _join(base, real)
    for name, taps in family.root.items():
        own = name.split(".", 1)[0]
        _add_site(layout, tree, base, prefix + name, taps, "", stream + own if own in family.streams else stream)
    for stack in family.stacks:
        _add_stack(layout, stack, tree, base, prefix, stream)
    if family.convs:
        convs = [path for path, module in tree.modules.items() if isinstance(module, nn.Conv2d)]
        for i, path in enumerate(convs):
            _add_site(layout, tree, base, f"{prefix}conv.{i}.out", f"{path}:out", "", stream)
    for part in family.parts:
        path = tree.real(part.path)
        module = tree.modules.get(path)
        inner = family_of(module) if module is not None else None
        if module is not None and inner is not None:
            own = (prefix + part.prefix).rstrip(".") if part.own_stream else stream
            _add(layout, inner, Tree(module), _join(base, path), prefix + part.prefix, own)


def _add_stack(layout: Layout, stack: Stack, tree: Tree, base: str, prefix: str, stream: str) -> None:
    paths = tree.find(stack.layers)
    calls: list[int | None] = [None] * len(paths)
    if stack.repeat and paths:
        count = int(tree.number("", stack.repeat))
        paths = paths[:1] * count
        calls = [*range(count)]
        layout.shared = True
    stream = (stream + stack.stream) if stack.stream else stream
    for i, (path, call) in enumerate(zip(paths, calls, strict=True)):
        name = f"{prefix}{stack.prefix}layers.{i}"
        for suffix, taps in stack.layer.items():
            _add_site(layout, tree, base, f"{name}.{suffix}", taps, path, stream, call)
        for head, module in stack.attention.items():
            _add_attention(layout, tree, base, f"{name}.{head}", _join(path, module), stream, call)
        equations = (*stack.equations, NEXT) if stack.chained and i + 1 < len(paths) else stack.equations
        layout.equations += [(name, _join(base, path), equation) for equation in equations]
    layout.n_layers = max(layout.n_layers, len(paths))


def _add_attention(layout: Layout, tree: Tree, base: str, name: str, path: str, stream: str, call: int | None) -> None:
    from interneuron.model.attention import supports_attention

    module = tree.modules.get(path)
    if module is None or not supports_attention(module):
        return
    for part in ("q", "k", "v", "scores", "pattern"):
        expression = f"{path}:attention.{part}" + (" | swap" if part in "qkv" else "")
        _add_site(layout, tree, base, f"{name}.{part}", expression, "", stream, call)


def _add_site(
    layout: Layout, tree: Tree, base: str, name: str, taps: Taps, at: str, stream: str, call: int | None = None
) -> None:
    choices = (taps,) if isinstance(taps, str) else taps
    for left, expression in zip(range(len(choices) - 1, -1, -1), choices, strict=True):
        expression, _, needed = expression.partition(" if ")
        if needed and tree.real(needed.strip()) not in tree.modules:
            continue
        text, _, axes = expression.partition("@")
        path, rest = text.strip().split(":", 1)
        path = _join(at, path) if at else tree.real(path)
        if path not in tree.modules:
            continue
        try:
            tap = parse_tap(f"{path}:{rest}", lambda word, p=path: tree.number(p, word), tree.d_head(path))
        except SiteNotFound:  # a scale this model does without
            if left:
                continue
            raise
        tap = dataclasses.replace(tap, path=_join(base, path), call=tap.call if call is None else call)
        named = tuple(axis.strip() for axis in axes.split(",")) if axes else axes_of(name)
        layout.entries.setdefault(name, Entry(name, named, tap, stream))
        return


def _join(base: str, path: str) -> str:
    return f"{base}.{path}" if base and path else base or path


def all_families() -> list[Family]:
    """Every family that ships, found in the folder: no list is kept by hand."""
    from interneuron.model import families

    found: list[Family] = []
    for info in sorted(pkgutil.iter_modules(families.__path__), key=lambda item: item.name):
        module: Any = importlib.import_module(f"{families.__name__}.{info.name}")
        found += module.FAMILIES
    return found


def family_of(module: nn.Module | None) -> Family | None:
    """The family that serves a module, by class name first, then by `config.model_type`."""
    if module is None:
        return None
    classes = {cls.__name__ for cls in type(module).__mro__}
    config = getattr(module, "config", None)
    kind = getattr(config, "model_type", None)
    families = [family for family in all_families() if _holds(family.when, config)]
    for family in families:
        if classes & set(family.classes):
            return family
    return next((family for family in families if kind in family.model_types), None)


def _holds(when: Mapping[str, Any], config: Any) -> bool:
    return all(getattr(config, name, None) == value for name, value in when.items())

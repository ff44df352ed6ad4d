"""Taps: how one tensor is taken from, and put back into, what a module receives or returns.

A tap is written in a small language, used by the family files and, in its first half, by users:

    PATH:out            the first tensor the module returns        PATH:out.1 / PATH:out.logits   a named part
    PATH:in             the first tensor it receives               PATH:in.mask                   a keyword argument
    PATH:attention.q    a part of the attention computation inside the module (q, k, v, scores, pattern)
    ... | heads         split the last axis into heads             ... | heads NAME   heads as wide as the config names
    ... | split 0/3     the first third of the last axis           ... | take A B     entries A..B of the last axis
    ... | part 1 A B C  the second of parts A, B, C wide           ... | qkv 1        k of per-head interleaved q, k, v
    ... | slots A B N W slots A..B of every group of N, W wide     ... | tokens       [B*T, X] seen as [B, T, X]
    ... | flat          [B, H, W, X] seen as [B, H*W, X]           ... | swap         axes 1 and 2 exchanged
    ... | scale NAME    times a number or a parameter              ... | channels     [B, H, W, C] seen as [B, C, H, W]
    ... | call 2        only the module's third call of a pass
    ... | copy          kept as a copy, where the model overwrites the tensor in place right after
    ... | readonly      an edit is refused, where the model uses the tensor a second time behind the hook

Numbers are literals, names of the config or of a module around the tap, or sums and products: `n_heads*head_dim`.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from interneuron.core.errors import EditError, ShapeError, SiteNotFound


class View:
    """A reversible look at a tensor. `get` never copies where PyTorch need not; `put(x, get(x))` returns x's bits."""

    def get(self, x: Tensor, batch: int | None) -> Tensor:
        """The part of x the site shows."""
        raise NotImplementedError

    def put(self, x: Tensor, value: Tensor) -> Tensor:
        """A tensor like x in which the part shown is `value`."""
        raise NotImplementedError

    def grad(self, g: Tensor, batch: int | None) -> Tensor:
        """The gradient with respect to the part, from the gradient with respect to x."""
        return self.get(g, batch)


@dataclasses.dataclass(frozen=True)
class Heads(View):
    """[..., H*K] seen as [..., H, K]."""

    d_head: int

    def get(self, x: Tensor, batch: int | None) -> Tensor:
        if x.shape[-1] % self.d_head:
            raise ShapeError(f"cannot split width {x.shape[-1]} into heads of {self.d_head}: the map is wrong here.")
        return x.unflatten(-1, (-1, self.d_head))

    def put(self, x: Tensor, value: Tensor) -> Tensor:
        return value.flatten(-2)


@dataclasses.dataclass(frozen=True)
class Fraction(View):
    """One of `of` equal parts of the last axis."""

    index: int
    of: int

    def get(self, x: Tensor, batch: int | None) -> Tensor:
        unit = x.shape[-1] // self.of
        return x[..., self.index * unit : (self.index + 1) * unit]

    def put(self, x: Tensor, value: Tensor) -> Tensor:
        unit = x.shape[-1] // self.of
        return torch.cat([x[..., : self.index * unit], value, x[..., (self.index + 1) * unit :]], dim=-1)


@dataclasses.dataclass(frozen=True)
class Slots(View):
    """[..., G*N*W], G groups of N slots W wide, seen as [..., G*(stop-start)*W]: slots start..stop of every group."""

    start: int
    stop: int
    of: int
    width: int

    def get(self, x: Tensor, batch: int | None) -> Tensor:
        if x.shape[-1] % (self.of * self.width):
            raise ShapeError(
                f"cannot see width {x.shape[-1]} as groups of {self.of} slots of {self.width}: the map is wrong here."
            )
        return x.unflatten(-1, (-1, self.of, self.width))[..., self.start : self.stop, :].flatten(-3)

    def put(self, x: Tensor, value: Tensor) -> Tensor:
        whole = x.unflatten(-1, (-1, self.of, self.width))
        new = value.unflatten(-1, (-1, self.stop - self.start, self.width))
        return torch.cat([whole[..., : self.start, :], new, whole[..., self.stop :, :]], dim=-2).flatten(-3)


@dataclasses.dataclass(frozen=True)
class Part(View):
    """The part of the last axis at start..start+width."""

    start: int
    width: int

    def get(self, x: Tensor, batch: int | None) -> Tensor:
        if self.start + self.width > x.shape[-1]:
            raise ShapeError(
                f"width {x.shape[-1]} has no entries {self.start}..{self.start + self.width}: the map is wrong here."
            )
        return x[..., self.start : self.start + self.width]

    def put(self, x: Tensor, value: Tensor) -> Tensor:
        return torch.cat([x[..., : self.start], value, x[..., self.start + self.width :]], dim=-1)


@dataclasses.dataclass(frozen=True)
class Flat(View):
    """[B, H, W, X] seen as [B, H*W, X]; a tensor that already has three axes is left alone."""

    def get(self, x: Tensor, batch: int | None) -> Tensor:
        return x.flatten(1, 2) if x.ndim == 4 else x

    def put(self, x: Tensor, value: Tensor) -> Tensor:
        return value.reshape(x.shape)


@dataclasses.dataclass(frozen=True)
class Copied(View):
    """The same values in memory of their own: the model overwrites the tensor in place once the hook has run."""

    def get(self, x: Tensor, batch: int | None) -> Tensor:
        return x.clone()

    def put(self, x: Tensor, value: Tensor) -> Tensor:
        return value


@dataclasses.dataclass(frozen=True)
class ReadOnly(View):
    """The tensor as it is. An edit is refused: the model keeps another reference that no hook can replace."""

    def get(self, x: Tensor, batch: int | None) -> Tensor:
        return x

    def put(self, x: Tensor, value: Tensor) -> Tensor:
        raise EditError(
            "this site can be read but not edited: the model goes on with another reference to the tensor, so the edit "
            "would change only part of the computation. Edit a site before or after it, e.g. ssm.x_proj or ssm.hidden."
        )


@dataclasses.dataclass(frozen=True)
class Tokens(View):
    """[B*T, ...] seen as [B, T, ...]; a tensor that already has three axes is left alone."""

    def get(self, x: Tensor, batch: int | None) -> Tensor:
        if x.ndim != 2:
            return x
        if not batch or x.shape[0] % batch:
            raise ShapeError(f"cannot see {tuple(x.shape)} as [batch, pos, ...]: the batch size {batch} does not fit.")
        return x.unflatten(0, (batch, -1))

    def put(self, x: Tensor, value: Tensor) -> Tensor:
        return value.reshape(x.shape)


@dataclasses.dataclass(frozen=True, eq=False)
class Scaled(View):
    """x seen as s*x, s a number or a parameter. `put` works on the difference: an unchanged value gives x's own bits.

    Where s is 0 the model ignores x, so an edit leaves it alone.
    """

    factor: float | Tensor

    def get(self, x: Tensor, batch: int | None) -> Tensor:
        return x * self.factor

    def put(self, x: Tensor, value: Tensor) -> Tensor:
        change = (value - x * self.factor) / self.factor
        return x + (torch.nan_to_num(change) if isinstance(self.factor, Tensor) else change)

    def grad(self, g: Tensor, batch: int | None) -> Tensor:
        return g / self.factor


@dataclasses.dataclass(frozen=True)
class Channels(View):
    """[B, H, W, C] seen as [B, C, H, W]."""

    def get(self, x: Tensor, batch: int | None) -> Tensor:
        return x.movedim(-1, 1)

    def put(self, x: Tensor, value: Tensor) -> Tensor:
        return value.movedim(1, -1)


@dataclasses.dataclass(frozen=True)
class Swapped(View):
    """Axes 1 and 2 exchanged ([B, X, T] seen as [B, T, X])."""

    def get(self, x: Tensor, batch: int | None) -> Tensor:
        return x.transpose(1, 2)

    def put(self, x: Tensor, value: Tensor) -> Tensor:
        return value.transpose(1, 2)


@dataclasses.dataclass(frozen=True)
class Tap:
    """One place a tensor can be taken: module path, side (`in`, `out`, `attention`), part of it, and views on it."""

    path: str
    side: str
    key: int | str | None = None
    views: tuple[View, ...] = ()
    call: int | None = None

    @property
    def part(self) -> int | str | None:
        """The part of the module's output or arguments; parts of an attention arrive as bare tensors."""
        return None if self.side == "attention" else self.key

    def get(self, x: Tensor, batch: int | None) -> Tensor:
        """The site's tensor, from the module's."""
        for view in self.views:
            x = view.get(x, batch)
        return x

    def put(self, x: Tensor, value: Tensor, batch: int | None) -> Tensor:
        """The module's tensor with the site's replaced by `value`."""
        if not self.views:
            return value
        stack = [x]
        for view in self.views[:-1]:
            stack.append(view.get(stack[-1], batch))
        for view, inner in zip(reversed(self.views), reversed(stack), strict=True):
            value = view.put(inner, value)
        return value

    def grad(self, g: Tensor, batch: int | None) -> Tensor:
        """The site's gradient, from the gradient of the module's tensor."""
        for view in self.views:
            g = view.grad(g, batch)
        return g


_TAP = re.compile(r"(?P<path>[^:|]*):(?P<side>in|out|attention)(?:\.(?P<key>[A-Za-z0-9_]+))?")


def parse_tap(text: str, number: Number, d_head: int | None) -> Tap:
    """Read one tap expression; `number(name)` looks a config value up, `d_head` is the head width for `heads`."""
    head, *filters = (part.strip() for part in text.split("|"))
    match = _TAP.fullmatch(head)
    if match is None:
        raise SiteNotFound(f"{text!r} is not a site address: expected PATH:in, PATH:out or PATH:out.PART.")
    key = match["key"]
    views: list[View] = []
    call = None
    for word, *args in (item.split() for item in filters):
        if word == "call":
            call = int(args[0])
        else:
            views += _views(word, args, number, d_head, text)
    part: int | str | None = int(key) if key is not None and key.isdigit() else key
    return Tap(match["path"], match["side"], part, tuple(views), call)


_PLAIN: dict[str, type[View]] = {
    "tokens": Tokens, "swap": Swapped, "flat": Flat, "channels": Channels, "copy": Copied, "readonly": ReadOnly,
}  # fmt: skip
Number = Callable[[str], "float | Tensor"]


def _views(word: str, args: list[str], number: Number, d_head: int | None, text: str) -> list[View]:
    """The views one filter stands for."""
    if word in _PLAIN and not args:
        return [_PLAIN[word]()]
    if word == "heads" and args:
        return [Heads(int(number(args[0])))]
    if word in ("heads", "qkv"):
        if not d_head:
            raise SiteNotFound(f"{text!r} splits heads, but the head width of this module is unknown.")
        heads: list[View] = [Heads(d_head)]
        return heads if word == "heads" else [Slots(int(args[0]), int(args[0]) + 1, 3, d_head), *heads]
    if word == "split":
        index, of = args[0].split("/")
        return [Fraction(int(index), int(of))]
    if word == "take":
        start, stop = (int(number(arg)) for arg in args)
        return [Part(start, stop - start)]
    if word == "part":
        index, widths = int(args[0]), [int(number(arg)) for arg in args[1:]]
        return [Part(sum(widths[:index]), widths[index])]
    if word == "slots":
        start, stop, of, width = (int(number(arg)) for arg in args)
        return [Slots(start, stop, of, width)]
    if word == "scale":
        return [Scaled(number(args[0]))]
    raise SiteNotFound(f"{text!r} uses the unknown view {word!r}.")


def take_part(value: Any, key: int | str | None) -> Any:
    """The tensor inside a module's output: the named part, or the first tensor of a tuple, dataclass or mapping.

    Returns None when there is none, so that a site which never carries a tensor counts as not fired.
    """
    if key is None:
        if isinstance(value, Tensor):
            return value
        parts = value.values() if isinstance(value, dict) else _parts(value)
        return next((part for part in parts if isinstance(part, Tensor)), None)
    if isinstance(key, int):
        if isinstance(value, Tensor):
            return value if key == 0 else None
        parts = list(value.values()) if isinstance(value, dict) else list(_parts(value))
        return parts[key] if key < len(parts) else None
    return value.get(key) if isinstance(value, dict) else getattr(value, key, None)


def _parts(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return value
    if dataclasses.is_dataclass(value):
        return [getattr(value, field.name) for field in dataclasses.fields(value)]
    return ()


def put_part(value: Any, key: int | str | None, tensor: Tensor) -> Any:
    """A copy of a module's output, of the same type, with one tensor replaced."""
    if isinstance(value, Tensor):
        return tensor
    if isinstance(value, dict):  # ModelOutput is an OrderedDict that is also a dataclass
        name = key if isinstance(key, str) else _key_of(list(value.items()), key)
        same: Any = type(value)(**value) if dataclasses.is_dataclass(value) else copy.copy(value)
        same[name] = tensor
        return same
    if isinstance(value, (tuple, list)):
        index = _key_of(list(enumerate(value)), key)
        items = [tensor if i == index else item for i, item in enumerate(value)]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
        name = key if isinstance(key, str) else _key_of(fields, key)
        return dataclasses.replace(value, **{name: tensor})
    raise ShapeError(f"cannot put a tensor into an output of type {type(value).__name__}: edit an inner module.")


def _key_of(items: list[tuple[Any, Any]], key: int | str | None) -> Any:
    if isinstance(key, int):
        return items[key][0]
    return next(name for name, item in items if isinstance(item, Tensor))

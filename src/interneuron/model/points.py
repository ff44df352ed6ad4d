"""Points: everything that happens at one side of one module while contexts are open.

One hook serves all reads and edits of a place, so their order never depends on the order of registration: edits in the
order of their contexts, then reads. A point with nothing left to do removes its hook.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from interneuron.core.errors import EditError, ShapeError, UnsupportedModel
from interneuron.model.activations import Box
from interneuron.model.edits import Edit, Place
from interneuron.model.positions import Stream
from interneuron.model.region import Region
from interneuron.model.selection import Selection
from interneuron.model.taps import Tap, put_part, take_part

Step = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class Resolved:
    """A site resolved on a model: its name and axes, where it is tapped, and the token stream it belongs to."""

    name: str
    axes: tuple[str, ...]
    tap: Tap
    module: nn.Module
    stream: Stream
    stream_name: str
    selection: Selection = dataclasses.field(default_factory=Selection)


class Point:
    """One side (`in` or `out`) of one module."""

    def __init__(self, module: nn.Module, side: str) -> None:
        self.module, self.side = module, side
        self.edits: list[BoundEdit] = []
        self.reads: list[Step] = []
        self.count = 0
        if side == "out":
            self.handle = module.register_forward_hook(self.on_output)
        else:
            self.handle = module.register_forward_pre_hook(self.on_input, with_kwargs=True)

    @property
    def idle(self) -> bool:
        """True when nothing is left to do here."""
        return not self.edits and not self.reads

    def close(self) -> None:
        """Remove the hook."""
        self.handle.remove()

    def on_output(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Forward hook: edits rewrite the output, reads see the result."""
        value = output
        for edit in self.edits:
            value = edit.apply(value, self.count)
        for read in self.reads:
            new = read(value)
            if new is not None:
                value = new
        self.count += 1
        return value if value is not output else None

    def on_input(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Forward pre-hook: the same, on the arguments."""
        held = Arguments(module, args, kwargs)
        value: Any = held
        for edit in self.edits:
            value = edit.apply(value, self.count)
        for read in self.reads:
            new = read(value)
            if new is not None:
                value = new
        self.count += 1
        return (value.args, value.kwargs) if value is not held else None


class Arguments:
    """The arguments of a module call, seen as something parts can be taken from and put into."""

    __slots__ = ("args", "kwargs", "module")

    def __init__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.module, self.args, self.kwargs = module, args, kwargs

    def find(self, key: int | str | None) -> tuple[str, Any] | None:
        """Where an argument is: ("args", index) or ("kwargs", name); without key, the first tensor."""
        if key is None:
            for i, arg in enumerate(self.args):
                if isinstance(arg, Tensor):
                    return "args", i
            return next((("kwargs", name) for name, v in self.kwargs.items() if isinstance(v, Tensor)), None)
        if isinstance(key, str) and key in self.kwargs:
            return "kwargs", key
        names = list(inspect.signature(self.module.forward).parameters)
        index = key if isinstance(key, int) else names.index(key) if key in names else -1
        if 0 <= index < len(self.args):
            return "args", index
        if isinstance(key, int) and key < len(names) and names[key] in self.kwargs:
            return "kwargs", names[key]
        return None

    def take(self, key: int | str | None) -> Tensor | None:
        """The tensor at a key, or None."""
        place = self.find(key)
        if place is None:
            return None
        value = self.args[place[1]] if place[0] == "args" else self.kwargs[place[1]]
        return value if isinstance(value, Tensor) else None

    def put(self, key: int | str | None, tensor: Tensor) -> Arguments:
        """The same arguments with one tensor replaced."""
        place = self.find(key)
        assert place is not None
        if place[0] == "args":
            args = tuple(tensor if i == place[1] else a for i, a in enumerate(self.args))
            return Arguments(self.module, args, self.kwargs)
        return Arguments(self.module, self.args, {**self.kwargs, place[1]: tensor})


def take(value: Any, key: int | str | None) -> Tensor | None:
    """The tensor at a key of an output or of arguments."""
    part = value.take(key) if type(value) is Arguments else take_part(value, key)
    return part if isinstance(part, Tensor) else None


def put(value: Any, key: int | str | None, tensor: Tensor) -> Any:
    """The output or arguments with the tensor at a key replaced."""
    return value.put(key, tensor) if type(value) is Arguments else put_part(value, key, tensor)


class BoundEdit:
    """An edit bound to one site of one model for the life of a context.

    fired    the site carried a tensor          matched    the selection held at least one of its entries
    """

    __slots__ = ("edit", "fired", "key", "matched", "rows", "site")

    def __init__(self, edit: Edit, site: Resolved, rows: slice | None = None) -> None:
        self.edit, self.site, self.rows = edit, site, rows
        self.key = site.tap.key
        self.fired = self.matched = False

    def apply(self, value: Any, count: int) -> Any:
        """The module's output (or arguments) after this edit; the very same object when nothing changes."""
        tap = self.site.tap
        if tap.call is not None:
            if torch._C._current_graph_task_id() != -1:
                raise UnsupportedModel(
                    f"{self.edit.kind} at {self.site.name}: gradient checkpointing runs this module again in backward, "
                    "and layers that share it cannot be told apart there. Turn gradient checkpointing off."
                )
            if tap.call != count:
                return value
        raw = take(value, tap.part)
        if raw is None:
            return value
        self.fired = True
        batch = self.site.stream.batch
        x = tap.get(raw, batch)
        y = self.rewrite(x)
        return value if y is x else put(value, tap.part, tap.put(raw, y, batch))

    def rewrite(self, x: Tensor) -> Tensor:
        """The edited tensor; x itself when this pass holds nothing of the selection."""
        edit, site = self.edit, self.site
        if self.rows is None:
            y, self.matched = rewrite(edit, site, x, self.matched)
            return y
        block = dataclasses.replace(site, stream=site.stream.block(self.rows))
        old = x[self.rows]
        new, self.matched = rewrite(edit, block, old, self.matched)
        return x if new is old else torch.cat([x[: self.rows.start], new, x[self.rows.stop :]])


def rewrite(edit: Edit, site: Resolved, x: Tensor, matched: bool) -> tuple[Tensor, bool]:
    """Apply one edit to a site's tensor, inside its selection and gate. Returns the tensor and whether any matched."""
    place = SitePlace(edit, site, x)
    mask = place.region.mask() if edit.selection else True
    if mask is False:
        return x, matched
    if edit.strength == 0:
        return x, True
    y = edit.transform(x, place)
    if y is x:
        return x, True
    if y.shape != x.shape:
        raise ShapeError(
            f"{edit.kind} at {site.name} returned shape {tuple(y.shape)}, the site has {tuple(x.shape)}: "
            "an edit must keep the shape."
        )
    if y.dtype != x.dtype:
        raise EditError(f"{edit.kind} at {site.name} returned {y.dtype}, the site is {x.dtype}: cast inside the edit.")
    if edit.strength != 1:
        if not x.is_floating_point():
            raise EditError(
                f"{edit.kind} at {site.name} has strength {edit.strength}, but the site holds {x.dtype}: use 1."
            )
        y = torch.lerp(x, y, edit.strength)
    if edit.gate is not None:
        mask = gate_mask(edit, site.name, x) & mask
    return (y if mask is True else torch.where(mask, y, x)), True


class SitePlace(Place):
    """The place of one edit in one pass; the region is worked out only when something asks for it."""

    __slots__ = ("_edit", "_region", "_site", "_x", "name")

    def __init__(self, edit: Edit, site: Resolved, x: Tensor) -> None:
        self._edit, self._site, self._x = edit, site, x
        self._region: Region | None = None
        self.name = site.name

    @property
    def region(self) -> Region:
        """The selected part of the site's tensor."""
        if self._region is None:
            self._region = Region(self.name, self._x, self._site.axes, self._edit.selection, self._site.stream)
        return self._region

    @property
    def axes(self) -> tuple[str, ...]:
        """Axis names of the tensor."""
        return self.region.axes

    def align(self, x: Tensor, value: Tensor) -> Tensor:
        """A value given for the site or its selected part, laid out to broadcast against x."""
        if value.ndim <= 1 and value.device == x.device and (value.ndim == 0 or value.shape[0] in (1, x.shape[-1])):
            return value
        return self.region.align(x, value)

    def real(self) -> Tensor | None:
        """Booleans that broadcast against the tensor, false at padding; None when it has no positions."""
        return self.region.real()


def gate_mask(edit: Edit, name: str, x: Tensor) -> Tensor:
    """The gate's booleans, with axes appended so that they broadcast against x."""
    assert edit.gate is not None
    open_ = edit.gate(x)
    if not isinstance(open_, Tensor):
        open_ = torch.as_tensor(open_, device=x.device)
    if open_.dtype != torch.bool or tuple(open_.shape) != tuple(x.shape[: open_.ndim]):
        raise EditError(
            f"the gate at {name} returned {open_.dtype} of shape {tuple(open_.shape)}: expected booleans shaped like "
            f"the leading axes of {tuple(x.shape)}."
        )
    return open_.reshape(*open_.shape, *[1] * (x.ndim - open_.ndim))


@dataclasses.dataclass(frozen=True)
class ReadSpec:
    """How tensors are kept: with gradients or not, where to, as what dtype, copied or by reference."""

    grad: bool = False
    to: Any = None
    dtype: torch.dtype | None = None
    copy: bool = False
    on_fire: Callable[[], None] | None = None


def make_reader(site: Resolved, box: Box, spec: ReadSpec, point: Any) -> Step:
    """The function a point calls to keep one site's tensor. References cost one append."""
    tap, stream, key = site.tap, site.stream, site.tap.part
    values, versions = box.values, box.versions
    plain = not (tap.views or site.selection or spec.grad or spec.copy or spec.on_fire or tap.call is not None)
    in_backward = torch._C._current_graph_task_id
    inferred = tap.side == "attention" and tap.key in ("scores", "pattern")

    if plain:

        def read(value: Any) -> None:
            if type(value) is not Tensor or key is not None:
                value = take(value, key)
                if value is None:
                    return
            if in_backward() == -1:
                if value.is_inference():  # no version tells whether the model overwrites it later
                    value = value.clone()
                    versions.append(0)
                else:
                    versions.append(value._version)
                values.append(value)

        return read

    def read_with_care(value: Any) -> Any:
        if tap.call is not None and point.count != tap.call:
            return None
        raw = take(value, key)
        if raw is None or in_backward() != -1:  # a checkpointed module runs again inside backward
            return None
        changed = None
        if spec.grad and not inferred and not raw.requires_grad and raw.is_floating_point():
            raw = raw.detach().requires_grad_()
            changed = put(value, key, raw)
        x = tap.get(raw, stream.batch)
        if site.selection:
            part = Region(site.name, x, site.axes, site.selection, stream).take()
            if part is None:
                return changed
            x = part
        if spec.grad:
            store = gradient_store(site, box, stream.batch)
            if inferred:  # the kernel never forms these tensors; the point derives their gradient from its output's
                point.on_gradient(tap.key, store)
            elif raw.requires_grad:  # integers carry no gradient; acts.grad says so when asked
                raw.register_hook(store)
        if values and isinstance(spec.to, dict):
            raise ShapeError(
                f"{site.name} gave another tensor of the same sequence, and its buffer holds one: read it without "
                "buffers (to='cpu')."
            )
        values.append(_kept(x, site.name, spec))
        versions.append(0 if x.is_inference() else x._version)
        if spec.on_fire is not None:
            spec.on_fire()
        return changed

    return read_with_care


def gradient_store(site: Resolved, box: Box, batch: int | None) -> Callable[[Tensor], None]:
    """A tensor hook that stores the gradient of what really flowed, seen through the site's views and selection."""
    slot = len(box.grads)
    box.grads.append(None)
    grads = box.grads

    def store(g: Tensor) -> None:
        g = site.tap.grad(g, batch)
        if site.selection:
            part = Region(site.name, g, site.axes, site.selection, site.stream).take()
            if part is None:
                return
            g = part
        if slot < len(grads):
            grads[slot] = g.detach()

    return store


def _kept(x: Tensor, name: str, spec: ReadSpec) -> Tensor:
    if not spec.copy:
        return x.clone() if x.is_inference() else x
    if isinstance(spec.to, dict):
        buffer = spec.to[name]
        if buffer.shape != x.shape:
            raise ShapeError(
                f"{name}: the buffer has shape {tuple(buffer.shape)}, the site gave {tuple(x.shape)}: "
                "preallocate one buffer per batch shape."
            )
        return buffer.copy_(x.detach())
    return x.to(device=spec.to, dtype=spec.dtype, copy=True)

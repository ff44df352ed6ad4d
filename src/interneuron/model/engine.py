"""The engine: installs reads and edits on a model's own modules for the life of a context, and takes them away again.

Hooks go on when a context is entered and come off when it is left, also after an exception or Ctrl-C. Contexts nest in
any order. One engine belongs to one Model; engines of different models never touch each other.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from interneuron.core.errors import InputError, ShapeError, SiteDidNotFire, UnsupportedModel
from interneuron.model.activations import Activations, Box
from interneuron.model.attention import AttentionPoint
from interneuron.model.edits import Edit
from interneuron.model.points import BoundEdit, Point, ReadSpec, Resolved, Step, make_reader
from interneuron.model.positions import Stream


class StopForward(BaseException):
    """Ends a forward pass after the last site needed. Never leaves the library."""


@dataclasses.dataclass(frozen=True)
class Anchor:
    """The module whose calls delimit the passes of a token stream."""

    name: str
    module: nn.Module
    stream: Stream


class Engine:
    """Points and streams of one model."""

    def __init__(self, module: nn.Module, anchors: Sequence[Anchor]) -> None:
        self.module = module
        self.anchors = tuple(anchors)
        self.points: dict[Any, Any] = {}
        self.sinks: list[dict[str, Box]] = []
        self.verified: set[str] = set()
        self.sessions = 0
        self._anchor_handles: list[Any] = []
        self._held: set[Any] = set()
        self.inplace = any(getattr(m, "inplace", False) is True for m in module.modules())

    def point(self, site: Resolved) -> Any:
        """The point a site lives at, created on first use."""
        key = (id(site.module), site.tap.side)
        point = self.points.get(key)
        if point is None:
            if site.tap.side == "attention":
                point = AttentionPoint(site.module, site.tap.path, self.verified)
            else:
                point = Point(site.module, site.tap.side)
            self.points[key] = point
        return point

    def open(self) -> None:
        """Follow the passes of every stream while at least one session is open."""
        if self.sessions == 0:
            for anchor in self.anchors:
                hook = _Follow(self, anchor)
                self._anchor_handles.append(anchor.module.register_forward_pre_hook(hook, with_kwargs=True))
        self.sessions += 1

    def close(self) -> None:
        """Undo `open`, and drop every point nobody uses."""
        self.sessions -= 1
        if self.sessions == 0:
            for handle in self._anchor_handles:
                handle.remove()
            self._anchor_handles.clear()
            for anchor in self.anchors:
                anchor.stream.forget()
        for key in [key for key, point in self.points.items() if point.idle and key not in self._held]:
            self.points.pop(key).close()

    def new_pass(self, anchor: Anchor) -> None:
        """Called at the start of each pass of a stream: counts restart, finished sequences make room."""
        stream = anchor.stream
        joined = stream.continuing and stream.past > 0
        for point in self.points.values():
            point.count = 0
        for boxes in self.sinks:
            for box in boxes.values():
                if box.stream is stream:
                    if joined:
                        box.concat = True
                    elif box.values:
                        box.clear()

    def fresh_pass(self) -> None:
        """Say that the next pass without a cache is a sequence of its own, even if it repeats the last one."""
        for anchor in self.anchors:
            anchor.stream.fresh = True

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Run the module inside without a trace in the open contexts: no edit acts, no read or stream takes note."""
        sinks, held = self.sinks, self._held
        points = [(point, point.__dict__.copy()) for point in self.points.values()]
        streams = [(anchor.stream, anchor.stream.__dict__.copy()) for anchor in self.anchors]
        self.sinks, self._held = [], set(self.points)
        for point, _ in points:
            point.__dict__.update({name: [] for name in ("edits", "reads", "read_parts", "gradients")})
        for stream, _ in streams:
            stream.release_prompt()
        try:
            yield
        finally:
            self.sinks, self._held = sinks, held
            for holder, state in (*points, *streams):
                holder.__dict__.update(state)


class _Follow:
    """Pre-hook of an anchor module: reads what a pass is from its arguments."""

    __slots__ = ("anchor", "engine")

    def __init__(self, engine: Engine, anchor: Anchor) -> None:
        self.engine, self.anchor = engine, anchor

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch._C._current_graph_task_id() != -1:
            return
        if len(args) > 1:  # a mask or a cache may be given by position
            names = list(inspect.signature(module.forward).parameters)
            kwargs = {**dict(zip(names, args, strict=False)), **kwargs}
        first = args[0] if args and isinstance(args[0], Tensor) else None
        ids = kwargs.get("decoder_input_ids")
        if ids is None:
            ids = kwargs.get("input_ids")
        if ids is None and first is not None and first.ndim == 2 and not first.is_floating_point():
            ids = first
        embeds = kwargs.get("inputs_embeds")
        shaped = ids if ids is not None else embeds if embeds is not None else first
        if shaped is None:
            shaped = next((v for v in kwargs.values() if isinstance(v, Tensor) and v.ndim > 1), None)
        batch = shaped.shape[0] if shaped is not None and shaped.ndim else None
        length = shaped.shape[1] if shaped is not None and (ids is not None or shaped.ndim == 3) else 0
        mask = kwargs.get("decoder_attention_mask" if "decoder_input_ids" in kwargs else "attention_mask")
        cache = kwargs.get("past_key_values")
        if cache is None:
            cache = kwargs.get("cache_params")
        self.anchor.stream.begin(ids if ids is not None and ids.ndim == 2 else None, length, batch, mask, cache)
        self.engine.new_pass(self.anchor)


class Session:
    """One open context: some edits, some reads.

    edits   pairs of edit and resolved site, in order; an optional row block restricts an edit to part of the batch
    reads   resolved sites
    """

    def __init__(
        self,
        engine: Engine,
        *,
        edits: Sequence[tuple[Edit, Resolved, slice | None]] = (),
        reads: Sequence[Resolved] = (),
        spec: ReadSpec | None = None,
        canonical: Any = None,
        stop_after: dict[str, int] | None = None,
    ) -> None:
        self.engine = engine
        self._wanted = edits
        self._sites = reads
        self._spec = spec or ReadSpec()
        self._stop_after = stop_after
        self.stopped = False
        self.edits: list[tuple[Any, BoundEdit]] = []
        self.reads: list[tuple[Any, Step]] = []
        self.boxes: dict[str, Box] = {}
        self.acts = Activations(self.boxes, canonical)
        self._open = False

    def __enter__(self) -> Activations:
        if self._open:
            raise InputError("this context is already open: make a new one with model.read(...) or model.edit(...).")
        if self._spec.grad and not torch.is_grad_enabled():
            raise InputError("read(grad=True) inside torch.no_grad(): gradients are off here. Leave no_grad first.")
        self.edits.clear()
        self.boxes.clear()
        self.stopped = False
        self.engine.open()
        self._open = True
        try:
            for edit, site, rows in self._wanted:
                point = self.engine.point(site)
                bound = BoundEdit(edit, site, rows)
                point.edits.append(bound)
                self.edits.append((point, bound))
            for site in self._sites:
                self._add_read(site)
        except BaseException:
            self._leave()
            raise
        self.engine.sinks.append(self.boxes)
        return self.acts

    def _add_read(self, site: Resolved) -> None:
        spec = self._spec
        if self.engine.inplace and not spec.copy:  # an in-place module would overwrite what a reference points at
            spec = dataclasses.replace(spec, copy=True)
        if self._stop_after is not None:
            spec = dataclasses.replace(spec, on_fire=self._countdown(site.name, self._stop_after))
        box = Box(site.name, _axes_after(site), site.stream, spec.copy)
        self.boxes[site.name] = box
        point = self.engine.point(site)
        read = make_reader(site, box, spec, point)
        if site.tap.side == "attention":
            point.add_read(site.tap.key, read)
        else:
            point.reads.append(read)
        self.reads.append((point, read))

    def _countdown(self, name: str, left: dict[str, int]) -> Any:
        def fired() -> None:
            left[name] -= 1
            if all(n <= 0 for n in left.values()):
                self.stopped = True
                raise StopForward

        return fired

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()
        if kind is None and not self.stopped:
            self._check_fired()

    def _leave(self) -> None:
        for point, bound in self.edits:
            point.edits.remove(bound)
        for point, read in self.reads:
            if isinstance(point, AttentionPoint):
                point.remove_read(read)
            else:
                point.reads.remove(read)
        self.reads.clear()
        if any(boxes is self.boxes for boxes in self.engine.sinks):
            self.engine.sinks[:] = [boxes for boxes in self.engine.sinks if boxes is not self.boxes]
        if self._open:
            self._open = False
            self.engine.close()

    def _check_fired(self) -> None:
        try:
            self._raise_silent()
        except SiteDidNotFire:
            refuse_compiled(self.engine.module)  # compiled since it was wrapped: that is the reason then
            raise

    def _raise_silent(self) -> None:
        silent = [box.name for box in self.boxes.values() if not box.values and not _may_be_empty(box, self._sites)]
        if silent:
            raise SiteDidNotFire(
                f"{_some(silent)} did not fire: nothing flowed through while the context was open. Run the model "
                "inside the context, and check that this input reaches the module (model.sites() lists all sites)."
            )
        for _, bound in self.edits:
            if not bound.fired:
                raise SiteDidNotFire(
                    f"{bound.edit.kind} at {bound.site.name} never fired: nothing flowed through the site while the "
                    "context was open, so nothing was edited. Run the model inside the context."
                )
            if not bound.matched:
                raise SiteDidNotFire(
                    f"{bound.edit.kind} at {bound.site.name} never matched: no pass held "
                    f"({bound.edit.selection.describe()}), so nothing was edited. Choose positions the input has."
                )


def _may_be_empty(box: Box, sites: Sequence[Resolved]) -> bool:
    return False if box.values else any(s.name == box.name and s.selection.phase == "generated" for s in sites)


def _axes_after(site: Resolved) -> tuple[str, ...]:
    return tuple(axis for axis in site.axes if not isinstance(site.selection.get(axis), int))


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more sites"


def check_buffers(to: Any, names: Sequence[str]) -> None:
    """Raise ShapeError when buffers are given for other sites than those read."""
    if isinstance(to, dict) and set(to) != set(names):
        raise ShapeError(
            f"to= holds buffers for {sorted(to)[:4]}, the read is of {list(names)[:4]}: give one buffer per site, "
            "by canonical name."
        )


def refuse_compiled(module: nn.Module) -> None:
    """Raise UnsupportedModel for modules whose compiled code would skip hooks without a word."""
    for name, part in module.named_modules():
        compiled = type(part).__name__ == "OptimizedModule" or getattr(part, "_compiled_call_impl", None) is not None
        if compiled:
            raise UnsupportedModel(
                f"{name or type(module).__name__} is compiled by torch.compile: hooks added after compilation do not "
                "run, so a read would miss and an edit would do nothing. Wrap the original module "
                "(compiled._orig_mod, or the module before .compile()) and compile again afterwards."
            )

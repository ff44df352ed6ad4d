"""What autograd keeps for the backward pass: which tensors are the same, which operation saved them, how many bytes.

    with SavedBytes(model) as meter:
        loss = f(model(x))
    meter.live                                   # bytes the graph of `loss` holds now, each storage once

Parameters and buffers of the model are no activations and are left out. Two saved tensors are the same when they lie in
the same storage at the same version. An address alone proves nothing, since it is given to the next tensor as soon as
the first is freed; so every note of a storage keeps a weak reference, which lets the memory go but not the identity.

Autograd asks the innermost pair of hooks only, so a meter does not see what a packing context inside it keeps.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable
from functools import partial
from threading import RLock
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

from interneuron.core.errors import InputError
from interneuron.model.model import Model

R = TypeVar("R")
H = TypeVar("H", bound="SavedHooks")
Key = tuple[Any, ...]


def module_of(model: Model | nn.Module) -> nn.Module:
    """The module of a Model, or the module itself."""
    module = model.module if isinstance(model, Model) else model
    if not isinstance(module, nn.Module):
        raise InputError(f"model: {type(model).__name__}, expected a Model or an nn.Module. Pass inn.load(...)")
    return module


class Excluded:
    """The storages of parameters and buffers of a module, and of further tensors."""

    def __init__(self, module: nn.Module | None = None, extra: Iterable[Tensor] = ()) -> None:
        own = [] if module is None else [*module.parameters(), *module.buffers()]
        tensors = [t for t in (*own, *extra) if is_plain(t)]
        self._known = {t.untyped_storage()._cdata: StorageWeakRef(t.untyped_storage()) for t in tensors}

    def __contains__(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._known


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is numbers in one storage (not sparse, not a wrapper around others)."""
    return type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided and not tensor.is_meta


def memory_order(tensor: Tensor) -> list[int] | None:
    """The axes from the slowest in memory to the fastest; None when the numbers do not fill one run of memory."""
    if tensor.is_contiguous():
        return list(range(tensor.ndim))
    order = sorted(range(tensor.ndim), key=lambda axis: (-tensor.stride(axis), axis))
    expected = 1
    for axis in reversed(order):
        if tensor.shape[axis] != 1 and tensor.stride(axis) != expected:
            return None
        expected *= tensor.shape[axis]
    return order


def run_of_memory(tensor: Tensor) -> Tensor:
    """The numbers in a row as they lie in memory, detached; a copy only where they do not fill one run of it."""
    tensor = tensor.detach()
    return tensor.contiguous().view(-1) if memory_order(tensor) is None else tensor.as_strided((tensor.numel(),), (1,))


def identity(tensor: Tensor) -> Key:
    """What two tensors with the same numbers in the same memory share, however they are viewed, while both live."""
    place = (tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.numel(), tensor.dtype, tensor._version)
    return place if memory_order(tensor) is not None else (*place, tuple(tensor.shape), tensor.stride())


class Seen:
    """One record per distinct tensor, for as long as the record lives; records are held weakly."""

    def __init__(self) -> None:
        self._rows: dict[Key, tuple[StorageWeakRef, weakref.ref[Any]]] = {}
        self._limit = 256

    def find(self, tensor: Tensor, make: Callable[[], R]) -> R:
        """The record of this tensor; where there is none, what `make` gives, which is remembered unless it is None."""
        key = identity(tensor)
        row = self._rows.get(key)
        known = None if row is None or row[0].expired() else row[1]()
        if known is not None:
            return known
        record = make()
        if record is not None:
            if len(self._rows) >= self._limit:
                alive = {k: row for k, row in self._rows.items() if row[1]() is not None and not row[0].expired()}
                self._rows, self._limit = alive, 2 * len(alive) + 256
            self._rows[key] = (StorageWeakRef(tensor.untyped_storage()), weakref.ref(record))
        return record


class Ledger:
    """Bytes that are held now (`live`), and the most that were at once (`peak`); what has one key counts once."""

    def __init__(self) -> None:
        self.live = self.peak = 0
        self._held: dict[Any, list[int]] = {}
        self._lock = RLock()  # a finaliser may run inside `hold`

    def hold(self, key: Any, nbytes: int) -> None:
        """Count `nbytes` unless the key is held already."""
        with self._lock:
            row = self._held.setdefault(key, [0, nbytes])
            row[0] += 1
            if row[0] == 1:
                self.live += nbytes
                self.peak = max(self.peak, self.live)

    def release(self, key: Any) -> None:
        """Take back one `hold`."""
        with self._lock:
            row = self._held[key]
            row[0] -= 1
            if not row[0]:
                self.live -= row[1]
                del self._held[key]


class Held:
    """A saved tensor kept as it is, counted in ledgers until autograd drops it."""

    def __init__(self, tensor: Tensor, *ledgers: Ledger) -> None:
        # detached: an operation that saves its own output would be held by it in turn, a circle nobody frees
        self.tensor, self._ledgers = tensor.detach(), ledgers
        storage = tensor.untyped_storage() if is_plain(tensor) else None
        self._key = id(self) if storage is None else storage._cdata
        for ledger in ledgers:
            ledger.hold(self._key, tensor.nbytes if storage is None else storage.nbytes())

    def __del__(self) -> None:
        for ledger in self._ledgers:
            ledger.release(self._key)


class Record(ABC):
    """What is kept for one distinct tensor that `packs` operations saved.

    They mostly run backward one after the other, so the numbers made for one of them stay (`real`) until the next
    record's are asked for, or the last of them has had its own.
    """

    def __init__(self) -> None:
        self.packs = self.uses = 0
        self.real: Tensor | None = None

    @abstractmethod
    def make(self) -> Tensor:
        """Its numbers, flat."""

    def done(self) -> None:
        """What is let go when all operations that saved it have had it."""
        return


class View:
    """One saved tensor: the record that holds its numbers, and how their memory is looked at."""

    __slots__ = ("record", "shape", "stride")

    def __init__(self, record: Any, tensor: Tensor) -> None:
        self.record, self.shape = record, tensor.shape
        self.stride = None if tensor.is_contiguous() or memory_order(tensor) is None else tensor.stride()

    def of(self, flat: Tensor) -> Tensor:
        """The tensor, from its numbers in a row as they lay in memory."""
        return flat.view(self.shape) if self.stride is None else flat.as_strided(self.shape, self.stride)


class SavedBytes(Ledger):
    """A context that measures what autograd saves for the backward pass of the operations inside it.

    model    whose parameters and buffers are left out
    exclude  further tensors to leave out, such as the weights of an adapter
    """

    def __init__(self, model: Model | nn.Module | None = None, exclude: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self._excluded = Excluded(None if model is None else module_of(model), exclude)
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack)

    def _pack(self, tensor: Tensor) -> Tensor | Held:
        return tensor if is_plain(tensor) and tensor in self._excluded else Held(tensor, self)

    def __enter__(self) -> SavedBytes:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)


def _unpack(packed: Tensor | Held) -> Tensor:
    return packed.tensor if isinstance(packed, Held) else packed


class SavedHooks(ABC):
    """A context in which autograd keeps what `pack` makes of a saved tensor, and `unpack` gives it back.

    Parameters and buffers of the model stay as they are. Inside, `place` tells where the running code stands and `seen`
    finds the record of a tensor that was saved before; both start anew with the context, which is open once at a time.
    Graphs made inside it can be run backward after it.

    paths  modules that `place` tells apart, besides the model itself; None: all
    ops    whether it tells operations; every call of a torch function costs microseconds more while it does
    """

    def __init__(self, model: Model | nn.Module, paths: Collection[str] | None = None, ops: bool = True) -> None:
        self._module, self._paths, self._ops = module_of(model), paths, ops
        self._open: Place | None = None
        self._latest: Callable[[], Record | None] = lambda: None

    @property
    def place(self) -> Place:
        """Where the running code stands."""
        assert self._open is not None
        return self._open

    def __enter__(self: H) -> H:
        if self._open is not None:
            name = type(self).__name__
            raise InputError(f"{name}: this context is open already. Leave it first, or make a second one")
        self._excluded, self.seen = Excluded(self._module), Seen()
        self._open = Place(self._module, self._paths, self._ops)
        self.start()
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)
        self._open.__enter__()
        self._hooks.__enter__()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        place, self._open = self.place, None
        try:
            self._hooks.__exit__(kind, error, trace)
        finally:
            place.__exit__(kind, error, trace)

    def _pack(self, tensor: Tensor) -> Any:
        return tensor if is_plain(tensor) and tensor in self._excluded else self.pack(tensor)

    def _unpack(self, packed: Any) -> Tensor:
        return _unpack(packed) if isinstance(packed, Tensor | Held) else self.unpack(packed)

    def numbers(self, record: Record) -> Tensor:
        """The numbers of a record for one of the operations that saved it, flat."""
        before, self._latest = self._latest(), weakref.ref(record)
        if before is not None and before is not record:
            before.real = None
        real = record.real  # read once: another device's thread may take it away
        if real is None:
            real = record.make()
        record.uses += 1
        last = record.uses % record.packs == 0
        record.real = None if last else real
        if last:
            record.done()
        return real

    def start(self) -> None:
        """What a method resets when its context opens."""
        return

    @abstractmethod
    def pack(self, tensor: Tensor) -> Any:
        """What autograd keeps in place of a saved tensor: the tensor, a Held, or something that `unpack` knows."""

    @abstractmethod
    def unpack(self, packed: Any) -> Tensor:
        """The tensor the backward pass gets for what is neither a tensor nor a Held."""


class Place:
    """Where the running code stands: `path` of the module whose forward runs, and `op`, the outermost torch function.

    A context; its hooks are gone after it. `passes` counts how often the module itself was entered. Modules that are
    not among `paths` do not change `path`, and without `ops` no function is told.
    """

    def __init__(self, module: nn.Module, paths: Collection[str] | None = None, ops: bool = True) -> None:
        self.passes = 0
        self._module, self._paths, self._stack = module, paths, [""]
        self._handles: list[Any] = []
        self._ops = _Operations() if ops else None

    @property
    def path(self) -> str:
        """Path of the innermost module that runs, "" outside and in the root."""
        return self._stack[-1]

    @property
    def op(self) -> str:
        """Name of the torch function that runs, "" outside."""
        return "" if self._ops is None else self._ops.name

    def __enter__(self) -> Place:
        for name, module in self._module.named_modules():
            if not name or self._paths is None or name in self._paths:
                self._handles.append(module.register_forward_pre_hook(partial(self._enter, name)))
                self._handles.append(module.register_forward_hook(self._leave, always_call=True))
        if self._ops is not None:
            self._ops.__enter__()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        if self._ops is not None:
            self._ops.__exit__(exc_type, exc_val, exc_tb)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._stack = [""]

    def _enter(self, name: str, *_: Any) -> None:
        if not name:
            self.passes += 1
            self._stack = [""]  # a pass that an error ended may have left names behind
        self._stack.append(name)

    def _leave(self, *_: Any) -> None:
        if len(self._stack) > 1:
            self._stack.pop()


class _Operations(TorchFunctionMode):
    """A context that knows the outermost torch function that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.name = ""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before, self.name = self.name, getattr(func, "__name__", "").strip("_") or str(func)
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.name = before

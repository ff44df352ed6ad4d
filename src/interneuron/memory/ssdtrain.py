"""SSDTrain: what the backward pass needs waits on disk, written during the forward pass and read back just in time.

Paper: Wu, Park, Zhang, Hidayetoglu, Mailthody, Huang, Lumetta, Hwu: SSDTrain: An Activation Offloading Framework to
    SSDs for Faster Large Language Model Training (2024), https://arxiv.org/abs/2408.10013.

Idea: a saved tensor is not touched between its layer's forward and backward pass. Threads write it meanwhile, so its
    memory is free for the layers above, and read it back shortly before it is due, in the reverse order of saving.

Equations:
    (1)  offload x  iff  bytes(x) >= min_bytes,  block(x) < n_blocks - keep_last,  bytes saved before x <= budget
    (2)  budget = 3 f / (1 / w + 2 f / n)      w bytes/s written, f seconds of the first forward pass, n its bytes: what
         is written before its turn comes in a backward pass of 2 f

Shapes: any; a tensor comes back with the shape and strides it was saved with.

Cost: one write and one read of each distinct saved tensor, beside the computation; disk space for one step.

Departures: tensors are read ahead in the reverse order of saving, `prefetch` of them, instead of by hooks on backward
    passes of modules, which would put nodes into the graph. Slots of one nameless file take the place of a file per
    tensor. The budget counts what is written in time, not what is written within the forward pass [inferred]. `dtype`
    keeps them in half precision, which halves the traffic at the price of rounded gradients (the paper's are in half
    precision to begin with). What follows the last block always stays in memory. Writes pass through the page cache.
    Inputs of the model are treated like activations. From other devices tensors are copied to the host before they are
    written, without overlap.

Use:
    model = inn.load("lm")
    with inn.memory.ActivationOffload(model, min_bytes=1 << 14) as off:
        loss = model.module(torch.arange(120).view(2, 60)).logits.square().mean()
    print(torch.autograd.grad(loss, list(model.module.parameters()))[0].norm(), off.stats())
"""

from __future__ import annotations

import math
import time
import weakref
from concurrent.futures import Future
from pathlib import Path
from threading import RLock

import torch
from torch import Tensor, nn

from interneuron.artifacts import Report, plots
from interneuron.core.cards import Card
from interneuron.core.errors import InputError, StoreError
from interneuron.model.model import Model
from interneuron.parts.saved_tensors import Held, Ledger, SavedHooks, View, is_plain, memory_order
from interneuron.parts.spill_file import SpillFile

CARD = Card(
    id=57,
    slug="ssdtrain",
    family="memory",
    kind="aid",
    exports=("ActivationOffload",),
    paper="SSDTrain: An Activation Offloading Framework to SSDs for Faster Large Language Model Training",
    authors="Wu, Kun and Park, Jeongmin Brian and Zhang, Xiaofan and Hidayetoğlu, Mert and Mailthody, Vikram Sharma "
    "and Huang, Sitao and Lumetta, Steven Sam and Hwu, Wen-mei",
    year=2024,
    link="https://arxiv.org/abs/2408.10013",
    purpose="Train in less memory: activations wait on disk between forward and backward pass, hidden behind the work",
    claim="47% lower activation peak on GPT, BERT and T5 with input and output fully hidden",
)


class ActivationOffload(SavedHooks):
    """A context around forward and backward passes in which large saved tensors wait on disk.

    Gradients are those of plain training, bit for bit, unless `dtype` is given. After the context, graphs made
    inside it can still be run backward.

    model      a Model or an nn.Module
    path       folder of the file (or a SpillFile); None: the system's folder for temporary files
    min_bytes  smaller tensors stay in memory
    dtype      None: as they are; torch.bfloat16 or torch.float16: wider floating tensors are kept in that type
    prefetch   tensors that are read ahead
    keep_last  blocks at the end whose tensors stay in memory, since they are needed at once
    adaptive   after the first pass, offload only as much as the disk can take before it is needed (eq. 2)
    overlap    False: write and read at once and wait, a baseline to compare with
    """

    def __init__(
        self,
        model: Model | nn.Module,
        path: str | Path | SpillFile | None = None,
        min_bytes: int = 1 << 20,
        dtype: torch.dtype | None = None,
        prefetch: int = 8,
        keep_last: int = 1,
        adaptive: bool = True,
        overlap: bool = True,
    ) -> None:
        if min_bytes < 1 or prefetch < 0 or keep_last < 0:
            raise InputError(
                f"ActivationOffload: min_bytes={min_bytes}, prefetch={prefetch}, keep_last={keep_last}; expected "
                "min_bytes >= 1 and the others >= 0"
            )
        if dtype not in (None, torch.bfloat16, torch.float16):
            raise InputError(f"ActivationOffload: dtype={dtype}, expected None, torch.bfloat16 or torch.float16")
        super().__init__(model)
        self.min_bytes, self.dtype, self.prefetch, self.keep_last = min_bytes, dtype, prefetch, keep_last
        self.adaptive, self.overlap = adaptive, overlap
        self._blocks = _blocks(self._module)
        self._block_of: dict[str, int] = {}
        self.resident, self.plain = Ledger(), Ledger()
        """Saved bytes in memory, and those plain training would have there; `live` and `peak` of each."""
        self.file = path if isinstance(path, SpillFile) else SpillFile(path)
        self.forwarded = self.dedup_saved = 0
        self.stall_s = 0.0
        self.error: OSError | None = None
        self.curve: list[tuple[int, int]] = []
        """Saved bytes (plain, in memory) at every tensor saved or used in the latest pass."""
        self._budget, self._sent, self._started, self._last = math.inf, 0, 0.0, 0.0

    def stats(self) -> dict[str, float]:
        """Peaks of saved bytes (`peak_resident`, `peak_plain`) and, over all passes, bytes `written` and `read_back`,
        `forwarded` from memory before they were written, spared by finding a tensor again (`dedup_saved`), and
        seconds of waiting for the disk (`stall_s`)."""
        return {
            "peak_resident": self.resident.peak,
            "peak_plain": self.plain.peak,
            "written": self.file.written,
            "read_back": self.file.read_back,
            "forwarded": self.forwarded,
            "dedup_saved": self.dedup_saved,
            "stall_s": self.stall_s,
        }

    def report(self) -> Report:
        """The numbers of `stats`, and how many saved bytes lay in memory over the course of the latest pass."""
        title = "Saved bytes in memory during a step"
        every = max(len(self.curve) // 200, 1)
        rows = self.curve[::every]
        series = {"plain": [plain / 1e6 for plain, _ in rows], "offloaded": [mine / 1e6 for _, mine in rows]}
        return Report(
            slug=CARD.slug,
            title=title,
            numbers=dict(self.stats()),
            plots={
                "memory": plots.lines(title, range(len(rows)), series, x_label="tensors saved and used", y_label="MB")
            },
        )

    # -- packing --------------------------------------------------------------------------------------------------

    def pack(self, tensor: Tensor) -> Held | View:
        """A tensor on its way to disk, or the tensor itself where it is small or needed at once."""
        if self.place.passes != self._passes:
            self.start()
        block = self._block()
        self._behind = self._behind or 0 <= block == len(self._blocks) - 1
        if self.error is not None:
            raise StoreError(
                f"ActivationOffload: writing to {self.file.path} failed ({self.error}). Free space there, or "
                "give another path"
            )
        if not is_plain(tensor) or tensor.nbytes < self.min_bytes or self._is_late(block):
            held = Held(tensor, self.resident, self.plain)
            self._sample()
            return held
        saved: _Saved | None = self.seen.find(tensor)
        if saved is None:
            saved = self._save(tensor)
            self.seen.add(tensor, saved)
        else:
            self.dedup_saved += saved.nbytes
        saved.packs += 1
        self._sample()
        return View(saved, tensor)

    def _save(self, tensor: Tensor) -> _Saved:
        flat = tensor.detach()
        flat = flat.contiguous().view(-1) if memory_order(flat) is None else flat.as_strided((flat.numel(),), (1,))
        half = self.dtype is not None and flat.is_floating_point() and flat.dtype.itemsize > self.dtype.itemsize
        data = flat.to("cpu", self.dtype if half else None)
        saved = _Saved(self, data, tensor, len(self.order))
        self.order.append(weakref.ref(saved))
        if self._sent <= self._budget:  # eq. 1
            self._sent += saved.nbytes
            saved.send()
        return saved

    def start(self) -> None:
        """A new pass starts: what is known of the last one decides the budget (eq. 2)."""
        now, file = time.perf_counter(), self.file
        if self.adaptive and self._sent and file.write_seconds > 0 and self._budget == math.inf:
            seconds = self._last - self._started
            self._budget = 3 * seconds / (file.write_seconds / file.written + 2 * seconds / self._sent)  # eq. 2
        self._passes = self.place.passes
        self.order: list[weakref.ref[_Saved]] = []
        self._sent, self._behind = 0, False
        self._started = self._last = now
        self.curve = []

    def _block(self) -> int:
        """Number of the block whose forward pass runs, -1 outside."""
        path = self.place.path
        if path not in self._block_of:
            inside = [i for i, name in enumerate(self._blocks) if f"{path}.".startswith(f"{name}.")]
            self._block_of[path] = inside[0] if inside else -1
        return self._block_of[path]

    def _is_late(self, block: int) -> bool:
        return self._behind if block < 0 else block >= len(self._blocks) - self.keep_last

    def _sample(self) -> None:
        self._last = time.perf_counter()
        self.curve.append((self.plain.live, self.resident.live))

    # -- unpacking ------------------------------------------------------------------------------------------------

    def unpack(self, packed: View) -> Tensor:
        """The tensor read back, and those saved before it called for."""
        saved: _Saved = packed.record
        if self.overlap:
            for row in saved.order[max(saved.index - self.prefetch, 0) : saved.index][::-1]:
                if (earlier := row()) is not None:
                    earlier.call()
        flat = saved.get()
        self.curve.append((self.plain.live, self.resident.live))
        return packed.of(flat)


class _Saved:
    """One distinct tensor: in memory, on its way to disk, on disk, or read back; `packs` operations saved it."""

    def __init__(self, owner: ActivationOffload, data: Tensor, tensor: Tensor, index: int) -> None:
        self.file, self.order, self.index = owner.file, owner.order, index
        self.data: Tensor | None = data
        self.dtype, self.device, self.kept_as, self.nbytes = tensor.dtype, tensor.device, data.dtype, data.nbytes
        self.packs = self.uses = 0
        self.done = False
        self._owner, self._version, self._changed = owner, data._version, False
        self._slot: int | None = None
        self._writing: Future[None] | None = None
        self._reading: Future[None] | None = None
        self._lock, self._key = RLock(), object()
        self._ledgers = owner.plain, owner.resident
        owner.plain.hold(self._key, tensor.nbytes)
        self._hold(data)

    def send(self) -> None:
        """Have it written; its memory is let go when that is done."""
        if self._owner.overlap:
            # weakly: what nobody needs any more is not written
            self._writing = self.file.writer.submit(_write, weakref.ref(self))
        else:
            start = time.perf_counter()
            self.write()
            self._owner.stall_s += time.perf_counter() - start

    def write(self) -> None:
        """Write it now, whichever thread this is."""
        data = self.data
        assert data is not None
        slot = self.file.take(self.nbytes)
        try:
            self.file.write(slot, _bytes(data))
        except OSError as error:
            self.file.give(slot, self.nbytes)
            self._owner.error = error  # told at the next tensor that is saved; this one stays in memory
            return
        with self._lock:
            self._slot, self._changed = slot, data._version != self._version
            self._drop()

    def call(self) -> None:
        """Have it read back, if it is on disk."""
        with self._lock:
            if self.data is None and self._reading is None and self._slot is not None and not self.done:
                self._reading = self.file.reader.submit(self.read)

    def read(self) -> None:
        """Read it now, whichever thread this is."""
        assert self._slot is not None
        data = torch.empty(self.nbytes // self.kept_as.itemsize, dtype=self.kept_as)
        self._hold(data)
        self.file.read(self._slot, _bytes(data))
        self.data = data

    def get(self) -> Tensor:
        """Its numbers, flat; the last of the operations that saved it lets them go again."""
        with self._lock:
            data = self.data
            if data is not None and self._reading is None:
                self._changed = self._changed or data._version != self._version
                if self._slot is None and self._writing is not None:
                    self._owner.forwarded += self.nbytes
                    self._writing.cancel()
        if self._changed:
            raise InputError(
                f"ActivationOffload: a saved tensor of {self.nbytes:,} bytes was changed in place while it was on its "
                "way to disk, expected it unchanged until the backward pass. Use the operation that makes a new tensor"
            )
        if data is None or self._reading is not None:
            data = self._wait()
        self.uses += 1
        out = data.to(self.device, self.dtype)
        if self.uses >= self.packs and self._slot is not None:
            self.uses, self.done = 0, True
            with self._lock:
                self._drop()
        return out

    def _wait(self) -> Tensor:
        start = time.perf_counter()
        if self._reading is None:
            self.read()
        else:
            self._reading.result()
            self._reading = None
        self._owner.stall_s += time.perf_counter() - start
        assert self.data is not None
        self._version = self.data._version
        return self.data

    def _hold(self, data: Tensor) -> None:
        self._ledgers[1].hold(data.untyped_storage()._cdata, data.untyped_storage().nbytes())

    def _drop(self) -> None:
        if self.data is not None:
            self._ledgers[1].release(self.data.untyped_storage()._cdata)
            self.data = None

    def __del__(self) -> None:
        self._drop()
        self._ledgers[0].release(self._key)
        if self._slot is not None:
            self.file.give(self._slot, self.nbytes)


def _write(row: weakref.ref[_Saved]) -> None:
    saved = row()
    if saved is not None:
        saved.write()


def _bytes(data: Tensor) -> memoryview:
    return data.view(torch.uint8).numpy().data


def _blocks(module: nn.Module) -> list[str]:
    """Paths of the blocks: the members of the longest list of modules; none without one."""
    lists = [(name, m) for name, m in module.named_modules() if isinstance(m, nn.ModuleList | nn.Sequential)]
    if not lists:
        return []
    name, longest = max(lists, key=lambda row: len(row[1]))
    return [f"{name}.{child}" if name else child for child, _ in longest.named_children()]

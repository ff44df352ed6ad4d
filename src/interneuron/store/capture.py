"""How the tensors of one forward pass become rows: which axes count rows, which dtype they get, where they go."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interneuron.core.errors import ShapeError
from interneuron.model.sites import guess_axes
from interneuron.store.layout import KEYS, Column
from interneuron.store.rows import TORCH, as_tensor, check_overflow, encode_int8
from interneuron.store.sources import Batch
from interneuron.store.writer import StoreWriter

_NAMES = {dtype: name for name, dtype in TORCH.items()}


@dataclass(frozen=True)
class Shot:
    """How one site's tensor becomes rows.

    `order` brings its axes to (batch, pos, rest) or (batch, rest); `back` undoes that and is None when there is nothing
    to undo. `is_cast` says that the column has another dtype than what flows.
    """

    column: Column
    order: tuple[int, ...]
    back: tuple[int, ...] | None
    is_cast: bool


@dataclass
class Capture:
    """All that one forward pass needs: the sites, and the rows per piece (None: one per token).

    `seen` holds what the first batch gave when its shapes were looked at, until its rows are written.
    """

    model: Any
    shots: list[Shot]
    per_position: bool
    length: int | None
    seen: dict[str, Tensor] | None
    scratch: dict[str, Tensor] = field(default_factory=dict)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row over all sites."""
        return sum(shot.column.row_bytes for shot in self.shots)

    def rows(self, batch: Batch) -> int:
        """Rows that a batch makes."""
        return len(batch.pieces) * (self.length or batch.shape[1])

    def write(self, batch: Batch, out: StoreWriter) -> None:
        """One forward pass, its tensors copied once: into the writer's own buffers."""
        rows, sequences = self.rows(batch), len(batch.pieces)
        lead = (sequences, rows // sequences) if self.per_position else (sequences,)
        places = out.reserve(rows)
        buffers = {shot.column.name: self._buffer(shot, places[shot.column.name], lead) for shot in self.shots}
        if self.seen is None:
            self.model.run(batch.values.to(self.model.device), read=list(buffers), to=buffers)
        else:
            for name, buffer in buffers.items():
                buffer.copy_(self.seen[name])
            self.seen = None
        for shot in self.shots:
            column = shot.column
            if column.dtype == "int8":
                encode_int8(self.scratch[column.name][:rows].reshape(rows, -1), places[column.name])
            elif column.dtype == "float16" and shot.is_cast:
                check_overflow(places[column.name], column.name)
        if KEYS in places:
            fill_keys(batch, places[KEYS], rows // sequences)
        out.push(rows, (sequences, rows // sequences))

    def _buffer(self, shot: Shot, place: np.ndarray, lead: tuple[int, ...]) -> Tensor:
        """The place of a site's rows, seen in the shape in which its tensor flows."""
        column = shot.column
        flat = self._scratch(column, len(place)) if column.dtype == "int8" else as_tensor(place, column)
        seen = flat.view((*lead, *column.shape) if len(shot.order) > len(lead) else lead)
        return seen if shot.back is None else seen.permute(shot.back)

    def _scratch(self, column: Column, rows: int) -> Tensor:
        held = self.scratch.get(column.name)
        if held is None or len(held) < rows:
            held = self.scratch[column.name] = torch.empty(rows, *column.shape)
        return held[:rows]


def look(model: Any, names: list[str], batch: Batch, dtype: str | torch.dtype | None) -> Capture:
    """Run the first batch to see the shape and dtype of every site."""
    with torch.no_grad():
        # Copies, so that nothing overwrites them: they become the first rows.
        acts = model.run(batch.values.to(model.device), read=names, to=model.device).acts
    values = {name: acts[name] for name in names}
    for name in names:
        acts.box(name).clear()  # the only hold on the copies is then `Capture.seen`
    axes = {name: _axes(model, name, values[name]) for name in names}
    lengths = {name: values[name].shape[a.index("pos")] if "pos" in a else 0 for name, a in axes.items()}
    per_position = len(set(lengths.values())) == 1 and 0 not in lengths.values()
    if batch.is_tokens:
        odd = [name for name in names if lengths[name] != batch.shape[1]]
        if odd:
            raise ShapeError(
                f"{odd[0]}: axes {axes[odd[0]]} of shape {tuple(values[odd[0]].shape)} have no row per token; expected "
                f"{batch.shape[1]} positions. Record such sites into a store of their own, from images, or not at all."
            )
    shots = [_shot(name, values[name], axes[name], per_position, dtype) for name in names]
    length = None if batch.is_tokens else lengths[names[0]] if per_position else 1
    return Capture(model, shots, per_position, length, values)


def _axes(model: Any, name: str, value: Tensor) -> tuple[str, ...]:
    """The site's axes, with the one that has a row per token called `pos` (in an attention map: the query)."""
    axes = model.site(name).axes
    axes = axes if len(axes) == value.ndim else guess_axes(value.ndim)
    if axes[0] != "batch":
        raise ShapeError(
            f"{name}: axes {axes}; expected the batch first, so that rows have an owner. Choose another site."
        )
    row = next((a for a in ("pos", "query", "key") if a in axes), None)
    return tuple("pos" if a == row else a for a in axes)


def _shot(name: str, value: Tensor, axes: tuple[str, ...], per_position: bool, dtype: str | torch.dtype | None) -> Shot:
    order = list(range(value.ndim))
    if per_position:
        order.insert(1, order.pop(axes.index("pos")))
    shape = tuple(value.shape[i] for i in order[2 if per_position else 1 :]) or (1,)
    own = _NAMES.get(value.dtype, "float32")
    wanted = _NAMES.get(dtype, str(dtype)) if isinstance(dtype, torch.dtype) else dtype
    wanted = own if wanted is None or not value.is_floating_point() else wanted
    back = None if order == sorted(order) else tuple(order.index(i) for i in range(len(order)))
    return Shot(Column(name, wanted, shape), tuple(order), back, wanted != own)


def fill_keys(batch: Batch, keys: np.ndarray, length: int) -> None:
    """Token, position and document of the rows of a batch, `length` for each piece."""
    grid = keys.reshape(len(batch.pieces), length)
    grid["token"] = batch.stacked if batch.is_tokens else -1
    grid["pos"] = np.array([p.start for p in batch.pieces])[:, None] + np.arange(length)
    grid["doc"] = np.array([p.doc for p in batch.pieces])[:, None]

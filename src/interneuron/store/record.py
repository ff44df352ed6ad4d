"""`record`: run a model over data and keep what flows through its sites.

What is promised. A row is, bit for bit, what a plain forward pass of the same batch gives at that site (after the cast
to the column's dtype). Batches hold pieces of one length and no padding. PyTorch's kernels may differ in the last bit
between batch shapes, so for rows that must equal passes of single documents use `batch_size=1`; `store.replay(row)`
gives the exact batch of any row.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interneuron.core.errors import InputError, ShapeError, StoreError
from interneuron.core.progress import Progress
from interneuron.model.sites import guess_axes
from interneuron.store.layout import KEYS, Column
from interneuron.store.manifest import MANIFEST
from interneuron.store.reader import Store
from interneuron.store.rows import TORCH, as_tensor, check_overflow, encode_int8
from interneuron.store.sources import Batch, Source
from interneuron.store.writer import BLOCK_BYTES, PART_BYTES, StoreWriter

_NAMES = {dtype: name for name, dtype in TORCH.items()}


def record(
    model: Any,
    data: Any,
    sites: str | Sequence[str],
    path: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype | None = None,
    batch_size: int = 8,
    seq_len: int | None = None,
    resume: bool = False,
    writer: tuple[int, int] | None = None,
    part_bytes: int = PART_BYTES,
    block_bytes: int = BLOCK_BYTES,
    threads: int = 2,
    progress: bool = True,
) -> Store:
    """Run `model` over `data` and write the rows of `sites` to the store at `path`.

    A store that exists is left alone unless `resume` is set (the capture goes on where it stopped and ends byte for
    byte as if it had never stopped) or the sites are new (they are added over the same rows; give the same data).
    Ctrl-C ends the capture after the last committed part.

    Args:
        model: A `Model` in eval mode.
        data: See `sources.Source`: text file, image folder, list of texts, dataset, token tensor, image tensor.
        sites: Names or globs, `["layers.*.resid_post"]`.
        path: Folder of the store.
        dtype: `float32`, `float16`, `bfloat16` or `int8` (with a scale per row); default: as it flows.
        batch_size: Pieces in one forward pass.
        seq_len: Longest piece in tokens; default: what the model can take, at most 1024.
        resume: Go on with a store that is there.
        writer: `(k, n)`: be writer k of n, which share the store and split the documents among them.
        part_bytes: Rows are committed whenever this much has gathered over all sites.
        block_bytes: Memory for rows on their way to disk.
        threads: 0 writes in the caller's thread.
        progress: Show rows per second, gigabytes and time left, on a terminal.

    Returns:
        The finished store, opened.

    Raises:
        InputError: data or model cannot be recorded.
        FingerprintMismatch: the store at `path` holds rows of another model, tokenizer, data or options.
        StoreError: a writer is active, a store is there already, or the disk refuses.
    """
    if model.module.training:
        raise InputError(
            "the model is in training mode, where dropout makes rows random; expected eval mode. "
            "Call model.module.eval()."
        )
    seq_len = seq_len or _longest(model)
    source = Source(data, model, seq_len)
    names = [place.name for place in model.resolve([sites] if isinstance(sites, str) else list(sites))]
    shard = writer or (0, 1)
    identity = {
        "model": model.fingerprint,
        "data": source.identity(),
        "batch_size": batch_size,
        "seq_len": seq_len,
        "writers": shard[1],
    }
    folder = os.fspath(path)
    names, adding = _missing(folder, names, resume or writer is not None)
    plan = source.batches(batch_size, shard)
    first = next(plan, None)
    if first is None:
        raise InputError("the data has no rows; expected at least one token or image. Give other data.")
    capture = _look(model, names, first, dtype)
    with StoreWriter(
        folder,
        [shot.column for shot in capture.shots],
        identity,
        resume=resume or adding,
        writer=f"w{shard[0]}" if writer else None,
        part_bytes=part_bytes,
        block_bytes=block_bytes,
        threads=threads,
    ) as out:
        _run(capture, source, first, plan, out, progress)
    return Store.open(folder)


def _longest(model: Any) -> int:
    config = getattr(model.module, "config", None)
    for name in ("max_position_embeddings", "n_positions"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return min(value, 1024)
    return 1024


def _missing(folder: str, names: list[str], resume: bool) -> tuple[list[str], bool]:
    """The sites still to be written, and whether they are to be added to rows that exist."""
    if not os.path.exists(os.path.join(folder, MANIFEST)):
        return names, False
    store = Store.open(folder)
    numbers = store._manifest.numbers
    if any(name in numbers for name in names) and not resume:
        raise StoreError(
            f"{folder}: a store with {', '.join(n for n in names if n in numbers)} is there already; expected an empty "
            f"place or new sites. Pass resume=True to go on with it, or choose another folder."
        )
    whole = set(store.sites) if store._manifest.parts and store._manifest.sealed else set()
    left = [name for name in names if name not in whole]
    return (left, True) if left and whole else (names, False)


@dataclass(frozen=True)
class Shot:
    """How one site's tensor becomes rows: `order` brings its axes to (batch, pos, rest) or (batch, rest)."""

    column: Column
    order: tuple[int, ...]
    is_cast: bool


@dataclass(frozen=True)
class Capture:
    """All that one forward pass needs: sites, and rows per piece (None: one per token)."""

    model: Any
    shots: list[Shot]
    per_position: bool
    length: int | None

    def rows(self, batch: Batch) -> int:
        """Rows that a batch makes."""
        return len(batch.pieces) * (self.length or batch.shape[1])


def _look(model: Any, names: list[str], batch: Batch, dtype: str | torch.dtype | None) -> Capture:
    """Run one batch to see the shape and dtype of every site."""
    with torch.no_grad():
        acts = model.run(batch.values.to(model.device), read=names).acts
    values = {name: acts[name] for name in names}
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
    return Capture(model, shots, per_position, length)


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
    return Shot(Column(name, wanted, shape), tuple(order), wanted != own)


def _run(
    capture: Capture, source: Source, first: Batch, plan: Iterator[Batch], out: StoreWriter, progress: bool
) -> None:
    scratch: dict[str, Tensor] = {}
    row_bytes = sum(shot.column.row_bytes for shot in capture.shots)
    with torch.no_grad(), Progress(source.total(), "recording", "rows", None if progress else False) as bar:
        for batch in itertools.chain([first], plan):
            rows = capture.rows(batch)
            if not out.has(batch.digest()):
                _capture(capture, batch, out, rows, scratch)
            bar.advance(rows, GB=bar.done * row_bytes / 1e9, safe=out.acknowledged)


def _capture(capture: Capture, batch: Batch, out: StoreWriter, rows: int, scratch: dict[str, Tensor]) -> None:
    """One forward pass, its tensors copied once: into the writer's own buffers."""
    sequences = len(batch.pieces)
    lead = (sequences, rows // sequences) if capture.per_position else (sequences,)
    places = out.reserve(rows)
    buffers: dict[str, Tensor] = {}
    for shot in capture.shots:
        column = shot.column
        flat = _scratch(scratch, column, rows) if column.dtype == "int8" else as_tensor(places[column.name], column)
        shape = (*lead, *column.shape) if len(shot.order) > len(lead) else lead
        buffers[column.name] = flat.view(shape).permute([shot.order.index(i) for i in range(len(shot.order))])
    capture.model.run(batch.values.to(capture.model.device), read=list(buffers), to=buffers)
    for shot in capture.shots:
        column = shot.column
        if column.dtype == "int8":
            encode_int8(scratch[column.name][:rows].reshape(rows, -1), places[column.name])
        elif column.dtype == "float16" and shot.is_cast:
            check_overflow(places[column.name], column.name)
    if KEYS in places:
        _fill_keys(batch, places[KEYS], rows // sequences)
    out.push(rows, (sequences, rows // sequences))


def _scratch(scratch: dict[str, Tensor], column: Column, rows: int) -> Tensor:
    if column.name not in scratch or len(scratch[column.name]) < rows:
        scratch[column.name] = torch.empty(rows, *column.shape)
    return scratch[column.name][:rows]


def _fill_keys(batch: Batch, keys: np.ndarray, length: int) -> None:
    grid = keys.reshape(len(batch.pieces), length)
    for row, piece in zip(grid, batch.pieces, strict=True):
        row["token"] = piece.values if batch.is_tokens else -1
        row["pos"] = np.arange(piece.start, piece.start + length)
        row["doc"] = piece.doc

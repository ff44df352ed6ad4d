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
from typing import Any

import torch

from interneuron.core.errors import InputError, StoreError
from interneuron.core.progress import Progress
from interneuron.store.capture import Capture, look
from interneuron.store.manifest import MANIFEST
from interneuron.store.reader import Store
from interneuron.store.sources import Batch, Source
from interneuron.store.writer import BLOCK_BYTES, PART_BYTES, StoreWriter


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
    threads: int = 4,
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
        threads: How many writes may be under way beside the model; 0 writes in the caller's thread.
        progress: Show rows per second, gigabytes and time left, on a terminal.

    Returns:
        The finished store, opened.

    Raises:
        InputError: data or model cannot be recorded.
        FingerprintMismatch: the store at `path` holds rows of another model, tokenizer, data or options.
        StoreError: a writer is active, a store is there already, or the disk refuses.
    """
    _check_eval(model)
    source = Source(data, model, seq_len or _longest(model))
    names = [place.name for place in model.resolve([sites] if isinstance(sites, str) else list(sites))]
    names, adding = _missing(os.fspath(path), names, resume or writer is not None)
    plan = source.batches(batch_size, writer or (0, 1))
    first = next(plan, None)
    if first is None:
        raise InputError("the data has no rows; expected at least one token or image. Give other data.")
    capture = look(model, names, first, dtype)
    with StoreWriter(
        path,
        [shot.column for shot in capture.shots],
        _identity(model, source, batch_size, writer),
        resume=resume or adding,
        writer=f"w{writer[0]}" if writer else None,
        part_bytes=part_bytes,
        block_bytes=block_bytes,
        threads=threads,
    ) as out:
        _run(capture, source, first, plan, out, progress)
    return Store.open(path)


def _check_eval(model: Any) -> None:
    if model.module.training:
        raise InputError(
            "the model is in training mode, where dropout makes rows random; expected eval mode. "
            "Call model.module.eval()."
        )


def _identity(model: Any, source: Source, batch_size: int, writer: tuple[int, int] | None) -> dict[str, Any]:
    """What the rows depend on: two captures may share a store only if all of it is equal."""
    return {
        "model": model.fingerprint,
        "data": source.identity(),
        "batch_size": batch_size,
        "seq_len": source.seq_len,
        "writers": writer[1] if writer else 1,
    }


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


def _run(
    capture: Capture, source: Source, first: Batch, plan: Iterator[Batch], out: StoreWriter, progress: bool
) -> None:
    row_bytes = capture.row_bytes
    with torch.no_grad(), Progress(source.total(), "recording", "rows", None if progress else False) as bar:
        for batch in itertools.chain([first], plan):
            if out.has(batch.digest()):
                capture.seen = None
            else:
                capture.write(batch, out)
            bar.advance(capture.rows(batch), GB=bar.done * row_bytes / 1e9, safe=out.acknowledged)
            del batch  # before the next one is made, so that it can lie in the same place

"""Lance, zarr and safetensors shards at the store's own work: durable writing, reading in order, random batches.

Each is used as its documentation shows for fixed-width half-precision rows, without compression, and made durable at
the end by an fsync of every file, which none of them does by itself. `installed()` has those that can be imported.
"""

from __future__ import annotations

import glob
import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

Blocks = list[np.ndarray]
Read = Callable[[], Iterator[np.ndarray]]


@dataclass(frozen=True)
class Peer:
    """A format: `write(path, blocks)`, and `reader(path, block)`: all rows in order by blocks, and rows by index."""

    package: str
    write: Callable[[str, Blocks], None]
    reader: Callable[[str, int], tuple[Read, Callable[[np.ndarray], Any]]]


def sync(path: str) -> None:
    """Make every file of a folder durable."""
    for name in glob.glob(path + "/**", recursive=True):
        if os.path.isfile(name):
            handle = os.open(name, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)


def write_safetensors(path: str, data: Blocks) -> None:
    """Shards of 16 blocks."""
    from safetensors.numpy import save_file

    os.makedirs(path)
    for i in range(0, len(data), 16):
        save_file({"x": np.concatenate(data[i : i + 16])}, f"{path}/{i:05d}.safetensors")
    sync(path)


def read_safetensors(path: str, block: int) -> tuple[Read, Callable[[np.ndarray], Any]]:
    """Slices; rows by index from memory maps of our own, shard by shard, since the format has no gather."""
    from safetensors import safe_open

    names = sorted(glob.glob(path + "/*.safetensors"))
    slices = [safe_open(name, "np").get_slice("x") for name in names]
    maps = []
    for name, part in zip(names, slices, strict=True):
        with open(name, "rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
        maps.append(np.memmap(name, np.float16, "r", start, tuple(part.get_shape())))
    starts = np.cumsum([0, *(len(m) for m in maps)])

    def in_order() -> Iterator[np.ndarray]:
        return (part[at : at + block] for part in slices for at in range(0, part.get_shape()[0], block))

    def rows(index: np.ndarray) -> Any:
        which = np.searchsorted(starts, index, "right") - 1
        return np.concatenate([maps[i][index[which == i] - starts[i]] for i in np.unique(which).tolist()])

    return in_order, rows


def write_zarr(path: str, data: Blocks) -> None:
    """One chunk a block."""
    import zarr

    block, width = data[0].shape
    array = zarr.create_array(
        path, shape=(len(data) * block, width), chunks=(block, width), dtype="float16", compressors=None
    )
    for i, rows in enumerate(data):
        array[i * block : (i + 1) * block] = rows
    sync(path)


def read_zarr(path: str, block: int) -> tuple[Read, Callable[[np.ndarray], Any]]:
    """Slices, and orthogonal selection."""
    import zarr

    array: Any = zarr.open_array(path, mode="r")
    return lambda: (array[at : at + block] for at in range(0, array.shape[0], block)), lambda p: array.oindex[p]


def write_lance(path: str, data: Blocks) -> None:
    """A column of fixed-size lists."""
    import lance
    import pyarrow as pa

    width = data[0].shape[1]
    schema = pa.schema([("x", pa.list_(pa.float16(), width))])

    def batches() -> Iterator[Any]:
        for block in data:
            flat = pa.Array.from_buffers(pa.float16(), block.size, [None, pa.py_buffer(block)])
            yield pa.record_batch([pa.FixedSizeListArray.from_arrays(flat, width)], names=["x"])

    lance.write_dataset(pa.RecordBatchReader.from_batches(schema, batches()), path, schema=schema)
    sync(path)


def read_lance(path: str, block: int) -> tuple[Read, Callable[[np.ndarray], Any]]:
    """Batches, and `take`."""
    import lance

    dataset = lance.dataset(path)

    def in_order() -> Iterator[np.ndarray]:
        for batch in dataset.to_batches(batch_size=block):
            yield batch.column(0).flatten().to_numpy()

    return in_order, dataset.take


PEERS = {
    "Lance": Peer("lance", write_lance, read_lance),
    "zarr": Peer("zarr", write_zarr, read_zarr),
    "safetensors shards": Peer("safetensors", write_safetensors, read_safetensors),
}


def installed() -> dict[str, Peer]:
    """The peers that are there."""
    return {name: peer for name, peer in PEERS.items() if importlib.util.find_spec(peer.package)}

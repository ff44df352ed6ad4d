"""The store against the disk's own rate, plain files, and Lance, zarr and safetensors where they are installed.

    python benchmarks/store.py [--rows 131072] [--rounds 5] [--dir FOLDER] [--model FOLDER]

All ratios come from one run in which the cases take turns. Rows are 768 fp16 numbers, spread like real activations.
Writing ends with everything durable. Bars: write >= 0.9x of raw O_DIRECT and >= 1.0x of buffered write + fsync, the
latter also where O_DIRECT is not available, <= 0.6 CPU s/GB; sequential read >= 0.9x of raw, checked or not; random
batches of 4096 >= 0.9x of a memmap gather; open <= 5 ms for 100 shards; `record` <= 1.05x the CPU of plain forward
passes and a raw write (with --model).
"""

from __future__ import annotations

import argparse
import contextlib
import glob
import mmap
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from timing import table

from interneuron.store import Column, Store, StoreWriter
from interneuron.store.system import System

WIDTH, BLOCK = 768, 4096
COLUMN = Column("x", "float16", (WIDTH,))


def blocks(rows: int) -> list[np.ndarray]:
    """Blocks of 4096 rows: a scale and an offset for each dimension, three of them huge."""
    rng = np.random.default_rng(0)
    scale = rng.lognormal(0, 1, WIDTH)
    scale[:3] *= 50
    base = rng.standard_normal((8 * BLOCK, WIDTH)) * scale + rng.normal(0, 1, WIDTH) * scale
    made = base.astype(np.float16).reshape(8, BLOCK, WIDTH)
    return [made[i % 8] for i in range(rows // BLOCK)]


# --- writers: (path, blocks) -> durable ---


def write_direct(path: str, data: list[np.ndarray]) -> None:
    """The disk's own rate: one copy into an aligned buffer, O_DIRECT, fsync."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | getattr(os, "O_DIRECT", 0), 0o644)
    buffer = mmap.mmap(-1, BLOCK * WIDTH * 2)
    view = np.frombuffer(buffer, np.uint8)
    for block in data:
        view[:] = block.reshape(-1).view(np.uint8)  # as bytes: NumPy copies half-precision numbers one by one
        os.write(handle, buffer)
    os.fsync(handle)
    os.close(handle)


def write_buffered(path: str, data: list[np.ndarray]) -> None:
    with open(path, "wb", buffering=0) as file:
        for block in data:
            file.write(block.data)
        os.fsync(file.fileno())


def write_store(path: str, data: list[np.ndarray], direct: bool = True) -> None:
    with StoreWriter(path, (COLUMN,), {}, system=System(direct)) as out:
        for i, block in enumerate(data):
            out.has(i.to_bytes(8, "little"))
            places = out.reserve(BLOCK)
            places["x"].view(np.uint8)[:] = block.view(np.uint8)
            places["keys"]["token"] = i
            out.push(BLOCK)


def write_store_buffered(path: str, data: list[np.ndarray]) -> None:
    """What a file system without O_DIRECT gets."""
    write_store(path, data, direct=False)


def write_safetensors(path: str, data: list[np.ndarray]) -> None:
    from safetensors.numpy import save_file

    os.makedirs(path)
    for i in range(0, len(data), 16):
        save_file({"x": np.concatenate(data[i : i + 16])}, f"{path}/{i:05d}.safetensors")
    sync(path)


def write_zarr(path: str, data: list[np.ndarray]) -> None:
    import zarr

    array = zarr.create_array(
        path, shape=(len(data) * BLOCK, WIDTH), chunks=(BLOCK, WIDTH), dtype="float16", compressors=None
    )
    for i, block in enumerate(data):
        array[i * BLOCK : (i + 1) * BLOCK] = block
    sync(path)


def write_lance(path: str, data: list[np.ndarray]) -> None:
    import lance
    import pyarrow as pa

    schema = pa.schema([("x", pa.list_(pa.float16(), WIDTH))])

    def batches() -> Iterator[Any]:
        for block in data:
            flat = pa.Array.from_buffers(pa.float16(), block.size, [None, pa.py_buffer(block)])
            yield pa.record_batch([pa.FixedSizeListArray.from_arrays(flat, WIDTH)], names=["x"])

    lance.write_dataset(pa.RecordBatchReader.from_batches(schema, batches()), path, schema=schema)
    sync(path)


def sync(path: str) -> None:
    """Make every file of a folder durable, for formats that do not."""
    for name in glob.glob(path + "/**", recursive=True):
        if os.path.isfile(name):
            handle = os.open(name, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)


WRITERS: dict[str, tuple[Callable[[str, list[np.ndarray]], None], str | None]] = {
    "raw O_DIRECT": (write_direct, None),
    "raw buffered + fsync": (write_buffered, None),
    "interneuron store": (write_store, None),
    "interneuron store, no O_DIRECT": (write_store_buffered, None),
    "safetensors shards": (write_safetensors, "safetensors"),
    "zarr, no compression": (write_zarr, "zarr"),
    "Lance": (write_lance, "lance"),
}


def installed(name: str | None) -> bool:
    """Is a package there?"""
    import importlib.util

    return name is None or importlib.util.find_spec(name) is not None


def remove(path: str) -> None:
    """A file or a folder, if there."""
    if os.path.isdir(path):
        shutil.rmtree(path)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


def writing(folder: str, rows: int, rounds: int) -> dict[str, bool]:
    """All writers in turn."""
    data = blocks(rows)
    gigabytes = rows * WIDTH * 2 / 1e9
    cases = {name: write for name, (write, package) in WRITERS.items() if installed(package)}
    walls: dict[str, list[float]] = {name: [] for name in cases}
    cpus: dict[str, list[float]] = {name: [] for name in cases}
    order = list(cases.items())
    for i in range(rounds):
        for name, write in order[i % len(order) :] + order[: i % len(order)]:  # nobody always follows the same one
            path = os.path.join(folder, "".join(c if c.isalnum() else "_" for c in name))
            remove(path)
            wall, cpu = timed(lambda w=write, p=path: w(p, data))
            walls[name].append(wall)
            cpus[name].append(cpu)
    ours = walls["interneuron store"]
    direct = statistics.median(a / b for a, b in zip(walls["raw O_DIRECT"], ours, strict=True))
    plain = walls["raw buffered + fsync"]
    buffered = statistics.median(a / b for a, b in zip(plain, ours, strict=True))
    fallback = statistics.median(a / b for a, b in zip(plain, walls["interneuron store, no O_DIRECT"], strict=True))
    cpu_per_gb = statistics.median(cpus["interneuron store"]) / gigabytes

    def rate(seconds: list[float]) -> float:
        return gigabytes * 1e3 / statistics.median(seconds)

    table(
        f"writing {gigabytes:.2f} GB, durable (medians of {rounds})",
        ["writer", "MB/s", "slowest-fastest", "CPU s/GB"],
        [
            [name, rate(w), f"{rate([max(w)]):.0f}-{rate([min(w)]):.0f}", statistics.median(cpus[name]) / gigabytes]
            for name, w in walls.items()
        ],
    )  # fmt: skip
    return {
        f"write {direct:.2f}x of raw O_DIRECT (bar 0.9)": direct >= 0.9,
        f"write {buffered:.2f}x of buffered + fsync (bar 1.0)": buffered >= 1.0,
        f"write without O_DIRECT {fallback:.2f}x of buffered + fsync (bar 1.0)": fallback >= 1.0,
        f"write {cpu_per_gb:.2f} CPU s/GB (bar 0.6)": cpu_per_gb <= 0.6,
    }


def reading(folder: str, rows: int, rounds: int) -> dict[str, bool]:
    """Sequential and random reading of warm files, beside plain files."""
    raw, path = os.path.join(folder, "raw_buffered___fsync"), os.path.join(folder, "interneuron_store")
    gigabytes = rows * WIDTH * 2 / 1e9
    memory = np.memmap(raw, np.float16, "r").reshape(-1, WIDTH)
    store = Store.open(path)
    buffer = np.empty((BLOCK, WIDTH), np.float16)
    rng = np.random.default_rng(1)
    picks = [np.sort(rng.integers(0, rows, BLOCK)) for _ in range(8)]
    loose = [rng.integers(0, rows, BLOCK) for _ in range(8)]

    def sequential_raw() -> None:
        with open(raw, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass

    def sequential(store: Store) -> None:
        for _ in store.batches("x", BLOCK, shuffle=False):
            pass

    cases: dict[str, Callable[[], object]] = {
        "raw readinto": sequential_raw,
        "store, first touch": lambda: sequential(Store.open(path)),
        "store, checked before": lambda: sequential(store),
        "memmap gather": lambda: [memory[p] for p in picks],
        "store.take, batch order as drawn by batches()": lambda: [store["x"].take(p) for p in picks],
        "memmap gather, unsorted": lambda: [memory[p] for p in loose],
        "store.take, unsorted": lambda: [store["x"].take(p) for p in loose],
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for case in cases.values():
        case()
    for _ in range(rounds * 2):
        for name, case in cases.items():
            times[name].append(timed(case))

    def ratio(base: str, name: str, which: int) -> float:
        return statistics.median(a[which] / b[which] for a, b in zip(times[base], times[name], strict=True))

    sizes = [gigabytes] * 3 + [8 * BLOCK * WIDTH * 2 / 1e9] * 4
    table(
        f"reading warm files (medians of {rounds * 2})",
        ["reader", "GB/s", "CPU s/GB"],
        [
            [name, g / statistics.median(t[0] for t in times[name]), statistics.median(t[1] for t in times[name]) / g]
            for (name, g) in zip(cases, sizes, strict=True)
        ],
    )
    bars = {}
    for name, base, shown in (
        ("store, checked before", "raw readinto", "sequential read"),
        ("store, first touch", "raw readinto", "sequential read with checking"),
        ("store.take, batch order as drawn by batches()", "memmap gather", "random batches"),
        ("store.take, unsorted", "memmap gather, unsorted", "random rows in any order"),
    ):
        wall, cpu = ratio(base, name, 0), ratio(base, name, 1)
        bars[f"{shown} {wall:.2f}x wall, {cpu:.2f}x CPU (bar 0.9)"] = max(wall, cpu) >= 0.9
    return bars


def opening(folder: str) -> dict[str, bool]:
    """Open a store of 100 shards (50 parts, rows and row table)."""
    path = os.path.join(folder, "many")
    with StoreWriter(path, (Column("x", "float32", (64,)),), {}, part_bytes=16 * 272) as out:
        for i in range(50):
            out.append({"x": torch.full((16, 64), float(i))})
    times = [timed(lambda: Store.open(path))[0] for _ in range(20)]
    best = statistics.median(times) * 1e3
    return {f"open {best:.2f} ms for 100 shards (bar 5)": best <= 5}


def recording(folder: str, model_folder: str, rounds: int) -> dict[str, bool]:
    """CPU of a capture against plain forward passes plus a raw write of the same bytes."""
    from interneuron.model.load import load_model
    from interneuron.store import record

    model = load_model(model_folder)
    ids = torch.randint(3, 500, (1600, 128), generator=torch.Generator().manual_seed(0))
    sites = ["layers.*.resid_post", "layers.*.mlp.hidden"]

    def plain() -> None:
        with torch.no_grad():
            for at in range(0, len(ids), 8):
                model.module(ids[at : at + 8])

    def capture(path: str) -> None:
        record(model, ids, sites, path, progress=False)

    capture(os.path.join(folder, "captured"))
    size = Store.open(os.path.join(folder, "captured")).n_bytes
    data = [np.zeros((BLOCK, WIDTH), np.float16)] * -(-size // (BLOCK * WIDTH * 2))
    ratios = []
    for _ in range(rounds):
        forward = timed(plain)[1]
        raw = timed(lambda: write_direct(os.path.join(folder, "raw_record"), data))[1]
        write = raw * size / (len(data) * BLOCK * WIDTH * 2)
        remove(os.path.join(folder, "captured"))
        ratios.append(timed(lambda: capture(os.path.join(folder, "captured")))[1] / (forward + write))
    ratio = statistics.median(ratios)
    return {f"record {ratio:.3f}x the CPU of plain forwards + raw write (bar 1.05)": ratio <= 1.05}


def main() -> int:
    """Run everything and print the verdicts; status 1 when a bar is missed."""
    options = argparse.ArgumentParser(description="benchmark of the store")
    options.add_argument("--rows", type=int, default=32 * BLOCK)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--dir", default=None, help="a folder on the disk to be measured")
    options.add_argument("--model", default=None, help="a folder with a small causal language model")
    options.add_argument("--only", nargs="*", help="write, read (after write), open, record")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    folder = tempfile.mkdtemp(dir=chosen.dir)
    parts: dict[str, Callable[[], dict[str, bool]]] = {
        "write": lambda: writing(folder, chosen.rows, chosen.rounds),
        "read": lambda: reading(folder, chosen.rows, chosen.rounds),
        "open": lambda: opening(folder),
        "record": lambda: recording(folder, chosen.model, chosen.rounds) if chosen.model else {},
    }
    bars: dict[str, bool] = {}
    try:
        for name in chosen.only or parts:
            bars |= parts[name]()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print()
    for text, met in bars.items():
        print(f"  {'met   ' if met else 'MISSED'}  {text}")
    return 0 if all(bars.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

"""The store against the disk's own rate, plain files, and Lance, zarr and safetensors where they are installed.

    python benchmarks/store.py [--rows 524288] [--rounds 7] [--dir FOLDER] [--model FOLDER] [--only PART...]

All ratios come from one run in which the cases take turns; a ratio is the median over rounds of two neighbours' ratio,
for disks change their mind from second to second. Rows are 768 fp16 numbers, spread like real activations.
Writing ends with everything durable. Bars: write >= 0.9x of raw O_DIRECT and >= 1.0x of buffered write + fsync, the
latter also where O_DIRECT is not available, <= 0.6 CPU s/GB; sequential read >= 0.9x of raw, checked or not; random
batches of 4096 >= 0.9x of a memmap gather; open <= 5 ms for 100 shards; `record` <= 1.05x the CPU of plain forward
passes and a raw write (with --model).
"""

from __future__ import annotations

import argparse
import contextlib
import mmap
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from store_peers import installed
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


WRITERS: dict[str, Callable[[str, list[np.ndarray]], None]] = {
    "raw O_DIRECT": write_direct,
    "interneuron store": write_store,
    "raw buffered + fsync": write_buffered,
    "interneuron store, no O_DIRECT": write_store_buffered,
}


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


def place(folder: str, name: str) -> str:
    """Where a writer's files go."""
    return os.path.join(folder, "".join(c if c.isalnum() else "_" for c in name))


def pairs(a: list[tuple[float, float]], b: list[tuple[float, float]], which: int = 0) -> float:
    """How many times as fast as the rounds of `a` were those of `b`: median over rounds, wall (0) or CPU (1)."""
    return statistics.median(x[which] / y[which] for x, y in zip(a, b, strict=True))


def rates(title: str, times: dict[str, list[tuple[float, float]]], sizes: dict[str, float]) -> None:
    """Print MB/s and CPU seconds per GB."""
    rows = []
    for name, found in times.items():
        walls, size = [t[0] for t in found], sizes[name]
        slow, fast = (size * 1e3 / t for t in (max(walls), min(walls)))
        cpu = statistics.median(t[1] for t in found) / size
        rows.append([name, size * 1e3 / statistics.median(walls), f"{slow:.0f}-{fast:.0f}", cpu])
    table(title, ["", "MB/s", "slowest-fastest", "CPU s/GB"], rows)


def writing(folder: str, rows: int, rounds: int) -> dict[str, bool]:
    """All writers in turn, every other round in the opposite order."""
    data = blocks(rows)
    gigabytes = rows * WIDTH * 2 / 1e9
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in WRITERS}
    for i in range(rounds):
        order = list(WRITERS.items())[:: 1 if i % 2 else -1]
        for name, write in order[i % len(order) :] + order[: i % len(order)]:  # nobody always follows the same one
            path = place(folder, name)
            remove(path)
            times[name].append(timed(lambda w=write, p=path: w(p, data)))
    rates(f"writing {gigabytes:.2f} GB, durable (medians of {rounds})", times, dict.fromkeys(times, gigabytes))
    ours, plain = times["interneuron store"], times["raw buffered + fsync"]
    direct, buffered = pairs(times["raw O_DIRECT"], ours), pairs(plain, ours)
    fallback = pairs(plain, times["interneuron store, no O_DIRECT"])
    cpu = statistics.median(t[1] for t in ours) / gigabytes
    return {
        f"write {direct:.2f}x of raw O_DIRECT (bar 0.9)": direct >= 0.9,
        f"write {buffered:.2f}x of buffered + fsync (bar 1.0)": buffered >= 1.0,
        f"write without O_DIRECT {fallback:.2f}x of buffered + fsync (bar 1.0)": fallback >= 1.0,
        f"write {cpu:.2f} CPU s/GB (bar 0.6)": cpu <= 0.6,
    }


def reading(folder: str, rows: int, rounds: int) -> dict[str, bool]:
    """Sequential and random reading of warm files, beside plain files."""
    raw, path = place(folder, "raw buffered + fsync"), place(folder, "interneuron store")
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
    some = 8 * BLOCK * WIDTH * 2 / 1e9
    rates(
        f"reading warm files (medians of {rounds * 2})",
        times,
        {name: gigabytes if i < 3 else some for i, name in enumerate(cases)},
    )
    bars = {}
    for name, base, shown in (
        ("store, checked before", "raw readinto", "sequential read"),
        ("store, first touch", "raw readinto", "sequential read with checking"),
        ("store.take, batch order as drawn by batches()", "memmap gather", "random batches"),
        ("store.take, unsorted", "memmap gather, unsorted", "random rows in any order"),
    ):
        wall, cpu = (pairs(times[base], times[name], i) for i in (0, 1))
        bars[f"{shown} {wall:.2f}x wall, {cpu:.2f}x CPU (bar 0.9)"] = max(wall, cpu) >= 0.9
    return bars


def beside(folder: str, rows: int, rounds: int) -> dict[str, bool]:
    """The store and each peer that is installed, turn and turn about: writing, reading in order, random batches."""
    data = blocks(rows)
    size = rows * WIDTH * 2 / 1e9
    rng = np.random.default_rng(1)
    picks = [np.sort(rng.integers(0, rows, BLOCK)) for _ in range(2)]
    bars: dict[str, bool] = {}
    ratios: list[list[Any]] = []
    times: dict[str, list[tuple[float, float]]] = {}
    for name, peer in installed().items():
        ours, theirs = place(folder, "ours"), place(folder, name)
        for _ in range(rounds):
            for label, write, path in (("store", write_store, ours), (name, peer.write, theirs)):
                remove(path)
                times.setdefault(f"{label}, write beside {name}", []).append(timed(lambda w=write, p=path: w(p, data)))
        in_order, take = peer.reader(theirs, BLOCK)
        store = Store.open(ours)
        sink = np.empty(BLOCK * WIDTH * 2, np.uint8)

        def use(found: Iterable[np.ndarray], sink: np.ndarray = sink) -> None:
            """Copy every block once, as a training step would: some formats give memory that was not read yet."""
            for block in found:
                sink[: block.nbytes] = block.reshape(-1).view(np.uint8)

        cases: dict[str, Callable[[], object]] = {
            f"store, in order beside {name}": lambda s=store: use(
                b.numpy() for b in s.batches("x", BLOCK, shuffle=False)
            ),
            f"{name}, in order beside {name}": lambda r=in_order: use(r()),
            f"store, random beside {name}": lambda s=store: [s["x"].take(p).shape for p in picks],
            f"{name}, random beside {name}": lambda t=take: [t(p) for p in picks],
        }
        for case in cases.values():
            case()
        for _ in range(rounds):
            for label, case in cases.items():
                times.setdefault(label, []).append(timed(case))
        for what in ("write", "in order", "random"):
            a, b = times[f"{name}, {what} beside {name}"], times[f"store, {what} beside {name}"]
            ratios.append([f"{what}, beside {name}", pairs(a, b), pairs(a, b, 1)])
        least = {"Lance": 10, "zarr": 40}.get(name, 1)
        _, wall, cpu = ratios[-1]
        bars[f"random batches {wall:.1f}x wall, {cpu:.1f}x CPU of {name} (bar {least})"] = max(wall, cpu) >= least
        remove(ours)
        remove(theirs)
    sizes = {name: len(picks) * BLOCK * WIDTH * 2 / 1e9 if "random" in name else size for name in times}
    rates(f"beside other formats, {size:.2f} GB (medians of {rounds})", times, sizes)
    table("how many times as fast the store is", ["", "wall", "CPU"], ratios)
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
    """CPU of a capture against plain forward passes of the same batches plus a raw write of as many bytes.

    Rounds are short and end with the plain passes with which they began, since a processor changes its pace; what the
    raw write copies is one block, about as large as a batch's sites, over and over.
    """
    from interneuron.model.load import load_model
    from interneuron.store import record

    model = load_model(model_folder)
    ids = torch.randint(3, 500, (640, 128), generator=torch.Generator().manual_seed(0))
    sites = ["layers.*.resid_post", "layers.*.mlp.hidden"]
    captured, raw = os.path.join(folder, "captured"), os.path.join(folder, "raw_record")

    def plain() -> None:
        with torch.no_grad():
            for at in range(0, len(ids), 8):
                model.module(ids[at : at + 8])

    plain()
    size = record(model, ids, sites, captured, progress=False).n_bytes
    data = blocks(BLOCK) * (size // (BLOCK * WIDTH * 2))
    scale = size / (len(data) * BLOCK * WIDTH * 2)
    found = []
    for _ in range(rounds):
        remove(captured)
        remove(raw)
        before = timed(plain)[1]
        write = timed(lambda: write_direct(raw, data))[1] * scale
        capture = timed(lambda: record(model, ids, sites, captured, progress=False))[1]
        after = timed(plain)[1]
        found.append(((before + after) / 2, write, capture, capture / ((before + after) / 2 + write)))
    table(
        f"recording {size / 1e9:.2f} GB, CPU seconds",
        ["plain forward passes", "raw write", "record", "ratio"],
        [list(row) for row in found],
    )
    ratio = statistics.median(row[3] for row in found)
    return {f"record {ratio:.3f}x the CPU of plain forwards + raw write (bar 1.05)": ratio <= 1.05}


def main() -> int:
    """Run everything and print the verdicts; status 1 when a bar is missed."""
    options = argparse.ArgumentParser(description="benchmark of the store")
    options.add_argument("--rows", type=int, default=128 * BLOCK)
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--dir", default=None, help="a folder on the disk to be measured")
    options.add_argument("--model", default=None, help="a folder with a small causal language model")
    options.add_argument("--only", nargs="*", help="write, read (after write), open, peers, record")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    folder = tempfile.mkdtemp(dir=chosen.dir)
    parts: dict[str, Callable[[], dict[str, bool]]] = {
        "write": lambda: writing(folder, chosen.rows, chosen.rounds),
        "read": lambda: reading(folder, chosen.rows, chosen.rounds),
        "open": lambda: opening(folder),
        "peers": lambda: beside(folder, chosen.rows, max(3, chosen.rounds // 2)),
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

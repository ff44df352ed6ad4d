"""Kills real processes that write stores. A warm parent forks one writer after another; it prints a JSON summary.

python store_crash.py random FOLDER KILLS SEED [MODEL TEXT] [--broken NAME]      kill -9 at random moments
python store_crash.py points FOLDER TIMES [--broken NAME]                        kill -9 at every named point
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from store_disks import Counted, Killing
from store_workloads import capture

from interneuron.core.errors import CorruptStore, StoreError
from interneuron.store import Store, StoreWriter, journal
from interneuron.store.layout import Header
from interneuron.store.manifest import part_record
from interneuron.store.system import System

Work = Callable[[str, System | None, Callable[[int], None] | None], None]


def tree(folder: str) -> dict[str, str]:
    """Hash of every file of a store."""
    root = Path(folder)
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*") if p.is_file()
    }


def break_store(how: str) -> None:
    """Negative controls: stores that are wrong on purpose."""
    if how == "leaked temp":
        journal.Journal.sweep = lambda self, prefix="": 0
    elif how == "record first":

        def early(self: Any, part: Any, shards: Any, index: int) -> None:
            m = self._journal.manifest
            for n, shard in shards.items():
                part.roots[n] = shard.finish(
                    self.system, Header(m.id, m.columns[n], part.writer, part.number, part.rows)
                )
            self._journal.append(part_record(part))
            self.on_commit(part.rows + part.start) if self.on_commit else None
            for n, shard in shards.items():
                self.system.rename(shard.path, os.path.join(self.path, journal.DATA, part.file(n)))

        StoreWriter._commit_part = early


def child(work: Callable[[], None]) -> int:
    """Fork; the child does `work` and leaves; returns its process id."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


def acknowledged(oracle: str) -> int:
    """Rows the writer was told are safe (kept outside the store)."""
    if not os.path.exists(oracle):
        return 0
    lines = Path(oracle).read_text().split("\n")[:-1]
    return max((int(line) for line in lines), default=0)


def oracle_writer(oracle: str) -> Callable[[int], None]:
    """Notes acknowledged rows in a file of its own."""
    handle = os.open(oracle, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    return lambda rows: (os.write(handle, f"{rows}\n".encode()), None)[1]


def look(folder: str, acked: int, keys: Any, found: dict[str, int]) -> None:
    """Open after a kill, as a reader would, and compare with what was acknowledged."""
    try:
        store = Store.open(folder)
        names = {name for part in store._manifest.parts for name in map(part.file, part.roots)}
        found["leaked"] += bool(set(os.listdir(os.path.join(folder, journal.DATA))) - names)
        found["lost"] += store.n_rows < acked
        got = store.keys()
        found["duplicates"] += bool((got != keys[: len(got)]).any())
        store.verify()
    except CorruptStore:
        found["lost"] += 1
    except StoreError:
        found["lost"] += acked > 0
        found["none yet"] += 1


def random_kills(folder: str, kills: int, seed: int, work: Work, window: float) -> dict[str, Any]:
    """Kill at random moments until `kills` are spent; whenever a capture completes, compare and start another."""
    rng = random.Random(seed)
    reference, target, oracle = (os.path.join(folder, n) for n in ("reference", "target", "oracle"))
    os.waitpid(child(lambda: work(reference, None, None)), 0)
    expected, keys = tree(reference), Store.open(reference).keys()
    found = {
        "kills": 0,
        "lost": 0,
        "duplicates": 0,
        "unequal": 0,
        "leaked": 0,
        "completed": 0,
        "none yet": 0,
        "refused": 0,
    }
    while found["kills"] < kills:
        pid = child(lambda: work(target, None, oracle_writer(oracle)))
        end = time.monotonic() + rng.random() * window
        done = (0, 0)
        while time.monotonic() < end and not done[0]:
            time.sleep(min(0.002, max(0.0, end - time.monotonic())))
            done = os.waitpid(pid, os.WNOHANG)
        if not done[0]:
            os.kill(pid, signal.SIGKILL)
            done = os.waitpid(pid, 0)
        if os.WIFSIGNALED(done[1]):
            found["kills"] += 1
            look(target, acknowledged(oracle), keys, found)
            continue
        if os.WEXITSTATUS(done[1]) == 0:
            found["completed"] += 1
            found["unequal"] += tree(target) != expected
        else:
            found["refused"] += 1
        shutil.rmtree(target, ignore_errors=True)
        Path(oracle).unlink(missing_ok=True)
    os.waitpid(child(lambda: work(target, None, None)), 0)
    found["unequal"] += tree(target) != expected
    return {**found, "rows": len(keys)}


def point_kills(folder: str, times: int) -> dict[str, Any]:
    """Kill at every named point of a capture (its first, middle and last passage), look, resume, compare."""
    counted = Counted(direct=False)
    reference = os.path.join(folder, "reference")
    passes: dict[str, int] = {}

    def note(label: str) -> None:
        passes[label] = passes.get(label, 0) + 1

    counted.before = lambda label, args: note(f"before {label}")
    counted.after = lambda label: note(f"after {label}")
    capture(reference, counted)
    expected, keys = tree(reference), Store.open(reference).keys()
    found = {"kills": 0, "lost": 0, "duplicates": 0, "unequal": 0, "leaked": 0, "none yet": 0}
    for point, n in sorted(passes.items()):
        for i in range(times):
            nth = 1 + (n - 1) * i // max(1, times - 1)
            target, oracle = os.path.join(folder, f"t{found['kills']}"), os.path.join(folder, "oracle")
            Path(oracle).unlink(missing_ok=True)

            def work(point: str = point, nth: int = nth, target: str = target, oracle: str = oracle) -> None:
                note_rows = oracle_writer(oracle)
                capture(target, Killing(point, nth), on_commit=note_rows)

            _, status = os.waitpid(child(work), 0)
            found["kills"] += os.WIFSIGNALED(status)
            look(target, acknowledged(oracle), keys, found)
            os.waitpid(child(lambda t=target: capture(t, System())), 0)
            found["unequal"] += tree(target) != expected
            shutil.rmtree(target)
    return {**found, "points": len(passes), "rows": len(keys)}


def model_work(model_folder: str, text: str) -> Work:
    """A capture of a real language model."""
    from interneuron.model.load import load_model
    from interneuron.store import record

    model = load_model(model_folder)

    def work(folder: str, system: System | None, note: Callable[[int], None] | None) -> None:
        made = StoreWriter.__init__

        def init(self: Any, *args: Any, **options: Any) -> None:
            made(self, *args, **options, on_commit=note)

        StoreWriter.__init__ = init
        sites = ["layers.*.resid_post", "layers.*.mlp.hidden"]
        record(model, text, sites, folder, seq_len=64, part_bytes=4 << 20, resume=True, block_bytes=8 << 20)

    return work


def toy_work(folder: str, system: System | None, note: Callable[[int], None] | None) -> None:
    """A capture of made-up rows, slow enough to be killed anywhere."""
    capture(folder, system or System(), n=60, threads=2, on_commit=note)


def main(argv: list[str]) -> None:
    """Run one mode and print what was found."""
    broken = argv[argv.index("--broken") + 1] if "--broken" in argv else ""
    argv = argv[: argv.index("--broken")] if broken else argv
    break_store(broken)
    started = time.process_time()
    if argv[0] == "random" and len(argv) > 4:
        result = random_kills(argv[1], int(argv[2]), int(argv[3]), model_work(argv[4], argv[5]), 0.6)
    elif argv[0] == "random":
        result = random_kills(argv[1], int(argv[2]), int(argv[3]), toy_work, 0.25)
    else:
        result = point_kills(argv[1], int(argv[2]))
    print(json.dumps({**result, "cpu": round(time.process_time() - started, 1)}))


if __name__ == "__main__":
    main(sys.argv[1:])

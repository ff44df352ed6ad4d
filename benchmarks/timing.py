"""Timing for benchmarks: cases alternate inside one process, and ratios come from the same run.

CPU seconds of one thread are used, since wall time on a shared machine measures the scheduler.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def alternate(
    cases: dict[str, Callable[[], object]], rounds: int = 15, sample: float = 0.05
) -> dict[str, dict[str, float]]:
    """Median and fastest CPU seconds per call of each case, the cases taking turns; short calls are repeated."""
    repeats = {}
    for name, case in cases.items():
        case()
        start = time.process_time()
        case()
        repeats[name] = max(1, round(sample / max(time.process_time() - start, 1e-7)))
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            start = time.process_time()
            for _ in range(repeats[name]):
                case()
            times[name].append((time.process_time() - start) / repeats[name])
    return {name: {"median": statistics.median(t), "fastest": min(t)} for name, t in times.items()}


def table(title: str, columns: list[str], rows: list[list[object]]) -> None:
    """Print a plain table."""
    text = [[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row] for row in [columns, *rows]]
    widths = [max(len(row[i]) for row in text) for i in range(len(columns))]
    print(f"\n{title}")
    for i, row in enumerate(text):
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if i == 0:
            print("  " + "  ".join("-" * width for width in widths))

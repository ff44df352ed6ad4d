"""Progress bars that stay out of the way: nothing is shown for short jobs or when stderr is not a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

Item = TypeVar("Item")

SHOW_AFTER_SECONDS = 2.0


class Progress:
    """A bar on stderr with label, count, rate, time left and any fields given to `advance`.

    The bar appears after two seconds; jobs that end sooner print nothing. `rich` is imported only then.

        with Progress(total=1000, label="training", unit="step") as bar:
            for step in range(1000):
                bar.advance(1, loss=0.3)
    """

    def __init__(self, total: float | None = None, label: str = "", unit: str = "it", enabled: bool | None = None):
        self.total, self.label, self.unit = total, label, unit
        self.enabled = sys.stderr.isatty() if enabled is None else enabled
        self.done = 0.0
        self._started = time.monotonic()
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Progress:
        self._started = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def advance(self, n: float = 1, **fields: object) -> None:
        """Count `n` more units; `fields` (loss=..., ce=...) are shown after the bar."""
        self.done += n
        if not self.enabled:
            return
        if self._bar is None:
            if time.monotonic() - self._started < SHOW_AFTER_SECONDS:
                return
            self._open()
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self.done, rate=self._rate(), notes=_notes(fields))

    def _rate(self) -> str:
        seconds = max(time.monotonic() - self._started, 1e-9)
        return f"{self.done / seconds:,.3g} {self.unit}/s"

    def _open(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[notes]}"),
            console=Console(stderr=True),
            transient=True,
        )
        self._bar.start()
        self._task = self._bar.add_task(self.label, total=self.total, rate=self._rate(), notes="")


def track(iterable: Iterable[Item], total: float | None = None, label: str = "", unit: str = "it") -> Iterator[Item]:
    """Yield from `iterable`, showing a bar; `total` is taken from `len(iterable)` where there is one."""
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    with Progress(total=total, label=label, unit=unit) as bar:
        for item in iterable:
            yield item
            bar.advance()


def _notes(fields: dict[str, object]) -> str:
    return "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in fields.items())

"""Plots as data: plain dicts a report stores, a page draws and a test reads. Nothing here draws.

Every plot has `kind`, `title`, `x_label`, `y_label`; beyond these
    lines    x [N], series {name: [N]}
    bars     names [N], values [N]
    points   x [N], y [N], names [N] or None
    heatmap  rows [R], columns [C], values [R][C]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from interneuron.core.errors import ShapeError

Plot = dict[str, Any]


def lines(
    title: str, x: Sequence[float], series: Mapping[str, Sequence[float]], *, x_label: str = "", y_label: str = ""
) -> Plot:
    """Curves over a shared x axis."""
    for name, values in series.items():
        _same(title, f"series {name!r}", len(values), len(x))
    return _plot("lines", title, x_label, y_label, x=list(x), series={name: list(v) for name, v in series.items()})


def bars(title: str, names: Sequence[str], values: Sequence[float], *, x_label: str = "", y_label: str = "") -> Plot:
    """One bar per name."""
    _same(title, "values", len(values), len(names))
    return _plot("bars", title, x_label, y_label, names=list(names), values=list(values))


def points(
    title: str,
    x: Sequence[float],
    y: Sequence[float],
    names: Sequence[str] | None = None,
    *,
    x_label: str = "",
    y_label: str = "",
) -> Plot:
    """A scatter plot; `names` label the points."""
    _same(title, "y", len(y), len(x))
    if names is not None:
        _same(title, "names", len(names), len(x))
    return _plot("points", title, x_label, y_label, x=list(x), y=list(y), names=None if names is None else list(names))


def heatmap(
    title: str, values: Any, rows: Sequence[str], columns: Sequence[str], *, x_label: str = "", y_label: str = ""
) -> Plot:
    """A table of numbers as colours; `values` is a nested list or tensor [R C]."""
    table = values.tolist() if hasattr(values, "tolist") else [list(row) for row in values]
    _same(title, "values", len(table), len(rows))
    for row in table:
        _same(title, "a row of values", len(row), len(columns))
    return _plot("heatmap", title, x_label, y_label, rows=list(rows), columns=list(columns), values=table)


def _plot(kind: str, title: str, x_label: str, y_label: str, **data: Any) -> Plot:
    return {"kind": kind, "title": title, "x_label": x_label, "y_label": y_label, **data}


def _same(title: str, what: str, got: int, expected: int) -> None:
    if got != expected:
        raise ShapeError(f"plot {title!r}: {what} has {got} entries, expected {expected}. Give one per name or x.")

"""Plots-as-data drawn as inline SVG: no scripts, no files, colours from the page's style sheet, so light and dark work.

Beyond the keys of `interneuron.artifacts.plots` a plot may carry
    lines    bands {name: [low list, high list]}, controls [names drawn muted], ticks [label per x], marks [[x, label]],
             y_percent, x_percent
    heatmap  low, high (colour range, default the data's), percent
    bars     reference [value, label], percent, controls [names drawn muted]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

Plot = dict[str, Any]
WIDTH = 720


def draw(plot: Plot) -> str:
    """One plot as an `<svg>` element, preceded by its legend where it has one."""
    kinds: dict[str, Callable[[Plot], str]] = {
        "lines": _lines,
        "bars": _bars,
        "points": _points,
        "heatmap": _heatmap,
    }
    return kinds[plot["kind"]](plot)


def number(value: float, percent: bool = False) -> str:
    """A number with as many digits as a reader needs.

    >>> number(0.0314), number(12.3), number(0.5, percent=True), number(-0.0)
    ('0.031', '12.3', '50 %', '0')
    """
    if math.isnan(value):
        return "n/a"
    if percent:
        return f"{number(100 * value)} %".replace("-0 %", "0 %")
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if abs(value) >= 0.01 else 4
    if abs(value) < 1e-4:
        return f"{value:.1e}"
    text = f"{value:.{min(digits, 3 if abs(value) < 1 else 2)}f}" if abs(value) >= 0.01 else f"{value:.4f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def ticks(low: float, high: float, n: int = 5) -> list[float]:
    """Round numbers that cover a range.

    >>> ticks(0, 1)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    if high <= low:
        high = low + 1
    raw = (high - low) / n
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * k for k in (1, 2, 2.5, 5, 10) if size * k >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


class _Frame:
    """Axes of a lines or bars plot: maps data to the page and draws grid, ticks and labels."""

    def __init__(self, plot: Plot, xs: tuple[float, float], ys: tuple[float, float], height: int = 280) -> None:
        self.plot, self.height = plot, height
        self.left, self.right, self.top, self.bottom = 84, 26, 16, 52
        pad = 0.06 * (ys[1] - ys[0] or 1)
        self.y0, self.y1 = ys[0] - (pad if ys[0] < 0 or ys[0] > pad else 0), ys[1] + pad
        self.x0, self.x1 = xs if xs[1] > xs[0] else (xs[0] - 0.5, xs[0] + 0.5)

    def x(self, value: float) -> float:
        return self.left + (value - self.x0) / (self.x1 - self.x0) * (WIDTH - self.left - self.right)

    def y(self, value: float) -> float:
        return (
            self.height - self.bottom - (value - self.y0) / (self.y1 - self.y0) * (self.height - self.top - self.bottom)
        )

    def axes(self, x_ticks: Sequence[tuple[float, str]]) -> list[str]:
        """Horizontal grid lines with values, ticks below, and both labels."""
        out = []
        for value in ticks(self.y0, self.y1):
            y = self.y(value)
            kind = "zero" if value == 0 else "grid"
            out.append(f'<line class="{kind}" x1="{self.left}" x2="{WIDTH - self.right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            label = number(value, bool(self.plot.get("y_percent")))
            out.append(f'<text x="{self.left - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
        base = self.height - self.bottom
        for value, label in x_ticks:
            out.append(f'<text x="{self.x(value):.1f}" y="{base + 20}" text-anchor="middle">{escape(label)}</text>')
        middle = (self.left + WIDTH - self.right) / 2
        label = escape(self.plot["x_label"])
        out.append(f'<text class="label" x="{middle}" y="{self.height - 8}" text-anchor="middle">{label}</text>')
        y = (self.top + base) / 2
        label = escape(self.plot["y_label"])
        out.append(f'<text class="label" transform="translate(18 {y}) rotate(-90)" text-anchor="middle">{label}</text>')
        return out


def _svg(body: Sequence[str], height: float, title: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title, quote=True)}">'
        + "".join(body)
        + "</svg>"
    )


def _lines(plot: Plot) -> str:
    x, series, bands = plot["x"], plot["series"], plot.get("bands", {})
    values = [v for ys in series.values() for v in ys] + [v for pair in bands.values() for ys in pair for v in ys]
    values = [v for v in values if v is not None and math.isfinite(v)]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    low, high = plot.get("low", min(low, 0)), plot.get("high", max(high, 0))
    frame = _Frame(plot, (min(x), max(x)), (low, high))
    if "ticks" in plot:
        every = max(1, math.ceil(len(x) / 16))
        x_ticks = [(v, t) for i, (v, t) in enumerate(zip(x, plot["ticks"], strict=True)) if i % every == 0]
    else:
        x_ticks = [(v, number(v, bool(plot.get("x_percent")))) for v in ticks(min(x), max(x), 8)]
    body = frame.axes(x_ticks)
    for mark, label in plot.get("marks", []):
        at = frame.x(mark)
        body.append(
            f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{frame.top}" y2="{frame.height - frame.bottom}"/>'
        )
        side = "end" if at > WIDTH * 0.7 else "start"
        shift = -6 if side == "end" else 6
        body.append(
            f'<text class="marked" x="{at + shift:.1f}" y="{frame.top + 11}" text-anchor="{side}">'
            f"{escape(label)}</text>"
        )
    names = classes(plot)
    for name, (lower, upper) in bands.items():
        path = [f"{frame.x(a):.1f},{frame.y(b):.1f}" for a, b in zip(x, upper, strict=True)]
        path += [f"{frame.x(a):.1f},{frame.y(b):.1f}" for a, b in reversed(list(zip(x, lower, strict=True)))]
        body.append(f'<polygon class="band {names[name]}" points="{" ".join(path)}"/>')
    for name, ys in series.items():
        points = [(a, b) for a, b in zip(x, ys, strict=True) if b is not None]
        path = " ".join(f"{frame.x(a):.1f},{frame.y(b):.1f}" for a, b in points)
        body.append(f'<polyline class="line {names[name]}" points="{path}"/>')
        for a, b in points:
            hint = f"{name}: {number(b, bool(plot.get('y_percent')))} at {number(a, bool(plot.get('x_percent')))}"
            body.append(
                f'<circle class="dot {names[name]}" cx="{frame.x(a):.1f}" cy="{frame.y(b):.1f}" r="3.4">'
                f"<title>{escape(hint)}</title></circle>"
            )
    return _legend(names, bands) + _svg(body, frame.height, plot["title"])


def classes(plot: Plot) -> dict[str, str]:
    """A colour class for every series; controls are muted."""
    names, i = {}, 0
    for name in plot["series"]:
        if name in plot.get("controls", ()):
            names[name] = "control"
        else:
            names[name] = f"s{i % 4}"
            i += 1
    return names


def _legend(names: dict[str, str], bands: Any) -> str:
    if len(names) < 2:
        return ""
    items = "".join(
        f'<span><i class="key {kind}{" banded" if name in bands else ""}"></i>{escape(name)}</span>'
        for name, kind in names.items()
    )
    return f'<div class="legend">{items}</div>'


def _bars(plot: Plot) -> str:
    names, values = plot["names"], [v if v is not None else 0.0 for v in plot["values"]]
    reference = plot.get("reference")
    high = plot.get("high", max([*values, *([reference[0]] if reference else []), 0]))
    plot = {**plot, "y_percent": plot.get("percent")}
    frame = _Frame(plot, (-0.6, len(names) - 0.4), (min(0, *values), high))
    widest = max((len(n) for n in names), default=1) * 7 + 10  # so that neighbouring names never meet
    every = max(1, math.ceil(len(names) * widest / (WIDTH - frame.left - frame.right)))
    body = frame.axes([(i, n) for i, n in enumerate(names) if i % every == 0])
    width = min(46.0, 0.62 * (WIDTH - frame.left - frame.right) / len(names))
    for i, (name, value) in enumerate(zip(names, values, strict=True)):
        top, base = sorted((frame.y(value), frame.y(0)))
        text = number(value, bool(plot.get("percent")))
        body.append(
            f'<rect class="{"bar control" if name in plot.get("controls", ()) else "bar"}" '
            f'x="{frame.x(i) - width / 2:.1f}" y="{top:.1f}" width="{width:.1f}" rx="3" '
            f'height="{max(base - top, 0.5):.1f}"><title>{escape(f"{name}: {text}")}</title></rect>'
        )
        if len(names) <= 12:
            body.append(
                f'<text class="value" x="{frame.x(i):.1f}" y="{top - 5:.1f}" text-anchor="middle">{text}</text>'
            )
    if reference:
        y = frame.y(reference[0])
        body.append(f'<line class="mark" x1="{frame.left}" x2="{WIDTH - frame.right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        body.append(
            f'<text class="marked" x="{WIDTH - frame.right}" y="{y - 5:.1f}" text-anchor="end">'
            f"{escape(reference[1])}</text>"
        )
    return _svg(body, frame.height, plot["title"])


def _points(plot: Plot) -> str:
    x, y, names = plot["x"], plot["y"], plot["names"] or [""] * len(plot["x"])
    frame = _Frame(plot, (min(x), max(x)), (min(y), max(y)))
    body = frame.axes([(v, number(v)) for v in ticks(min(x), max(x), 8)])
    for a, b, name in zip(x, y, names, strict=True):
        hint = escape(f"{name} {number(a)}, {number(b)}".strip())
        body.append(
            f'<circle class="dot s0" cx="{frame.x(a):.1f}" cy="{frame.y(b):.1f}" r="3.4" fill-opacity="0.7">'
            f"<title>{hint}</title></circle>"
        )
        if plot["names"] and len(x) <= 24:
            side = "end" if frame.x(a) > WIDTH * 0.8 else "start"
            at = frame.x(a) + (-7 if side == "end" else 7)
            body.append(f'<text x="{at:.1f}" y="{frame.y(b) + 4:.1f}" text-anchor="{side}">{escape(name)}</text>')
    return _svg(body, frame.height, plot["title"])


def _heatmap(plot: Plot) -> str:
    rows, columns, values = plot["rows"], plot["columns"], plot["values"]
    flat = [v for row in values for v in row if v is not None and math.isfinite(v)]
    top = plot.get("high", max((abs(v) for v in flat), default=1.0)) or 1.0
    left, right, head = max(92, min(236, 7 * max((len(r) for r in rows), default=0) + 28)), 12, 8
    cell_w = (WIDTH - left - right) / max(len(columns), 1)
    cell_h = min(34.0, max(16.0, 330 / max(len(rows), 1)))
    percent = bool(plot.get("percent"))
    slanted = max((len(c) for c in columns), default=0) * 6.6 > cell_w
    foot = 26 + (min(max(len(c) for c in columns), 16) * 4.4 - 8 if slanted else 0)
    body = []
    for i, row in enumerate(values):
        y = head + (len(rows) - 1 - i) * cell_h  # layer 0 at the bottom, as the signal flows upwards
        body.append(f'<text x="{left - 8}" y="{y + cell_h / 2 + 4:.1f}" text-anchor="end">{escape(rows[i])}</text>')
        for j, value in enumerate(row):
            body.append(_cell(value, left + j * cell_w, y, cell_w, cell_h, top, f"{rows[i]}, {columns[j]}", percent))
    base = head + len(rows) * cell_h
    for j, name in enumerate(columns):
        x = left + (j + 0.5) * cell_w
        short = name if len(name) <= 16 else name[:15] + "…"
        place = f'transform="translate({x + 4:.1f} {base + 12}) rotate(-42)" text-anchor="end"' if slanted else (
            f'x="{x:.1f}" y="{base + 17}" text-anchor="middle"'
        )  # fmt: skip
        body.append(f'<text class="token" {place}>{escape(short)}</text>')
    height = base + foot + 16
    x_label, y_label = escape(plot["x_label"]), escape(plot["y_label"])
    middle = left + (WIDTH - left - right) / 2
    body.append(f'<text class="label" x="{middle:.0f}" y="{height - 4:.0f}" text-anchor="middle">{x_label}</text>')
    body.append(
        f'<text class="label" transform="translate(14 {head + len(rows) * cell_h / 2:.0f}) rotate(-90)" '
        f'text-anchor="middle">{y_label}</text>'
    )
    return _scale(top, min(flat, default=0.0), percent) + _svg(body, height, plot["title"])


def _cell(value: float, x: float, y: float, w: float, h: float, top: float, hint: str, percent: bool) -> str:
    """One cell: colour by sign, strength by size; its value is written in when there is room."""
    share = min(abs(value) / top, 1.0) if math.isfinite(value) else 0.0
    kind = "hot" if value >= 0 else "cold"
    text = number(value, percent)
    box = f'x="{x + 0.75:.1f}" y="{y + 0.75:.1f}" width="{w - 1.5:.1f}" height="{h - 1.5:.1f}" rx="2"'
    body = (
        f'<rect class="cell" {box}/><rect class="{kind}" {box} '
        f'fill-opacity="{share:.3f}"><title>{escape(f"{hint}: {text}")}</title></rect>'
    )
    if w >= 30 and h >= 18 and share >= 0.05:
        inside = f"{100 * value:.0f}" if percent else number(value)
        tone = "onhot" if share > 0.55 else "oncell"
        body += f'<text class="{tone}" x="{x + w / 2:.1f}" y="{y + h / 2 + 4:.1f}" text-anchor="middle">{inside}</text>'
    return body


def _scale(top: float, low: float, percent: bool) -> str:
    """The legend of a heatmap's colours."""
    below = f"<span>{number(-top, percent)}</span><i class='ramp cold'></i>" if low < -0.02 * top else ""
    above = f"<span>0</span><i class='ramp hot'></i><span>{number(top, percent)}</span>"
    return f"<div class='legend scale'>{below}{above}</div>"

"""A plot as an SVG file that stands alone: title, legend and colours are inside, nothing is fetched, no script runs.

The same plot gives the same bytes. The file says which state of the code it was drawn from, so that a test can tell an
old picture without drawing it again.
"""

from __future__ import annotations

import re
from html import escape
from importlib.resources import files
from typing import Any

from interneuron.cli.report_svg import WIDTH, classes, draw, number
from interneuron.core.errors import InputError

MAX_BYTES = 60_000
HEAD, LEGEND = 40, 22

_USED = re.compile(r"^(svg [a-z.]|svg text|\.(grid|zero|mark|line|band|bar|cell|hot|cold)\b)")
_HINTS = re.compile(r"<title>[^<]*</title>")
_BACKGROUNDS = re.compile(r'<rect class="cell"[^>]*/>')


def svg(plot: dict[str, Any], source: str) -> str:
    """The plot as the text of an SVG file.

    Raises InputError when it would exceed 60 kB even without the hints shown under the mouse.
    """
    drawn = draw(plot)
    inner = drawn[drawn.index("<svg") :]
    legend = _legend(plot)
    above = HEAD + (LEGEND if legend else 0)
    height = int(re.findall(r'viewBox="0 0 \d+ (\d+)"', inner)[0]) + above
    body = inner[inner.index(">") + 1 : -len("</svg>")]
    text = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(plot["title"], quote=True)}">\n<!-- source {source} -->\n<style>{_style()}</style>\n'
        f'<rect width="{WIDTH}" height="{height}" rx="10" fill="#ffffff"/>\n'
        f'<text class="head" x="20" y="26">{escape(plot["title"])}</text>\n{legend}\n'
        f'<g transform="translate(0 {above - 4})">{body}</g>\n</svg>\n'
    )
    for spare in (_HINTS, _BACKGROUNDS):
        if len(text.encode()) > MAX_BYTES:
            text = spare.sub("", text)
    if len(text.encode()) > MAX_BYTES:
        raise InputError(
            f"the picture {plot['title']!r} takes {len(text.encode()):,} bytes, expected at most {MAX_BYTES:,}. "
            "Plot fewer cells or points"
        )
    return text


def source_of(text: str) -> str:
    """The state of the code a picture was drawn from; empty when it does not say."""
    found = re.search(r"<!-- source (\w+) -->", text)
    return found.group(1) if found else ""


def _style() -> str:
    """The rules of the report's style sheet that figures use, in its light colours."""
    sheet = files("interneuron.cli").joinpath("report.css").read_text(encoding="utf-8")
    colours = dict(re.findall(r"(--[a-z0-9]+): (#[0-9a-f]{6})", sheet[: sheet.index("}")]))
    rules = " ".join(line for line in sheet.splitlines() if _USED.match(line))
    for name, value in sorted(colours.items(), key=lambda item: -len(item[0])):
        rules = rules.replace(f"var({name})", value)
    return rules.replace("svg ", "") + " .head { font-size: 15px; font-weight: 600; fill: #14181f; }"


def _legend(plot: dict[str, Any]) -> str:
    if plot["kind"] == "heatmap":
        flat = [v for row in plot["values"] for v in row if v is not None]
        low, high = plot.get("low", min(flat, default=0.0)), plot.get("high", max(flat, default=0.0))
        percent = bool(plot.get("percent"))
        told = f"from {number(low, percent)} to {number(high, percent)}"
        return f'<text x="20" y="48">{told}{"; blue above 0, red below" if low < 0 else ""}</text>'
    if plot["kind"] != "lines" or len(plot["series"]) < 2:
        return ""
    out, x = [], 20.0
    for name, kind in classes(plot).items():
        out.append(f'<line class="line {kind}" x1="{x:.0f}" x2="{x + 20:.0f}" y1="44" y2="44"/>')
        out.append(f'<text x="{x + 27:.0f}" y="48">{escape(name)}</text>')
        x += 48 + 6.6 * len(name)
    return "".join(out)

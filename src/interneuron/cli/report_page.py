"""A report as one HTML page that needs nothing else: style, figures and numbers are inside."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import Any

from interneuron.cli.report_svg import draw, number

TURN = "let e=document.documentElement;e.dataset.theme=getComputedStyle(e).colorScheme=='dark'?'light':'dark'"


@dataclasses.dataclass(frozen=True)
class Sample:
    """A prompt and its continuations: (label, text, tone), tone one of "", "plus", "minus"."""

    prompt: str
    continuations: Sequence[tuple[str, str, str]]


@dataclasses.dataclass(frozen=True)
class Section:
    """One step of a report.

    shows     what the figures show          reading  how to read them
    finding   the result in one sentence     numbers  name -> value, for the JSON
    plots     rows of plots-as-data, one or two side by side
    tables    title -> rows (dicts from column to value); those of more than `fold` rows are folded
    In `shows`, `reading` and `finding`, `word` in backticks is set as code and **word** bold.
    """

    title: str
    shows: str
    reading: str = ""
    finding: str = ""
    numbers: dict[str, Any] = dataclasses.field(default_factory=dict)
    plots: Sequence[Sequence[dict[str, Any]]] = ()
    tables: dict[str, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)
    samples: Sequence[Sample] = ()
    fold: int = 8


@dataclasses.dataclass(frozen=True)
class Page:
    """A whole report: tiles are (number, what it is), code is shown at the end."""

    over: str
    title: str
    lead: str
    facts: str
    tiles: Sequence[tuple[str, str]]
    sections: Sequence[Section]
    code: str = ""
    footer: str = ""


def render(page: Page) -> str:
    """The page as HTML text."""
    style = files("interneuron.cli").joinpath("report.css").read_text(encoding="utf-8")
    tiles = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{rich(what)}</span></div>' for value, what in page.tiles
    )
    sections = "".join(_section(i, section) for i, section in enumerate(page.sections, 1))
    code = (
        f"<section><h2>The same in Python</h2><pre><code>{escape(page.code)}</code></pre></section>"
        if page.code
        else ""
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(page.over)}: {escape(page.title)}</title><style>{style}</style></head><body><main>"
        f'<button class="theme" onclick="{TURN}">light / dark</button>'
        f'<div class="over">{escape(page.over)}</div><h1>{escape(page.title)}</h1>'
        f'<p class="lead">{rich(page.lead)}</p><div class="facts">{rich(page.facts)}</div>'
        f'<div class="tiles">{tiles}</div>{sections}{code}<footer>{rich(page.footer)}</footer></main></body></html>\n'
    )


def rich(text: str) -> str:
    """Escaped text with `code` and **bold**.

    >>> rich("`a<b` and **c**")
    '<code>a&lt;b</code> and <b>c</b>'
    """
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))
    return re.sub(r"\*\*([^*]+)\*\*", r"<b>\1</b>", text)


def _section(i: int, section: Section) -> str:
    parts = [f'<section><h2><span class="step">{i}</span>{escape(section.title)}</h2>']
    parts.append(f'<p class="shows">{rich(section.shows)}</p>')
    if section.reading:
        parts.append(f'<p class="reading"><b>How to read it.</b> {rich(section.reading)}</p>')
    if section.finding:
        parts.append(f'<p class="finding">{rich(section.finding)}</p>')
    for row in section.plots:
        figures = "".join(
            f"<figure><figcaption>{rich(plot['title'])}</figcaption>{draw(plot)}</figure>" for plot in row
        )
        parts.append(f'<div class="figures{" two" if len(row) > 1 else ""}">{figures}</div>')
    if section.samples:
        parts.append('<div class="samples">' + "".join(_sample(sample) for sample in section.samples) + "</div>")
    parts += [_table(title, rows, section.fold) for title, rows in section.tables.items()]
    return "".join(parts) + "</section>"


def _sample(sample: Sample) -> str:
    lines = "".join(
        f'<dt class="{tone}">{escape(label)}</dt><dd>{escape(text)}</dd>' for label, text, tone in sample.continuations
    )
    return f'<div class="sample"><div class="prompt">{escape(sample.prompt)} …</div><dl>{lines}</dl></div>'


def _table(title: str, rows: list[dict[str, Any]], fold: int) -> str:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    numeric = {c for c in columns if all(isinstance(row.get(c), int | float | None) for row in rows)}
    kind = {c: ' class="n"' if c in numeric else "" for c in columns}
    head = "".join(f"<th{kind[c]}>{escape(c)}</th>" for c in columns)
    body = "".join(
        "<tr>" + "".join(f"<td{kind[c]}>{_cell(row.get(c))}</td>" for c in columns) + "</tr>" for row in rows
    )
    table = f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    if len(rows) > fold:
        return f"<details><summary>{escape(title)} ({len(rows)} rows)</summary>{table}</details>"
    return f"<h3>{escape(title)}</h3>{table}"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return escape(number(value)) if isinstance(value, float) else rich(str(value))

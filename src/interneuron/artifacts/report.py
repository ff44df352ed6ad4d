"""Report: what a method measured, as named numbers, tables, small arrays and plots-as-data."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import TYPE_CHECKING, Any

from torch import Tensor

from interneuron.artifacts.base import Artifact
from interneuron.core.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from rich.table import Table

MAX_JSON_ARRAY = 100_000


class Report(Artifact):
    """Results of a measurement.

    title    one line
    numbers  name -> number, text, boolean or None
    tables   name -> rows; every row a dict from column to value
    arrays   name -> tensor; kept bit by bit in the tensor file
    plots    name -> plot (see `interneuron.artifacts.plots`)
    notes    a paragraph for the reader

    >>> r = Report(title="Sparsity", numbers={"zeros": 0.25}, tables={"layers": [{"layer": 0, "zeros": 0.5}]})
    >>> r["zeros"]
    0.25
    """

    title: str = ""
    numbers: dict[str, bool | int | float | str | None] = dataclasses.field(default_factory=dict)
    tables: dict[str, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)
    arrays: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    plots: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    notes: str = ""

    def __getitem__(self, name: str) -> Any:
        """A number by its name."""
        if name not in self.numbers:
            raise InputError(
                f"the report {self.title!r} has no number {name!r}, only {', '.join(self.numbers) or 'none'}."
                f"{did_you_mean(name, self.numbers)} Ask for one of those."
            )
        return self.numbers[name]

    def to_json(self) -> str:
        """Everything as JSON text for other programs: arrays as nested lists, NaN and infinities as null.

        Raises:
            InputError: an array of more than 100,000 numbers; that belongs in `save`, which keeps every bit.
        """
        for name, tensor in self.arrays.items():
            if tensor.numel() > MAX_JSON_ARRAY:
                raise InputError(
                    f"array {name!r} has {tensor.numel():,} numbers, to_json takes up to {MAX_JSON_ARRAY:,}. "
                    "Use save(path), which keeps every bit."
                )
        content = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        content["arrays"] = {name: tensor.tolist() for name, tensor in self.arrays.items()}
        return json.dumps({"kind": self.kind, **_for_json(content)}, ensure_ascii=False, allow_nan=False, indent=1)

    def table(self, name: str | None = None) -> Table:
        """A rich table of `tables[name]`, or of the numbers when no name is given; `rich.print` shows it."""
        from rich.table import Table

        if name is None:
            rows: list[dict[str, Any]] = [{"name": key, "value": value} for key, value in self.numbers.items()]
        elif name in self.tables:
            rows = self.tables[name]
        else:
            raise InputError(
                f"the report {self.title!r} has no table {name!r}, only {', '.join(self.tables) or 'none'}."
                f"{did_you_mean(name, self.tables)} Ask for one of those."
            )
        columns = list(dict.fromkeys(column for row in rows for column in row))
        table = Table(title=name or self.title or None)
        for column in columns:
            numeric = any(isinstance(row.get(column), int | float) for row in rows)
            table.add_column(column, justify="right" if numeric else "left")
        for row in rows:
            table.add_row(*(_cell(row.get(column)) for column in columns))
        return table

    def plot(self, name: str | None = None) -> dict[str, Any]:
        """The plot called `name`, or the only one."""
        if name is None and len(self.plots) == 1:
            return next(iter(self.plots.values()))
        if name not in self.plots:
            raise InputError(
                f"the report {self.title!r} has no plot {name!r}, only {', '.join(self.plots) or 'none'}."
                f"{did_you_mean(str(name), self.plots)} Ask for one of those."
            )
        return self.plots[name]


def _cell(value: Any) -> str:
    from rich.markup import escape

    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e6 else f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "" if value is None else escape(str(value))


def _for_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _for_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_for_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

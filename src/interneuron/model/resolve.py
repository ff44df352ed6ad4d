"""From a name to a place: canonical names, globs, other tools' names and module paths, on one model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from interneuron.core.errors import AxisError, SiteNotFound, did_you_mean
from interneuron.model.aliases import canonical_alias
from interneuron.model.family import Family, Layout, lay_out
from interneuron.model.points import Resolved
from interneuron.model.positions import Stream
from interneuron.model.selection import Selection
from interneuron.model.sites import Site, check_axes, is_pattern, match_pattern
from interneuron.model.taps import parse_tap


class Resolver:
    """Finds sites on one module; results are remembered."""

    def __init__(self, module: nn.Module, family: Family | None, tokenizer: Any) -> None:
        self.module = module
        self.layout: Layout = lay_out(module, family)
        self.modules = dict(module.named_modules(remove_duplicate=False))
        self.streams = {name: Stream(tokenizer) for name in self.layout.streams}
        self._known: dict[str, Resolved] = {}

    def resolve(self, wanted: Iterable[str | Site]) -> list[Resolved]:
        """The places of names, globs and Sites, in order and without repeats. Raises SiteNotFound."""
        found: dict[str, Resolved] = {}
        for item in wanted:
            selection = item.selection if isinstance(item, Site) else Selection()
            name = item.name if isinstance(item, Site) else item
            for single in self.expand(name):
                place = self.one(single)
                if selection:
                    check_axes(selection, place.axes or selection.axes, place.name)
                    place = dataclasses.replace(place, selection=selection)
                if found.setdefault(place.name, place).selection != place.selection:
                    raise AxisError(
                        f"{place.name} is named twice with different selections "
                        f"({found[place.name].selection.describe() or 'everything'}; "
                        f"{selection.describe() or 'everything'}): read it once with both, or in "
                        "two nested reads."
                    )
        if not found:
            raise SiteNotFound("no site was named: give at least one, e.g. model.read('layers.*.resid_post').")
        return list(found.values())

    def expand(self, name: str) -> list[str]:
        """All names a glob stands for; the name itself otherwise."""
        if not isinstance(name, str):
            raise SiteNotFound(f"a site is a name or a Site, got {type(name).__name__}: e.g. 'layers.0.resid_post'.")
        if not is_pattern(name):
            return [name]
        if ":" in name:
            path, side = name.split(":", 1)
            matches = [f"{p}:{side}" for p in match_pattern(path, [m for m in self.modules if m])]
        else:
            alias = canonical_alias(name, self.layout.entries) or name
            matches = match_pattern(alias, self.layout.entries)
            if not matches:
                matches = [f"{p}:out" for p in match_pattern(name, [m for m in self.modules if m])]
        if not matches:
            raise SiteNotFound(f"{name!r} matches no site of {self._title()}.{self._hint()}")
        return matches

    def canonical(self, name: str) -> str:
        """The name a place is known by here, for any of its names."""
        return self.one(name).name

    def one(self, name: str) -> Resolved:
        """The place of a single name."""
        place = self._known.get(name)
        if place is None:
            place = self._find(name)
            self._known[name] = place
            self._known.setdefault(place.name, place)
        return place

    def _find(self, name: str) -> Resolved:
        entry = self.layout.entries.get(name)
        if entry is None:
            alias = canonical_alias(name, self.layout.entries)
            entry = self.layout.entries.get(alias) if alias else None
        if entry is not None:
            return Resolved(
                entry.name,
                entry.axes,
                entry.tap,
                self.modules[entry.tap.path],
                self.streams[entry.stream],
                entry.stream,
            )
        return self._module_path(name)

    def _module_path(self, name: str) -> Resolved:
        text = name if ":" in name else f"{name}:out"
        path = text.split(":", 1)[0]
        if path not in self.modules or "|" in text:
            raise SiteNotFound(
                f"{name!r} is not a site of {self._title()}.{did_you_mean(name, self._options())}{self._hint()}"
            )
        tap = parse_tap(text, float, None)
        twin = next(
            (
                e
                for e in self.layout.entries.values()
                if not e.tap.views
                and e.tap.call is None
                and (e.tap.path, e.tap.side, e.tap.key) == (tap.path, tap.side, tap.key)
            ),
            None,
        )
        stream = twin.stream if twin else self._stream_of(path)
        axes = twin.axes if twin else ()
        return Resolved(text, axes, tap, self.modules[path], self.streams[stream], stream)

    def _stream_of(self, path: str) -> str:
        """The stream whose anchor is the nearest module above a path."""
        anchors = [
            (len(anchor), name)
            for name, anchor in self.layout.streams.items()
            if not anchor or path == anchor or path.startswith(anchor + ".")
        ]
        return max(anchors)[1] if anchors else next(iter(self.layout.streams))

    def _title(self) -> str:
        layers = self.layout.n_layers
        return type(self.module).__name__ + (f" (layers 0-{layers - 1})" if layers else "")

    def _options(self) -> list[str]:
        return [*self.layout.entries, *(path for path in self.modules if path)]

    def _hint(self) -> str:
        if self.layout.family is None:
            return (
                " No family maps this module, so it has no canonical names: use module paths such as "
                f"'{next((p for p in self.modules if p), 'module')}:out'. model.sites('*:out') lists them."
            )
        return " model.sites() lists all."

    def sites(self, pattern: str, shapes: Mapping[str, Sequence[int]]) -> list[Site]:
        """Sites by pattern, with the shapes seen so far."""
        names = self.expand(pattern) if self.layout.entries or ":" in pattern else self.expand("*:out")
        out = []
        for name in names:
            place = self.one(name)
            path = f"{place.tap.path}:{place.tap.side}" + (f".{place.tap.key}" if place.tap.key is not None else "")
            shape = shapes.get(place.name)
            out.append(Site(place.name, place.axes, path, tuple(shape) if shape is not None else None))
        return out

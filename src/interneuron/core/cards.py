"""Cards: the one statement from which every list of methods is derived.

A method file states its card right after its imports, in literals only:

    CARD = Card(
        slug="mean_difference",
        family="steer",
        kind="fitter",
        exports=("MeanDifference",),
        paper="Steering Llama 2 via Contrastive Activation Addition",
        year=2024,
        purpose="Direction from the difference of mean activations of two groups of inputs",
    )

The card is read as text (`read_card`), so listing two hundred methods imports none of them. From the cards come
`interneuron methods|show|cite`, the lazy lookup `interneuron.steer.MeanDifference`, the `.pyi` files, the docs tables,
the claims and the conformance tests. Packages add methods with an entry point in the group `interneuron.methods`.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from interneuron.core.errors import InputError, InterneuronError, MethodNotFound, did_you_mean

FAMILIES: dict[str, str] = {
    "measure": "numbers that describe activations: geometry, sparsity, similarity, dimension",
    "decompose": "bases, factors and sparse dictionaries of activations",
    "direction": "concepts as directions or subspaces, and probes that find them",
    "steer": "vectors and maps that change what a model does",
    "circuit": "which parts cause an effect: patching, attribution, circuits",
    "explain": "reasons for single predictions",
    "sparse": "computing with fewer activations",
    "memory": "training and inference in less memory",
    "adapt": "small trained additions to a frozen model",
    "forget": "removing knowledge, concepts or behaviours",
    "layers": "new layers, activations and normalisations",
    "generate": "generative models and their inner representations",
    "brain": "brain recordings and models of them",
    "bench": "benchmarks, surveys and theory made executable",
}

KINDS: dict[str, str] = {
    "fitter": "fit(...) returns an artifact",
    "metric": "a function of tensors that returns a number or a report",
    "layer": "an nn.Module that takes the place of a layer",
    "model": "a small module with its loss",
    "aid": "a loss, callback or context manager around an ordinary training loop",
    "world": "make(seed) returns data whose truth is known",
}

ENTRY_POINTS = "interneuron.methods"

_SLUG = re.compile(r"[a-z][a-z0-9_]*")
_MAX_CARD_LINES = 60


@dataclass(frozen=True, slots=True)
class Card:
    """What a method says about itself.

    `slug` names its file, claim, test, plot and docs page. `exports` are its public names, the entry point first.
    `paper`, `authors`, `year` and `link` make the citation; `purpose` is one line for people who look for a method;
    `needs` are the packages beyond the base install; `claim` is what the paper says it achieves; `id` is the number in
    the catalogue (0 for a baseline that is not in it). `module` and `path` are filled in by the reader.
    """

    slug: str
    family: str
    kind: str
    exports: tuple[str, ...]
    paper: str
    year: int
    purpose: str
    id: int = 0
    authors: str = ""
    link: str = ""
    needs: tuple[str, ...] = ()
    claim: str = ""
    module: str = field(default="", compare=False)
    path: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if not _SLUG.fullmatch(self.slug):
            raise InputError(
                f"card {self.slug!r}: a slug is lower-case letters, digits and '_', e.g. 'mean_difference'"
            )
        for name, value, options in (("family", self.family, FAMILIES), ("kind", self.kind, KINDS)):
            if value not in options:
                raise InputError(
                    f"card {self.slug!r}: {name}={value!r} is unknown.{did_you_mean(value, options)} "
                    f"Use one of {', '.join(options)}"
                )
        for name, value in (("exports", self.exports), ("needs", self.needs)):
            if not isinstance(value, tuple):
                raise InputError(f"card {self.slug!r}: {name}={value!r} is not a tuple. Write ({value!r},)")
        if not self.exports or not all(name.isidentifier() for name in self.exports):
            raise InputError(f"card {self.slug!r}: exports={self.exports!r} must name the public objects, entry first")
        if self.slug in self.exports:
            raise InputError(
                f"card {self.slug!r}: the export {self.slug!r} would be hidden by the module of that name. "
                "Give the object another name"
            )
        if not self.purpose or "\n" in self.purpose:
            raise InputError(f"card {self.slug!r}: purpose must be one line, got {self.purpose!r}")

    @property
    def entry(self) -> str:
        """The name of the public entry point."""
        return self.exports[0]

    @property
    def claim_module(self) -> str:
        """The module of the claim: `interneuron.claims.<family>.<slug>`, or the plug-in module's name with `_claim`."""
        if self.module.startswith("interneuron."):
            return f"interneuron.claims.{self.family}.{self.slug}"
        return f"{self.module}_claim"

    def load(self) -> object:
        """Import the method and return its entry point."""
        return getattr(importlib.import_module(self.module), self.entry)

    def cite(self) -> str:
        """Return a BibTeX entry made of what the card knows."""
        rows = [("title", f"{{{self.paper}}}"), ("author", self.authors), ("year", str(self.year)), ("url", self.link)]
        body = "".join(f"  {name:<6} = {{{value}}},\n" for name, value in rows if value)
        return f"@misc{{{self.slug},\n{body}}}"


_WRITTEN = tuple(f.name for f in fields(Card) if f.name not in {"module", "path"})


def read_card(path: str | Path) -> Card | None:
    """Return the card stated in the Python file `path`, or None when it states none; the file is not imported.

    Raises `InputError` when the card is not made of literals, misses a field, or disagrees with the file's name.
    """
    path = Path(path)
    values = read_statement(path, "CARD", "Card")
    if values is None:
        return None
    for name in values:
        if name not in _WRITTEN:
            raise InputError(f"{path}: a card has no field {name!r}.{did_you_mean(name, _WRITTEN)} Fields: {_WRITTEN}")
    try:
        card = Card(**values)  # type: ignore[arg-type]
    except TypeError as error:
        raise InputError(f"{path}: the card is incomplete: {error}. Required: {_WRITTEN[:7]}") from error
    if card.slug != path.stem:
        raise InputError(f"{path}: the card's slug is {card.slug!r}; it must be the file's name, {path.stem!r}")
    return replace(card, path=str(path))


def read_statement(path: Path, name: str, kind: str) -> dict[str, object] | None:
    """Return the keyword arguments of the statement `name = kind(...)` in a file read as text; None when absent.

    Raises `InputError` when the statement cannot be parsed or a value is not a literal.
    """
    text = path.read_text(encoding="utf-8")
    start = re.search(rf"^{name}(?:\s*:\s*{kind})?\s*=\s*{kind}\(", text, re.MULTILINE)
    if start is None:
        return None
    values: dict[str, object] = {}
    for keyword in _parse_call(path, name, text[start.start() :].splitlines()).keywords:
        try:
            values[str(keyword.arg)] = ast.literal_eval(keyword.value)
        except ValueError as error:
            raise InputError(
                f"{path}: {keyword.arg} of {name} is not a literal. Write the value itself, it is read as text"
            ) from error
    return values


def _parse_call(path: Path, name: str, lines: list[str]) -> ast.Call:
    """Parse the lines of the statement alone: parsing two hundred whole files would take half a second."""
    for end in range(1, min(len(lines), _MAX_CARD_LINES) + 1):
        if ")" not in lines[end - 1]:
            continue
        try:
            statement = ast.parse("\n".join(lines[:end])).body[0]
        except SyntaxError:
            continue
        call = statement.value if isinstance(statement, ast.Assign | ast.AnnAssign) else None
        if isinstance(call, ast.Call) and not call.args:
            return call
        break
    raise InputError(f"{path}: {name} cannot be read. Write {name} = ...(field=value, ...) with literals only")


def all_cards(family: str | None = None) -> list[Card]:
    """Return the cards of this package and of the installed plug-ins, by family and slug.

    A plug-in that cannot be read is left out with a warning; a mistake in the package's own cards raises.
    """
    if family is not None and family not in FAMILIES:
        raise MethodNotFound(f"no family {family!r}.{did_you_mean(family, FAMILIES)} Families: {', '.join(FAMILIES)}")
    found: dict[str, Card] = {}
    for card in _own_cards([family] if family else FAMILIES):
        _add(found, card)
    for point in entry_points(group=ENTRY_POINTS):
        try:
            for card in _plugin_cards(point):
                if family in (None, card.family):
                    _add(found, card)
        except (InterneuronError, OSError) as error:
            warnings.warn(f"plug-in {point.value!r} is left out: {error}", RuntimeWarning, stacklevel=2)
    order = list(FAMILIES)
    return sorted(found.values(), key=lambda card: (order.index(card.family), card.slug))


def find_card(slug: str) -> Card:
    """Return the card of that slug; `MethodNotFound` suggests the nearest one."""
    cards = {card.slug: card for card in all_cards()}
    if slug in cards:
        return cards[slug]
    by_export = {name: card for card in cards.values() for name in card.exports}
    if slug in by_export:
        return by_export[slug]
    raise MethodNotFound(
        f"no method {slug!r} among {len(cards)}.{did_you_mean(slug, [*cards, *by_export])} "
        "`interneuron methods` lists all, `interneuron methods --search WORDS` finds by purpose"
    )


def methods(family: str | None = None, search: str = "") -> list[Card]:
    """Return the cards of all methods, of one family, or the ones that fit the words of `search`, best first."""
    cards = all_cards(family)
    if not search:
        return cards
    from interneuron.core.search import search_cards

    return search_cards(search, cards)


def cite(slug: str) -> str:
    """Return the BibTeX entry of a method's paper; `MethodNotFound` suggests the nearest slug."""
    return find_card(slug).cite()


def _own_cards(families: Iterable[str]) -> Iterator[Card]:
    package = Path(__file__).resolve().parent.parent
    for family in families:
        for path in sorted((package / family).glob("*.py")):
            card = read_card(path)
            if card is None:
                continue
            if card.family != family:
                raise InputError(f"{path}: the card's family is {card.family!r}; it must be its folder's, {family!r}")
            yield replace(card, module=f"interneuron.{family}.{card.slug}")


def _plugin_cards(point: EntryPoint) -> Iterator[Card]:
    """Yield the cards of one entry point, which names a module or a package of modules; nothing is imported."""
    top, *rest = point.module.split(".")
    spec = importlib.util.find_spec(top)
    roots = [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []
    if spec is not None and spec.origin and not roots:
        roots = [Path(spec.origin).with_suffix("")]
    for root in roots:
        place = root.joinpath(*rest)
        files = [place.with_suffix(".py")] if place.with_suffix(".py").is_file() else sorted(place.glob("*.py"))
        for path in files:
            card = read_card(path)
            if card is not None:
                inside = "" if path == place.with_suffix(".py") else f".{path.stem}"
                yield replace(card, module=point.module + inside)


def _add(found: dict[str, Card], card: Card) -> None:
    if card.slug in found:
        raise InputError(
            f"two methods are called {card.slug!r}: {found[card.slug].path} and {card.path}. Rename one of the files"
        )
    found[card.slug] = card


def lazy_family(package: str) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return the `__getattr__` and `__dir__` of a family's `__init__.py`, which is one line:

        __getattr__, __dir__ = lazy_family(__name__)

    `interneuron.steer.MeanDifference` then imports only the file that exports it, the first time it is asked for.
    """
    family = package.rpartition(".")[2]

    def __getattr__(name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        cards = all_cards(family)
        for card in cards:
            if name in card.exports:
                value = getattr(importlib.import_module(card.module), name)
                setattr(sys.modules[package], name, value)
                return value
            if name == card.slug:
                return importlib.import_module(card.module)
        names = [export for card in cards for export in card.exports]
        raise AttributeError(
            f"{package} has no method {name!r}.{did_you_mean(name, names)} "
            f"`interneuron methods --family {family}` lists all"
        )

    def __dir__() -> list[str]:
        return sorted(export for card in all_cards(family) for export in card.exports)

    return __getattr__, __dir__

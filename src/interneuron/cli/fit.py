"""`interneuron fit SLUG`: any method that fits something; what it takes is read off the signature of its `fit`."""

from __future__ import annotations

import inspect
import json
import re
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interneuron.core.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from interneuron.core.cards import Card

SITES = ("site", "sites")
REQUIRED = inspect.Parameter.empty

EPILOG = (
    "Example:  interneuron fit mean_difference --model lm --site layers.2.resid_post "
    "--data positive=glad.txt --data negative=sad.txt --out mood"
)


def fit(
    slug: Annotated[str, typer.Argument(help="Name of a method whose kind is fitter, e.g. mean_difference.")],
    model: Annotated[str, typer.Option(help="A shipped model, a local folder or a Hugging Face id.")] = "",
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="FILE.jsonl or FILE.json with fields named like the arguments of fit, FILE.safetensors with tensors "
            "of those names, or NAME=FILE with one text per line. Repeatable."
        ),
    ] = None,
    site: Annotated[list[str] | None, typer.Option(help="Where in the model. Repeatable.")] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", "-o", help="NAME=VALUE, an option of the method. Repeatable.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the artifact (default: the name of the method).")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder if it exists.")] = False,
) -> None:
    """Fit a method to a model or to data and save what it learned."""
    from interneuron.artifacts import Artifact
    from interneuron.core.cards import find_card

    card = find_card(slug)
    target = out or Path(card.slug)
    if target.exists() and not overwrite:
        raise InputError(f"{target} exists: expected a new folder. Choose another --out, or pass --overwrite.")
    call = Call(card)
    call.add_options(option or [])
    call.add_sites(site or [])
    for given in data or []:
        call.add_data(given)
    run = call.ready(model)
    began = time.perf_counter()
    made = run()
    if not isinstance(made, Artifact):
        raise InputError(f"{card.slug}: fit returned {type(made).__name__}, no artifact to save. Use it from Python.")
    made.save(target)
    typer.echo(f"{made}\nsaved to {target} after {time.perf_counter() - began:.1f} s")
    typer.echo(f"load it with inn.load_artifact({str(target)!r})")


class Call:
    """A call of a method in the making: options of its class and arguments of its `fit`, named as they are there.

    Raises InputError for a method that fits nothing.
    """

    def __init__(self, card: Card) -> None:
        self.card = card
        self.entry: Any = card.load()
        fit: Any = getattr(self.entry, "fit", None)
        if card.kind != "fitter" or not callable(fit):
            raise InputError(
                f"{card.slug} is a {card.kind}: expected a fitter. Use interneuron.{card.family}.{card.entry} from "
                "Python, or list the fitters: interneuron methods"
            )
        self.options = _parameters(self.entry)
        self.arguments = {k: v for k, v in _parameters(fit).items() if k != "self"}
        self.values: dict[str, Any] = {}

    def add_options(self, given: list[str]) -> None:
        """Take NAME=VALUE texts."""
        for item in given:
            name, equals, text = item.partition("=")
            if not equals:
                raise InputError(f"--option {item!r} is no NAME=VALUE: write, for example, --option batch_size=16")
            if name == "model":
                raise InputError("--option model=...: the model has an option of its own. Write --model NAME")
            self._add(name, _literal(text, self._parameter(name)), f"--option {item}")

    def add_sites(self, sites: list[str]) -> None:
        """Take the sites under the name the method has for them."""
        if not sites:
            return
        name = next((n for n in SITES if n in self.arguments or n in self.options), None)
        if name is None:
            raise InputError(f"--site: {self.card.slug} takes no site, only {', '.join(self._known())}. Leave it out")
        kind = str(self._parameter(name).annotation)
        several = name == "sites" or len(sites) > 1
        if several and not re.search(r"Sequence|tuple|list|Any", kind):
            raise InputError(f"--site was given {len(sites)} times: {self.card.slug} takes one ({kind}). Give one")
        self._add(name, tuple(sites) if several else sites[0], "--site")

    def add_data(self, given: str) -> None:
        """Take a file of named fields, or one text file for one argument."""
        name, equals, path = given.partition("=")
        if equals and name.isidentifier():
            self._add(name, read_lines(Path(path)), f"--data {given}")
            return
        file = Path(given)
        if file.suffix in READERS:
            for field, value in READERS[file.suffix](file).items():
                self._add(field, value, str(file))
            return
        open_ones = [n for n, p in self.arguments.items() if n not in ("model", *SITES) and n not in self.values]
        if len(open_ones) != 1:
            raise InputError(
                f"--data {given}: a text file fits one argument, {self.card.slug} takes "
                f"{', '.join(open_ones) or 'none'}. Write NAME=FILE"
            )
        self._add(open_ones[0], read_lines(file), f"--data {given}")

    def ready(self, model: str) -> Callable[[], Any]:
        """Check that nothing is missing, load the model and return the call; nothing has run yet."""
        if bool(model) and "model" not in self.arguments:
            raise InputError(f"--model {model}: {self.card.slug} fits without a model. Leave it out")
        parameters = {**self.options, **self.arguments}
        present = {*self.values, *(["model"] if model else [])}
        missing = [n for n, p in parameters.items() if p.default is REQUIRED and n not in present]
        if missing:
            raise InputError(self._missing(missing[0], parameters[missing[0]]))
        module = sys.modules[self.card.module]
        values = {n: _of_type(v, str(parameters[n].annotation), module) for n, v in self.values.items()}
        if model:
            from interneuron.cli.model import load_quietly

            values["model"] = load_quietly(model)
        options = {n: v for n, v in values.items() if n in self.options}
        arguments = {n: v for n, v in values.items() if n in self.arguments}
        return lambda: self.entry(**options).fit(**arguments)

    def _known(self) -> list[str]:
        return [*self.arguments, *self.options]

    def _parameter(self, name: str) -> inspect.Parameter:
        found = self.arguments.get(name) or self.options.get(name)
        if found is None:
            raise InputError(
                f"{self.card.slug} has no argument or option {name!r}.{did_you_mean(name, self._known())} "
                f"It takes {', '.join(self._known())}"
            )
        return found

    def _add(self, name: str, value: Any, source: str) -> None:
        self._parameter(name)
        if name in self.values:
            raise InputError(f"{source}: {name!r} was given before: expected it once. Leave one out")
        self.values[name] = value

    def _missing(self, name: str, parameter: inspect.Parameter) -> str:
        kind = parameter.annotation if parameter.annotation is not REQUIRED else "a value"
        how = f"--data {name}=FILE, or as the field {name!r} of --data FILE.jsonl"
        if name == "model":
            how = "--model NAME"
        elif name in SITES:
            how = "--site NAME"
        elif name in self.options:
            how = f"--option {name}=VALUE"
        return f"{self.card.slug} needs {name!r} ({kind}), which is missing. Give it with {how}"


def read_lines(file: Path) -> list[str]:
    """The lines of a text file that hold text."""
    lines = [line.strip() for line in _text(file).splitlines() if line.strip()]
    if not lines:
        raise InputError(f"{file} holds no text: expected one text per line. Fill it")
    return lines


def read_fields(file: Path) -> dict[str, Any]:
    """The fields of one JSON object."""
    return _object(_text(file), str(file))


def read_columns(file: Path) -> dict[str, list[Any]]:
    """The columns of a JSON-lines file: by field, the values of the lines that have it, in order."""
    columns: dict[str, list[Any]] = {}
    for i, line in enumerate(_text(file).splitlines(), 1):
        if line.strip():
            for name, value in _object(line, f"{file}, line {i}").items():
                columns.setdefault(name, []).append(value)
    return columns


def read_tensors(file: Path) -> dict[str, Any]:
    """The tensors of a safetensors file by name."""
    from interneuron.core.files import load_tensors

    return dict(load_tensors(file))


READERS: Mapping[str, Callable[[Path], dict[str, Any]]] = {
    ".json": read_fields,
    ".jsonl": read_columns,
    ".safetensors": read_tensors,
}


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}. Give a file that exists") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text (byte {error.start}). Convert it first") from error


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f'{where} is no JSON ({error.msg} at {error.pos}). Write {{"positive": ...}}') from error
    if not isinstance(found, dict):
        raise InputError(f"{where} is a {type(found).__name__}: expected an object with fields named like arguments")
    return found


def _parameters(function: Any) -> dict[str, inspect.Parameter]:
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {n: p for n, p in inspect.signature(function).parameters.items() if p.kind not in kinds}


def _literal(text: str, parameter: inspect.Parameter) -> Any:
    """A text from the command line as the JSON value it spells, or as the text it is."""
    if str(parameter.annotation) in ("str", "str | None"):
        return text
    try:
        return json.loads({"True": "true", "False": "false", "None": "null"}.get(text, text))
    except json.JSONDecodeError:
        return text


def _of_type(value: Any, annotation: str, module: Any) -> Any:
    """What the annotation asks for: a tensor made of nested lists, a Store or an artifact opened from its path."""
    words = set(re.findall(r"[A-Za-z_]+", annotation))
    if isinstance(value, list) and "Tensor" in words and "Sequence" not in words:
        import torch

        return torch.tensor(value)
    if isinstance(value, list) and "tuple" in words:
        return tuple(value)
    if isinstance(value, str):
        from interneuron.artifacts import Artifact, load_artifact

        if "Store" in words:
            from interneuron.store import Store

            return Store.open(value)
        kinds = [getattr(module, word, None) for word in words]
        if any(isinstance(kind, type) and issubclass(kind, Artifact) for kind in kinds):
            return load_artifact(value)
    return value

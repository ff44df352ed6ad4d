"""`interneuron convert IN OUT --to FORMAT` and `interneuron inspect FILE`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from interneuron.core.errors import InputError, InterneuronError

NATIVE, STORE = "interneuron", "store"
Options = Annotated[
    list[str] | None, typer.Option("--option", "-o", help="NAME=VALUE for the format; repeat for several.")
]


def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="File or folder to read.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="File or folder to write.")],
    to: Annotated[str, typer.Option("--to", help="Format to write; 'interneuron' for our own, 'store' for rows.")],
    source_format: Annotated[str, typer.Option("--from", help="Format to read; default: look at the file.")] = "",
    model: Annotated[str, typer.Option(help="Model to check a dictionary on: id, folder or organism.")] = "",
    text: Annotated[Path | None, typer.Option(help="Text file for the check; a line is one input.")] = None,
    read_option: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE for reading, such as site=layers.3.mlp.out.")
    ] = None,
    option: Options = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")] = False,
) -> None:
    """Read a dictionary, direction, edit, latents or cached activations of one tool and write it for another.

    Example: interneuron convert sae/layer_3 out --to sparsify --model gpt2 --text lines.txt
    """
    from interneuron.artifacts import formats

    if to not in (NATIVE, STORE):
        formats.format_named(to)  # a misspelt name is said before anything is read
    if target.exists() and not overwrite:
        raise InputError(f"{target} exists. Choose another name, or pass --overwrite.")
    options = {**_options(read_option), **_check(model, text)}
    value, name, notes = _read(source, source_format or None, options)
    if to == STORE or (to == NATIVE and _is_rows(value)):
        _save_rows(value, target)
    elif to == NATIVE:
        _save(value, target)
    else:
        formats.write(value, target, to, **_options(option))
    for note in notes:
        typer.echo(f"  {note}")
    typer.echo(f"{source} ({name}) -> {target} ({to})")


def inspect(
    path: Annotated[Path, typer.Argument(help="File or folder of any format.")],
) -> None:
    """Say what a file or folder is: format, tensors, configuration, and how it would be read.

    Example: interneuron inspect sae/layer_3
    """
    from interneuron.artifacts import formats

    found = formats.inspect(path)
    typer.echo(f"{found['path']}: {found['format']}, {found['title']}")
    for name, entry in found["tensors"].items():
        typer.echo(f"  {name:<40} {entry['dtype']:<5} {entry['shape']}")
    for name, value in found["config"].items():
        typer.echo(f"  {name}: {_short(value)}")
    for problem in found.get("problems", []):
        typer.echo(f"  problem: {problem}")
    if found["format"] != NATIVE:
        try:
            imported = formats.read(path)
        except InterneuronError as error:
            typer.echo(f"  reading it fails: {error}")
        else:
            for line in _described(imported.value):
                typer.echo(f"  reads as {line}")
            for note in imported.notes:
                typer.echo(f"  {note}")


def _described(value: Any) -> list[str]:
    """One line per artifact, or per edit: what it does and where, without its numbers."""
    if isinstance(value, dict):
        return [f"{name}: {_short(member, 200)}" for name, member in list(value.items())[:20]]
    if not isinstance(value, tuple):
        return [_short(value, 200)]
    return [" ".join(filter(None, (edit.kind, "at", str(edit.site), edit.selection.describe()))) for edit in value[:20]]


def _read(source: Path, source_format: str | None, options: dict[str, Any]) -> tuple[Any, str, tuple[str, ...]]:
    from interneuron.artifacts import formats, load_artifact

    native = (source / "artifact.json").is_file() or source.name == "artifact.json"
    if source_format in (None, STORE) and (source / "manifest.log").is_file():
        from interneuron.store import Store

        return Store.open(source), STORE, ()
    if source_format == NATIVE or (source_format is None and native):
        return load_artifact(source), NATIVE, ()
    if source_format is None and (source / "edit.json").is_file():
        from interneuron.model.edit_files import load_edit

        return load_edit(source), NATIVE, ()
    found = formats.read(source, source_format, **options)
    return found.value, found.format, found.notes


def _is_rows(value: Any) -> bool:
    from interneuron.artifacts.formats.activation_stores import CachedActivations

    return isinstance(value, CachedActivations)


def _save_rows(value: Any, target: Path) -> None:
    from interneuron.artifacts.formats.activation_stores import store_from_latents
    from interneuron.artifacts.latents import Latents

    if _is_rows(value):
        value.to_store(target)
    elif isinstance(value, Latents):
        store_from_latents(value, target)
    else:
        raise InputError(
            f"a store holds cached activations or latents, this is a {type(value).__name__}. Use --to {NATIVE}."
        )


def _save(value: Any, target: Path) -> None:
    from interneuron.artifacts.base import Artifact

    if isinstance(value, Artifact):
        value.save(target)
    elif isinstance(value, dict):
        for name, member in value.items():
            member.save(target / name)
    else:
        from interneuron.model.edit_files import save_edits

        save_edits(value, target)


def _check(model: str, text: Path | None) -> dict[str, Any]:
    if bool(model) != (text is not None):
        raise InputError("the check needs both --model and --text. Give both or neither.")
    if text is None:
        return {}
    import interneuron as inn

    lines = [line for line in text.read_text(encoding="utf-8").splitlines() if line.strip()][:64]
    return {"model": inn.load(model), "inputs": lines}


def _options(given: list[str] | None) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for item in given or []:
        name, equals, value = item.partition("=")
        if not equals or not name.isidentifier():
            raise InputError(f"{item!r} is no NAME=VALUE. Write, for example, --option layer_count=32.")
        out[name] = _number(value)
    return out


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _short(value: Any, length: int = 100) -> str:
    text = str(value)
    return text if len(text) <= length else text[:length] + "..."

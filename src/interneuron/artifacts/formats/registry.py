"""The formats there are, and the four verbs over them: detect, read, write, inspect."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Any

from interneuron.artifacts.formats.format import Format, Imported
from interneuron.core import files, strict_json
from interneuron.core.errors import ArtifactError, InputError, InterneuronError, did_you_mean
from interneuron.store import Store

NATIVE, MANIFEST = "interneuron", "manifest.log"


def all_formats() -> dict[str, Format]:
    """Every format by name, in alphabetical order."""
    package = importlib.import_module(__package__ or "interneuron.artifacts.formats")
    modules = (importlib.import_module(f"{package.__name__}.{m.name}") for m in pkgutil.iter_modules(package.__path__))
    found = [module.FORMAT for module in modules if isinstance(getattr(module, "FORMAT", None), Format)]
    return {item.name: item for item in sorted(found, key=lambda item: item.name)}


def format_named(name: str) -> Format:
    """The format called `name`. Raises InputError with the nearest name."""
    known = all_formats()
    if name not in known:
        raise InputError(f"format {name!r} is unknown, expected one of {', '.join(known)}.{did_you_mean(name, known)}")
    return known[name]


def detect(path: str | Path) -> Format:
    """The one format `path` looks like.

    Raises:
        ArtifactError: nothing there, no format recognises it, or several do.
    """
    where = Path(path)
    if not where.exists() and not where.is_symlink():
        raise ArtifactError(f"{where}: nothing there, expected a file or folder of another tool. Check the path.")
    found = [item for item in all_formats().values() if _recognises(item, where)]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(item.name for item in found)
        raise ArtifactError(f"{where}: could be {names}. Say which with format=... (or --from on the command line).")
    raise ArtifactError(
        f"{where}: not recognised as any of {', '.join(all_formats())}. Name the format with format=... "
        "to learn what is missing, or check that the folder is complete."
    )


def _recognises(item: Format, where: Path) -> bool:
    try:
        return item.detect(where)
    except (InterneuronError, OSError):
        return False


def read(
    path: str | Path,
    format: str | None = None,
    *,
    activations: Any = None,
    model: Any = None,
    inputs: Any = None,
    **options: Any,
) -> Imported:
    """Read a file or folder of another tool, and check a dictionary on activations when there are any.

    format         its name; None looks at the file
    activations    rows [N D] of its site, or {site: rows}: the reading that fits them is taken (`fit_check.check_fit`)
    model, inputs  a Model and texts or tokens to read those rows from (`fit_check.check_on_model`)
    options        those of the format, such as `site=`, `scale=`, `hookpoint=`

    Raises:
        ArtifactError, UnsafeFile: damaged, incomplete, or not what it claims to be.
        SelfCheckFailed: no reading fits the activations, or several that differ do.
        InputError: an option the format does not take.
        MissingExtra: the format needs a package that is not installed.
    """
    where = Path(path)
    found = detect(where) if format is None else format_named(format)
    if found.reads is None:
        raise InputError(f"{found.name}: cannot be read from a file, {found.title}. See docs/formats.md.")
    notes: list[str] = []
    try:
        value = found.reads(where, notes, **options)
    except TypeError as error:
        raise InputError(f"{found.name}: {error}. Leave that option out.") from error
    except OSError as error:
        raise ArtifactError(
            f"{where}: cannot be read as {found.name} ({error.strerror or error}). Check that the folder is complete."
        ) from error
    if activations is not None or model is not None:
        value = _check(value, activations, model, inputs, notes)
    elif "dictionary" in found.holds:
        notes.append("not checked on activations: pass activations=, or model= and inputs=")
    return Imported(value, found.name, tuple(notes))


def _check(value: Any, activations: Any, model: Any, inputs: Any, notes: list[str]) -> Any:
    from interneuron.artifacts.dictionary import Dictionary
    from interneuron.artifacts.fit_check import check_fit, check_on_model
    from interneuron.artifacts.sequence_check import check_sequences, check_sequences_on_model
    from interneuron.artifacts.temporal import TemporalDictionary

    if isinstance(value, dict):
        return {name: _check(member, activations, model, inputs, notes) for name, member in value.items()}
    if activations is None and inputs is None:
        raise InputError("model= was given without inputs=. Give a few texts or tokens to run it on.")
    if isinstance(value, TemporalDictionary):
        checked, report = (
            check_sequences(value, activations)
            if activations is not None
            else check_sequences_on_model(value, model, inputs)
        )
        notes.append(report.notes)
        return checked
    if not isinstance(value, Dictionary):
        raise InputError(
            f"a {type(value).__name__} cannot be checked on activations, only a dictionary. Leave them out."
        )
    if activations is not None:
        checked, report = check_fit(value, activations)
    else:
        checked, report = check_on_model(value, model, inputs)
    notes.append(report.notes)
    return checked


def write(value: Any, path: str | Path, format: str, **options: Any) -> Path:
    """Write a dictionary, direction, edit or latents as `format`; return the path.

    Raises:
        InputError: the format cannot hold this, or is given an option it does not take.
        ArtifactError: the path cannot be written.
    """
    found = format_named(format)
    if found.writes is None:
        raise InputError(f"{found.name}: interneuron does not write it. Choose another format.")
    try:
        return found.writes(value, Path(path), **options)
    except TypeError as error:
        raise InputError(f"{found.name}: {error}. Leave that option out.") from error
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be written ({error.strerror or error}). Choose another place.") from error


def inspect(path: str | Path) -> dict[str, Any]:
    """What a file or folder is, read from names, JSON and headers only: format, title, tensors, configuration."""
    where = Path(path)
    if (where / "artifact.json").is_file() or where.name == "artifact.json":
        document = files.read_json(where / "artifact.json" if where.is_dir() else where)
        return {
            "path": str(where),
            "format": NATIVE,
            "title": f"an artifact of kind {document.get('kind')}",
            "tensors": (document.get("tensors") or {}).get("entries", {}),
            "config": document.get("fields", {}),
        }
    if (where / MANIFEST).is_file():
        store = Store.open(where)
        columns = {name: store[name].column for name in store.sites}
        return {
            "path": str(where), "format": NATIVE, "title": f"a store of {store.n_rows:,} rows",
            "tensors": {name: {"dtype": c.dtype, "shape": [store.n_rows, *c.shape]} for name, c in columns.items()},
            "config": store.identity,
        }  # fmt: skip
    found = detect(where)
    out: dict[str, Any] = {"path": str(where), "format": found.name, "title": found.title, "holds": list(found.holds)}
    out["tensors"], out["config"] = {}, {}
    members = sorted(p for p in where.rglob("*") if p.is_file()) if where.is_dir() else [where]
    for member in members[:1000]:
        label = str(member.relative_to(where)) if where.is_dir() else member.name
        try:
            if member.suffix == ".safetensors":
                header = files.read_tensor_header(member)
                for entry in header.entries:
                    name = f"{label}:{entry.name}" if len(members) > 2 else entry.name
                    out["tensors"][name] = {"dtype": entry.dtype, "shape": list(entry.shape)}
            elif member.suffix == ".json" and member.stat().st_size <= strict_json.MAX_BYTES:
                out["config"][label] = files.read_json(member)
        except InterneuronError as error:
            out.setdefault("problems", []).append(str(error))
    return out

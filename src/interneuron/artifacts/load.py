"""From a folder back to an artifact, and the kinds there are (found, never listed by hand)."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from interneuron.artifacts import fields, folder
from interneuron.artifacts.base import Artifact, check_fingerprint
from interneuron.core.errors import ArtifactError, InputError, ShapeError, did_you_mean


def load_artifact(
    path: str | Path, model: Any = None, allow_mismatch: bool = False, max_bytes: int = folder.MAX_BYTES
) -> Artifact:
    """Load the artifact saved in folder `path`, on the CPU, after judging every byte count it declares.

    path            the folder, or the artifact.json in it
    model           the Model (or its fingerprint) it will be used with; None checks nothing
    allow_mismatch  accept an artifact fitted on another model
    max_bytes       refuse larger tensor files unread

    Raises:
        ArtifactError: nothing there, damaged, of an unknown version or kind.
        UnsafeFile: a file that breaks the limits or is not what its name says.
        FingerprintMismatch: fitted on another model than `model`.

    >>> import tempfile, torch
    >>> from interneuron.artifacts import Direction
    >>> with tempfile.TemporaryDirectory() as home:
    ...     _ = Direction(torch.ones(4), site="layers.0.resid_post").save(home)
    ...     load_artifact(home).norm.item()
    2.0
    """
    home = Path(path)
    if home.name == folder.DOCUMENT and not home.is_dir():
        home = home.parent
    return build(lambda name: home / name, str(home), model, allow_mismatch, max_bytes)


def build(
    locate: Callable[[str], Path],
    what: str,
    model: Any = None,
    allow_mismatch: bool = False,
    max_bytes: int = folder.MAX_BYTES,
) -> Artifact:
    """`load_artifact` for files that `locate(name)` finds."""
    document, tensors = folder.read_folder(locate, what, max_bytes)
    cls = kind_named(document["kind"], document["fields"].get("slug"), what)
    values = fields.join(cls, document["fields"], tensors, what)
    if model is not None and not allow_mismatch:
        check_fingerprint(values.get("fingerprint", {}), model, what)
    try:
        return cls(**values)
    except (ShapeError, InputError) as error:
        raise ArtifactError(f"{what}: what is saved here is no sound {cls.kind}: {error}") from error


def kinds() -> dict[str, type[Artifact]]:
    """Every kind that can be loaded now, by name: those of this package and those of all methods imported so far."""
    package = importlib.import_module("interneuron.artifacts")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return {cls.kind: cls for cls in _descendants(Artifact)}


def kind_named(name: str, slug: object, what: str) -> type[Artifact]:
    """The class of kind `name`; when it is not imported yet, the method file with card `slug` is.

    A file can thus only ever cause the import of a module that is already installed as a method.
    """
    for prepare in (lambda: None, kinds, lambda: _import_method(slug)):
        prepare()
        found = {f"{cls.__module__}.{cls.__qualname__}": cls for cls in _descendants(Artifact) if cls.kind == name}
        if len(found) > 1:
            raise ArtifactError(f"{what}: kind {name!r} is ambiguous: {', '.join(found)}. Rename one of these classes.")
        if found:
            return next(iter(found.values()))
    raise ArtifactError(
        f"{what}: kind {name[:60]!r} is unknown, expected one of {', '.join(sorted(kinds()))}."
        f"{did_you_mean(name, kinds())} Import or install the method that defines it, or upgrade interneuron."
    )


def _descendants(cls: type[Artifact]) -> Iterator[type[Artifact]]:
    for child in cls.__subclasses__():
        yield child
        yield from _descendants(child)


def _import_method(slug: object) -> None:
    from interneuron.core.cards import all_cards

    for card in all_cards():
        if card.slug == slug:
            importlib.import_module(card.module)

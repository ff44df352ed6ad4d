"""The library's errors: one line each, saying what and where, expected and got, and what to do.

Every type is an `InterneuronError` and also the builtin a caller would expect (`LookupError`, `ValueError`, ...), so
`except ValueError` keeps working and `except InterneuronError` catches everything that is ours.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class InterneuronError(Exception):
    """Base of every error the library raises on purpose."""


class SiteNotFound(InterneuronError, LookupError):
    """A site name, glob or module path that the model does not have."""


class SiteDidNotFire(InterneuronError, RuntimeError):
    """A site or edit was installed but nothing flowed through it before the context closed."""


class SelfCheckFailed(InterneuronError, RuntimeError):
    """The canonical map of a model disagrees with the numbers that flow through it."""


class AxisError(InterneuronError, ValueError):
    """A selection names an axis the site does not have, or an index outside that axis."""


class PositionError(InterneuronError, ValueError):
    """A position, span or token that the sequence does not contain."""


class ShapeError(InterneuronError, ValueError):
    """A tensor whose shape or dtype does not fit the place it is meant for."""


class EditError(InterneuronError, ValueError):
    """An edit that cannot be built, composed, saved or applied as asked."""


class InputError(InterneuronError, ValueError):
    """Input of a kind the model or function does not take."""


class UnsupportedModel(InterneuronError, RuntimeError):
    """The module cannot be served exactly (compiled, fused kernel, ...); the message gives the reason."""


class ArtifactError(InterneuronError, ValueError):
    """A saved file is damaged, incomplete, of an unknown version or not what it claims to be."""


class UnsafeFile(ArtifactError):
    """A file that could run code, escape its folder or exhaust memory; it is refused unread."""


class FingerprintMismatch(ArtifactError):
    """An artifact or store was made with another model; the message says what differs."""


class StoreError(InterneuronError, RuntimeError):
    """An activation store cannot be written, opened or read as asked."""


class CorruptStore(StoreError):
    """Bytes on disk do not match their recorded hash."""


class MethodNotFound(InterneuronError, LookupError):
    """No method, claim or organism of that name."""


class TrainingError(InterneuronError, RuntimeError):
    """A training run cannot start, resume or finish."""


class MissingExtra(InterneuronError, ImportError):
    """An optional package is absent; the message names the extra that installs it."""


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the nearest option, or an empty string when none is near."""
    near = difflib.get_close_matches(name, list(options), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


def need(package: str, extra: str) -> ModuleType:
    """Import an optional package, or raise `MissingExtra` naming the extra that installs it.

    >>> need("json", extra="none").__name__
    'json'
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingExtra(
            f"this needs the package {package!r}, which is not installed. Run: pip install 'interneuron[{extra}]'"
        ) from error

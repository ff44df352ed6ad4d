"""How the declared fields of an artifact become tensors and plain JSON, and come back checked against the declaration.

The annotation is the declaration: `Tensor`, `Tensor | None` and `dict[str, Tensor]` go to the tensor file (the last as
`field.key`); text, numbers, booleans, None and lists, tuples and dicts of them go to the JSON.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from torch import Tensor

from interneuron.core.errors import ArtifactError, ShapeError, did_you_mean

NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def resolve(cls: type) -> dict[str, Any]:
    """Field name -> resolved type, in order of declaration; evaluates the annotations, so it is done once per class."""
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def declared(cls: Any) -> dict[str, Any]:
    """What `resolve` found when the class was defined: while a file is read, nothing is evaluated."""
    return cls._declared


def is_tensor(hint: Any) -> bool:
    """Whether `hint` declares one tensor (plain, optional, or a jaxtyping shape of one)."""
    if get_origin(hint) in (Union, types.UnionType):
        return any(is_tensor(option) for option in get_args(hint))
    return hint is Tensor or getattr(hint, "array_type", None) is Tensor


def is_tensor_map(hint: Any) -> bool:
    """Whether `hint` declares a dict of named tensors."""
    return get_origin(hint) in (dict, Mapping) and is_tensor(get_args(hint)[1])


def settle(artifact: Any) -> None:
    """Bring every field of a new artifact into the form it will have after saving and loading, or refuse it.

    Raises:
        ShapeError: something else where a tensor is declared.
        ArtifactError: a plain field JSON cannot hold, or of another type than declared.
    """
    for name, hint in declared(type(artifact)).items():
        value, where = getattr(artifact, name), f"{type(artifact).__name__}.{name}"
        wrong: list[str] = []
        if is_tensor_map(hint):
            value = dict(value)
            wrong = [f"{where}[{key!r}]" for key, item in value.items() if not isinstance(item, Tensor)]
        elif is_tensor(hint):
            if not isinstance(value, Tensor) and not (value is None and type(None) in get_args(hint)):
                wrong = [where]
        else:
            value = conform(from_plain(to_plain(value, where)), hint, where)
        if wrong:
            raise ShapeError(f"{wrong[0]} is no tensor, expected torch.Tensor. Pass torch.as_tensor(...).")
        object.__setattr__(artifact, name, value)


def split(artifact: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the plain fields, ready for JSON, and the tensors of an artifact."""
    plain: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for name, hint in declared(type(artifact)).items():
        value = getattr(artifact, name)
        where = f"{type(artifact).__name__}.{name}"
        if is_tensor_map(hint):
            tensors.update({f"{name}.{key}": value[key] for key in value})
        elif is_tensor(hint) and value is not None:
            tensors[name] = value
        else:
            plain[name] = to_plain(value, where)
    return plain, tensors


def join(cls: type, plain: dict[str, Any], tensors: dict[str, Tensor], what: str) -> dict[str, Any]:
    """Return the constructor arguments of `cls`, or raise ArtifactError where the file does not fit the declaration."""
    hints = declared(cls)
    values: dict[str, Any] = {name: {} for name, hint in hints.items() if is_tensor_map(hint)}
    for full, tensor in tensors.items():
        name, _, key = full.partition(".")
        hint = hints.get(name)
        if hint is not None and key and is_tensor_map(hint):
            values[name][key] = tensor
        elif hint is not None and not key and is_tensor(hint):
            values[name] = tensor
        else:
            raise ArtifactError(
                f"{what}: holds a tensor {full!r} that {cls.__name__} does not declare.{did_you_mean(full, hints)} "
                "The file was written by another version or by something else; refit or convert it."
            )
    for name, value in plain.items():
        if name not in hints or name in values or (is_tensor(hints[name]) and value is not None):
            raise ArtifactError(
                f"{what}: field {name!r} is not a plain field of {cls.__name__}.{did_you_mean(name, hints)} "
                "The file was written by another version or by something else; refit or convert it."
            )
        values[name] = conform(from_plain(value), hints[name], f"{what}: field {name!r} of {cls.__name__}")
    for field in dataclasses.fields(cls):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.name not in values:
            raise ArtifactError(f"{what}: field {field.name!r} of {cls.__name__} is missing. Write the artifact again.")
    return values


def to_plain(value: Any, where: str) -> Any:
    """Turn a plain value into JSON: tuples to lists, one-element tensors and NumPy numbers to numbers.

    NaN and infinities, which JSON lacks, become `{"$float": "nan"}`.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": str(float(value))}
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value) or "$float" in value:
            raise ArtifactError(f"{where}: keys must be text other than '$float', got {list(value)[:5]}. Rename them.")
        return {key: to_plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return to_plain(value.item(), where)
    raise ArtifactError(
        f"{where}: cannot save a {type(value).__name__} as a plain field, expected text, numbers, lists or dicts. "
        "Declare it as a Tensor or convert it."
    )


def from_plain(value: Any) -> Any:
    """The inverse of `to_plain`, up to tuples, which `conform` restores from the declaration."""
    if isinstance(value, dict):
        if value.keys() == {"$float"} and value["$float"] in list(NOT_FINITE):
            return NOT_FINITE[value["$float"]]
        return {key: from_plain(item) for key, item in value.items()}
    return [from_plain(item) for item in value] if isinstance(value, list) else value


def conform(value: Any, hint: Any, where: str) -> Any:
    """Return `value` as the declared type `hint`, or raise ArtifactError; nothing is coerced but int to float.

    >>> conform([1, 2], tuple[int, ...], "here")
    (1, 2)
    """
    origin, options = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        for option in options:
            try:
                return conform(value, option, where)
            except ArtifactError:
                continue
    elif origin is Literal and any(value == option and type(value) is type(option) for option in options):
        return value
    elif hint in (None, type(None)) and value is None:
        return None
    elif hint is float and type(value) in (int, float):
        return float(value)
    elif hint in (bool, int, str, list, dict) and type(value) is hint:
        return value
    elif origin is list and isinstance(value, list):
        return [conform(item, options[0], where) for item in value]
    elif origin is tuple and isinstance(value, list) and options[-1] is Ellipsis:
        return tuple(conform(item, options[0], where) for item in value)
    elif origin is tuple and isinstance(value, list) and len(value) == len(options):
        return tuple(conform(item, option, where) for item, option in zip(value, options, strict=True))
    elif origin in (dict, Mapping) and isinstance(value, dict):
        return {key: conform(item, options[1], where) for key, item in value.items()}
    expected = hint.__name__ if isinstance(hint, type) and not options else str(hint)
    raise ArtifactError(f"{where} is {str(value)[:60]!r}, expected {expected}. Give it that type and save again.")

"""What a store is a store of: two captures may share one only if all of this is equal."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from interneuron.store.layout import Column


def store_id(identity: Mapping[str, Any], columns: Iterable[Column]) -> str:
    """A name made of the content: equal captures get equal ids, so that they are equal byte for byte."""
    text = json.dumps([identity, [c.as_json() for c in columns]], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def differences(have: Mapping[str, Any], want: Mapping[str, Any], at: str = "") -> list[str]:
    """The leaves in which two nested mappings differ, as `key: have against want`.

    >>> differences({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3}})
    ['b.c: 2 against 3']
    """
    found: list[str] = []
    for key in sorted({*have, *want}):
        a, b = have.get(key), want.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{at}{key}.")
        elif a != b:
            found.append(f"{at}{key}: {_short(a)} against {_short(b)}")
    return found


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."

"""JSON from strangers: bounded in size and depth, no repeated keys, no NaN, no number that does not fit 64 bits.

`json.loads` alone accepts `NaN`, keeps the last of two equal keys, turns `1e999` into infinity and dies of recursion on
`[[[[...`. Two readers of such a file can disagree about what it says, which is how a check is passed and then betrayed.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from interneuron.core.errors import ArtifactError, UnsafeFile

MAX_BYTES = 1 << 20
MAX_DEPTH = 32

# A string (closed or running to the end of the text), or one bracket. Possessive, so the scan is linear on any input.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]', re.DOTALL)


def parse_json(data: bytes, what: str = "JSON text", max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH) -> Any:
    """Parse `data`, or raise an error that names `what` and the rule that was broken.

    Raises:
        UnsafeFile: larger than `max_bytes`, nested deeper than `max_depth`, or with a key that occurs twice.
        ArtifactError: not UTF-8, not JSON, holds NaN or infinity, or an integer of more than 64 bits.

    >>> parse_json(b'{"a": [1, 2.5]}')
    {'a': [1, 2.5]}
    """
    if len(data) > max_bytes:
        raise UnsafeFile(
            f"{what}: {len(data):,} bytes of JSON, the limit is {max_bytes:,}. "
            "Keep numbers in a tensor file and names in the JSON."
        )
    _check_depth(data, what, max_depth)
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=lambda pairs: _unique(pairs, what),
            parse_constant=lambda word: _no_constant(word, what),
            parse_float=lambda text: _finite(text, what),
            parse_int=lambda text: _int64(text, what),
        )
        if b"\\u" in data:  # an escape can spell half a character, which no later write could encode
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise ArtifactError(f"{what}: not valid UTF-8 ({error.reason}). Write or download the file again.") from None
    except json.JSONDecodeError as error:
        raise ArtifactError(
            f"{what}: not JSON at line {error.lineno}, column {error.colno} ({error.msg}). "
            "The file is damaged or is something else; write or download it again."
        ) from None
    return value


def dump_json(value: Any, what: str = "JSON text", max_bytes: int = MAX_BYTES) -> bytes:
    """Serialise `value` so that `parse_json` accepts it with the same limits; keys keep their order."""
    try:
        data = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=1).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ArtifactError(f"{what}: text that is not valid Unicode ({error.reason}). Replace that string.") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{what}: a value JSON cannot hold ({error}). Use str, bool, int, finite float, list, dict or None."
        ) from None
    parse_json(data, what, max_bytes)
    return data + b"\n"


def _check_depth(data: bytes, what: str, max_depth: int) -> None:
    depth = 0
    for match in _TOKEN.finditer(data):
        first = match.group()[:1]
        if first in b"[{":
            depth += 1
            if depth > max_depth:
                raise UnsafeFile(
                    f"{what}: JSON nested deeper than {max_depth} levels. No file of ours nests so deep; do not use it."
                )
        elif first in b"]}":
            depth -= 1


def _unique(pairs: list[tuple[str, Any]], what: str) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise UnsafeFile(f"{what}: the key {twice[:80]!r} occurs twice in one object, expected once. Write it again.")
    return found


def _no_constant(word: str, what: str) -> Any:
    raise ArtifactError(f"{what}: {word} is not JSON. Expected a finite number; store null or a tensor instead.")


def _finite(text: str, what: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ArtifactError(f"{what}: the number {text[:40]} does not fit a float64. Expected a finite number.")
    return value


def _int64(text: str, what: str) -> int:
    if len(text) > 20 or not -(2**63) <= (value := int(text)) < 2**64:
        raise ArtifactError(f"{what}: the integer {text[:40]} does not fit 64 bits. Store it as a string.")
    return value

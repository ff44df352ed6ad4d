"""The run-time type checker of the tests: beartype, taking an int where a float is meant (as type checkers do)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeCallHintViolation

CONFIGURATION = BeartypeConf(is_pep484_tower=True)


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` with its annotations checked on each call."""
    checked = beartype(function, conf=CONFIGURATION)

    @functools.wraps(function)
    def lenient(*args: Any, **kwargs: Any) -> Any:
        try:
            return checked(*args, **kwargs)
        except BeartypeCallHintViolation:
            raise
        except Exception:
            # jaxtyping hands over empty functions of the right signature, so this came from looking into a value, e.g.
            # a mapping whose items cannot be read yet. That is no violation.
            return None

    return lenient

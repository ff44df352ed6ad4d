"""One file per organism; `recipe(name)` finds `<name>.py` (dashes become underscores) in this folder."""

from __future__ import annotations

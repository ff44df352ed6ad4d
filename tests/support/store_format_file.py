"""Writes the store of the present format that later versions must go on reading: `python make_format_file.py FOLDER`.

Run once per format version and commit the result as `formats/vN`; never rewrite one that was released.
"""

from __future__ import annotations

import sys

import numpy as np

from interneuron.store import Column, StoreWriter

COLUMNS = (
    Column("f32", "float32", (3,)),
    Column("f16", "float16", (2, 2)),
    Column("bf16", "bfloat16", (5,)),
    Column("i8", "int8", (6,)),
)
LATER = Column("i64", "int64", (1,))
ROWS = 40


def values(column: Column, n: int = ROWS) -> np.ndarray:
    """Small integers, exact in every dtype; the first number of a row is 127, which makes the int8 scale 1."""
    grid = (np.arange(n)[:, None] * 7 + np.arange(column.width) * 3) % 101 - 50
    grid[:, 0] = 127
    return grid.reshape(n, *column.shape).astype(np.float32)


def write(folder: str) -> None:
    """Two parts, all dtypes, a column added later."""
    for columns in (COLUMNS, (LATER,)):
        with StoreWriter(
            folder, columns, {"made": "for the format test"}, resume=True, threads=0, part_bytes=1500
        ) as out:
            for at in range(0, ROWS, 10):
                part = slice(at, at + 10)
                rows = {c.name: values(c)[part] for c in columns}
                out.append(rows, token=np.arange(at, at + 10), pos=np.arange(10), doc=at // 10)


if __name__ == "__main__":
    write(sys.argv[1])

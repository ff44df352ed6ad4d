"""A plug-in package written into a folder: one method with its claim, found through an entry point."""

from __future__ import annotations

from pathlib import Path

METHOD = '''"""Row centre: the mean of rows.

Paper: Nobody: Centres (2020), https://example.org.

Idea: the mean is the centre.

Equations:
    (1)  c = 1/N sum_i x_i

Shapes: x [N D], c [D].

Cost: one pass.

Departures: none.

Use:
    model = inn.load("lm")
    direction = inn.Direction(torch.ones(model.d_model), site="layers.0.resid_post")
"""

import torch

from interneuron.artifacts import Direction
from interneuron.core.cards import Card
from interneuron.core.errors import InputError

CARD = Card(
    slug="row_centre",
    family="measure",
    kind="fitter",
    exports=("RowCentre",),
    paper="Centres",
    year=2020,
    purpose="Centre of rows",
)


class RowCentre:
    """Centre of rows."""

    def fit(self, x, site="rows"):
        "Return the mean row."
        if len(x) == 0 or not torch.isfinite(x).all():
            raise InputError("x: expected finite rows, got none or NaN. Pass rows")
        return Direction(x.double().mean(0).float(), site=site, slug="row_centre")
'''

CLAIM = '''"""Row centre is nearer to the truth than one row."""

import torch

from interneuron.claims import Claim, Comparison
from interneuron.core.seeds import generator
from my_methods.row_centre import RowCentre

CLAIM = Claim(slug="row_centre", organism="none", paper="nearer", better="lower", unit="1", minutes=0.01)


def claim(seed):
    x = tensors(50, 4, seed)["x"]
    return Comparison(ours=float(x.mean(0).norm()), control=float(x[0].norm()), extra={"rows": 50})


def example():
    return RowCentre().fit(tensors(12, 4, 0)["x"])


def tensors(n, width, seed):
    return {"x": torch.randn(n, width, generator=generator(seed))}


def apply(x):
    return RowCentre().fit(x)
'''


def write_plugin(folder: Path, method: str = METHOD, claim: str | None = CLAIM) -> Path:
    """Write the package `my_methods` and its installation record into `folder`; put `folder` on sys.path to use it."""
    package = folder / "my_methods"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "row_centre.py").write_text(method)
    if claim is not None:
        (package / "row_centre_claim.py").write_text(claim)
    record = folder / "my_methods-1.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: my-methods\nVersion: 1.0\n")
    (record / "entry_points.txt").write_text("[interneuron.methods]\nmine = my_methods\n")
    return folder

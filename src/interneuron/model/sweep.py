"""Many interventions in few forward passes: the input is repeated, and each edit acts on its own block of rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from interneuron.core.errors import InputError, ShapeError
from interneuron.model.edits import as_edits
from interneuron.model.engine import Session
from interneuron.model.taps import take_part

if TYPE_CHECKING:
    from interneuron.model.model import Model


def sweep(
    model: Model, inputs: Any, edits: Sequence[Any], metric: Callable[[Any], Any], batch_size: int = 32
) -> Float[Tensor, " n_edits"]:
    """metric(output under edit i), for every i.

    Rows are repeated so that a pass holds up to `batch_size` of them; edit i sees, and rewrites, only its own block,
    whose rows keep their numbers 0..B-1. The metric gets the logits (or the first tensor of the output) of the block,
    [B, ...], and returns a number or one number per row, of which the mean is taken. An entry of `edits` may be None
    (no intervention) or a list. Runs without gradients. Scores equal one-by-one runs up to the rounding of another
    batch shape.
    """
    from interneuron.core.progress import track

    args, named = model.prepare(inputs)
    cached = next((n for n in ("past_key_values", "cache_params") if named.get(n) is not None), None)
    if cached is not None:
        raise InputError(
            f"sweep() was given {cached}: a cache grows with every pass and cannot be repeated for each edit. Pass the "
            "whole sequence without a cache."
        )
    rows = next((v.shape[0] for v in (*args, *named.values()) if isinstance(v, Tensor) and v.ndim), None)
    if rows is None:
        raise InputError("sweep() found no batch in the inputs: pass text, tokens or a dict of tensors.")
    per_pass = max(1, batch_size // rows)
    scores: list[float] = []
    starts = range(0, len(edits), per_pass)
    with torch.no_grad():
        for start in track(starts, label="sweep", unit="pass"):
            chunk = edits[start : start + per_pass]
            scores += _one_pass(model, args, named, chunk, rows, metric)
    return torch.tensor(scores)


def _one_pass(
    model: Model, args: Any, named: dict[str, Any], chunk: Sequence[Any], rows: int, metric: Callable[[Any], Any]
) -> list[float]:
    n = len(chunk)
    bound = []
    for i, edit in enumerate(chunk):
        for single in as_edits(edit):
            bound += model.bind([single], slice(i * rows, (i + 1) * rows))
    big_args = tuple(_repeat(v, rows, n) for v in args)
    big_named = {key: _repeat(v, rows, n) for key, v in named.items()}
    model._engine.fresh_pass()
    with Session(model._engine, edits=bound):
        output = model.module(*big_args, **big_named)
    logits = getattr(output, "logits", None)
    tensor = logits if isinstance(logits, Tensor) else take_part(output, None)
    if not isinstance(tensor, Tensor) or tensor.shape[0] != n * rows:
        raise ShapeError(
            f"sweep() needs an output with {n * rows} rows, got {getattr(tensor, 'shape', type(output).__name__)}: "
            "run the edits one by one with model.run."
        )
    return [_score(metric, tensor[i * rows : (i + 1) * rows]) for i in range(n)]


def _repeat(value: Any, rows: int, n: int) -> Any:
    if isinstance(value, Tensor) and value.ndim and value.shape[0] == rows:
        return value.repeat(n, *[1] * (value.ndim - 1))
    return value


def _score(metric: Callable[[Any], Any], block: Tensor) -> float:
    value = metric(block)
    if isinstance(value, Tensor):
        if value.numel() not in (1, block.shape[0]):
            raise ShapeError(
                f"the metric returned shape {tuple(value.shape)}: expected one number, or one for each of the "
                f"{block.shape[0]} rows."
            )
        return float(value.float().mean())
    if not isinstance(value, (int, float)):
        raise InputError(f"the metric returned {type(value).__name__}: expected a number or a tensor of numbers.")
    return float(value)

"""A corpus in batches, with the mask that tells its tokens from padding, and what an edit changes on it.

KL(row) = mean over tokens of sum_v p(v) (log p(v) - log q(v))      p: the model as it is, q: under the edit
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interneuron.core.errors import InputError

if TYPE_CHECKING:
    from interneuron.model.model import Model

Corpus = Sequence[str] | Int[Tensor, "N T"]


def batches(model: Model, corpus: Any, batch_size: int = 16) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """The model's arguments and a mask Bool[B T], true at real tokens, batch by batch.

    corpus  texts, or token ids [N T] without padding. Raises InputError when it is empty or of another kind.
    """
    check_corpus(corpus)
    for start in range(0, len(corpus), batch_size):
        part = corpus[start : start + batch_size]
        _, inputs = model.prepare(part if isinstance(part, Tensor) else list(part))
        ids = inputs["input_ids"]
        mask = inputs.get("attention_mask")
        yield inputs, torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()


def check_corpus(corpus: Any) -> None:
    """Raise InputError unless `corpus` is a non-empty sequence of texts or a matrix of token ids."""
    tokens = isinstance(corpus, Tensor) and corpus.ndim == 2 and not corpus.is_floating_point() and corpus.numel()
    texts = isinstance(corpus, (list, tuple)) and corpus and all(isinstance(text, str) for text in corpus)
    if not tokens and not texts:
        what = f"a tensor {list(corpus.shape)}" if isinstance(corpus, Tensor) else repr(corpus)[:60]
        raise InputError(f"corpus: expected a list of at least one text, or token ids [N T], got {what}. Pass texts")


@torch.no_grad()
def divergences(model: Model, corpus: Any, edits: Sequence[Any], batch_size: int = 16) -> Float[Tensor, "E N"]:
    """KL of each row between the model's predictions and those under each edit, in nats per token."""
    rows = []
    for inputs, mask in batches(model, corpus, batch_size):
        plain = _log_probs(model, inputs)
        weight = plain.exp()
        each = []
        for edit in edits:
            with model.edit(edit):
                gap = plain - _log_probs(model, inputs)
            each.append(((weight * gap).sum(-1) * mask).sum(1) / mask.sum(1))
        rows.append(torch.stack(each))
    return torch.cat(rows, dim=1)


def _log_probs(model: Model, inputs: dict[str, Any]) -> Tensor:
    logits = getattr(model(inputs), "logits", None)
    if not isinstance(logits, Tensor) or logits.ndim != 3:
        raise InputError(
            f"{type(model.module).__name__} gives no logits per token, which predictions are compared by: load a "
            "language model with its head."
        )
    return logits.float().log_softmax(-1)

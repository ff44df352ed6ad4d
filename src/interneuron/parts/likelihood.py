"""Likelihoods of text under a language model, with or without edits: the scales on which an intervention is judged.

log p(text) = sum_t log p(token_t | tokens before t)        in nats, from the second token on
loss        = - mean_t log p(token_t | tokens before t)     in nats per token; exp(loss) is the perplexity
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interneuron.core.errors import InputError, UnsupportedModel

if TYPE_CHECKING:
    from interneuron.model.model import Model


def text_log_probs(model: Model, texts: Sequence[str], edit: Any = None, batch_size: int = 64) -> Float[Tensor, " N"]:
    """log p of each text, in nats, under an edit (or none); the first token is given, not predicted.

    Raises InputError for no texts, UnsupportedModel for a model without logits per token.
    """
    if not texts:
        raise InputError("text_log_probs() was given no texts: pass at least one.")
    sums = [
        _token_log_probs(model, list(texts[start : start + batch_size]), edit).sum(1)
        for start in range(0, len(texts), batch_size)
    ]
    return torch.cat(sums)


def preference(model: Model, positive: Sequence[str], negative: Sequence[str], edit: Any = None) -> Float[Tensor, " N"]:
    """log p(positive_i) - log p(negative_i), in nats: how much likelier the model finds the first text of each pair.

    What the two texts of a pair share in front cancels, so only the part that differs counts.
    """
    if len(positive) != len(negative):
        raise InputError(
            f"preference() was given {len(positive)} positive and {len(negative)} negative texts: expected pairs, one "
            "negative text for each positive one."
        )
    both = text_log_probs(model, [*positive, *negative], edit)
    return both[: len(positive)] - both[len(positive) :]


def text_losses(model: Model, texts: Sequence[str], edit: Any = None, batch_size: int = 32) -> Float[Tensor, " N"]:
    """Mean next-token loss of each text, in nats per token, under an edit (or none).

    Raises InputError for no texts, or for a text of a single token, which has nothing to predict.
    """
    if not texts:
        raise InputError("text_losses() was given no texts: pass at least one.")
    rows = []
    for start in range(0, len(texts), batch_size):
        _, named = model.prepare(list(texts[start : start + batch_size]))
        mask = named.get("attention_mask", torch.ones_like(named["input_ids"]))[:, 1:]
        counts = mask.sum(1)
        if not bool((counts > 0).all()):
            short = texts[start + int(counts.argmin())]
            raise InputError(f"the text {short[:40]!r} is one token long: expected at least 2. Give whole sentences.")
        rows.append(-_token_log_probs(model, named, edit).sum(1) / counts)
    return torch.cat(rows)


def window_losses(
    model: Model, tokens: Int[Tensor, "N T"], edit: Any = None, batch_size: int = 16
) -> Float[Tensor, " N"]:
    """Mean next-token loss of each row of tokens, in nats per token, under an edit (or none)."""
    rows = [
        -_token_log_probs(model, tokens[start : start + batch_size], edit).mean(1)
        for start in range(0, len(tokens), batch_size)
    ]
    return torch.cat(rows)


def token_windows(model: Model, text: str, n: int = 8, length: int = 128) -> Int[Tensor, "N T"]:
    """Up to n windows of `length` tokens, cut evenly spaced from a text; each starts at a word, as a text of its own.

    The windows shrink to the longest length the text allows when it is short.
    Raises InputError when the text gives fewer than 8 tokens or the model has no tokenizer.
    """
    if model.tokenizer is None:
        raise InputError("token_windows() needs a tokenizer: load the model with one, or pass token ids yourself.")
    stride = max(len(text) // n, 1)
    rows = []
    for k in range(n):
        chunk = text[k * stride : k * stride + 12 * length]
        if k and " " in chunk:
            chunk = chunk[chunk.index(" ") + 1 :]
        if chunk.strip():
            rows.append(torch.tensor(model.tokenizer(chunk)["input_ids"], dtype=torch.long)[:length])
    longest = max((len(row) for row in rows), default=0)
    if longest < 8:
        raise InputError(f"the text gives {longest} tokens: expected at least 8. Give a longer text.")
    # Windows near the end of the text come out short; the ones kept are those of full length.
    rows = [row for row in rows if len(row) == longest]
    return torch.stack(rows).to(model.device)


def token_log_probs(output: Any, named: Any) -> Float[Tensor, "B T-1"]:
    """log p(token_t | before) for t = 1..T-1 from the output of a causal model and its arguments; 0 at padding.

    Gradients flow where the output has them. Raises UnsupportedModel without logits per token.
    """
    ids, logits = named["input_ids"], getattr(output, "logits", None)
    if not isinstance(logits, Tensor) or logits.shape[:2] != ids.shape:
        raise UnsupportedModel(
            f"{type(output).__name__} has no logits per token: likelihoods need a causal language model, loaded with "
            "its language-model head."
        )
    log_probs = logits[:, :-1].float().log_softmax(-1).gather(-1, ids[:, 1:, None].to(logits.device))[..., 0]
    mask = named.get("attention_mask")
    return log_probs if mask is None else log_probs * mask[:, 1:].to(log_probs)


def _token_log_probs(model: Model, inputs: Any, edit: Any) -> Float[Tensor, "B T-1"]:
    """`token_log_probs` under an edit (or none), without gradients."""
    _, named = model.prepare(inputs)
    with torch.no_grad(), model.edit(*([] if edit is None else [edit])):
        return token_log_probs(model(named), named)

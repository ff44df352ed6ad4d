"""What steering does to the next token, by strength: accuracy, and how the distribution shifts.

    accuracy   share of prompts whose likeliest answer is the right one, of all tokens or of `options` alone
    KL         sum_v p_0(v) ln (p_0(v) / p_a(v)), p_0 without and p_a with steering, in nats
    entropy    - sum_v p_a(v) ln p_a(v)
    correct    p_a(right answer)         other    p_a(all other options)

All means over prompts, at the position that predicts the answer. Strength 0 is no edit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interneuron.artifacts import Report, plots
from interneuron.core.errors import InputError, ShapeError
from interneuron.core.progress import track

if TYPE_CHECKING:
    from interneuron.model.model import Model


def sweep_alpha(
    model: Model,
    edit: Callable[[float], Any],
    alphas: Sequence[float],
    inputs: Sequence[str],
    labels: Int[Tensor, " N"],
    options: Int[Tensor, " V"] | None = None,
    batch_size: int = 64,
) -> Report:
    """Measure every strength; `edit` makes the edit of a strength, e.g. `direction.edit`.

    labels   token id of the right answer of each prompt      options  token ids that count as answers; None: all

    Raises:
        InputError: no prompts or strengths.
        ShapeError: not one label per prompt.
    """
    if not len(inputs) or not alphas:
        raise InputError(
            f"sweep_alpha() was given {len(inputs)} prompts and {len(alphas)} strengths: pass some of each."
        )
    if labels.shape != (len(inputs),):
        raise ShapeError(f"labels of shape {list(labels.shape)} for {len(inputs)} prompts: expected one id per prompt.")
    base = answer_log_probs(model, inputs, None, batch_size)
    rows = []
    for alpha in track(list(alphas), label="sweep", unit="strength"):
        now = answer_log_probs(model, inputs, edit(alpha), batch_size) if alpha else base
        rows.append({"alpha": float(alpha), **_shift(base, now, labels, options)})
    series = {name: [row[name] for row in rows] for name in ("accuracy", "correct", "other")}
    plot = plots.lines(
        "Accuracy and answer probability by strength", list(alphas), series, x_label="alpha", y_label="share"
    )
    return Report(title="Steering sweep", tables={"sweep": rows}, plots={"sweep": plot})


def answer_log_probs(
    model: Model, inputs: Sequence[str], edit: Any = None, batch_size: int = 64
) -> Float[Tensor, "N V"]:
    """ln p of the token that follows each prompt, under an edit (or none)."""
    place = model.site("logits").at(pos=-1)
    rows = []
    for start in range(0, len(inputs), batch_size):
        with torch.no_grad():
            acts = model.run(
                list(inputs[start : start + batch_size]), read=[place], edit=[] if edit is None else [edit]
            ).acts
        rows.append(acts["logits"].float().log_softmax(-1))
    return torch.cat(rows)


def is_right(log_probs: Float[Tensor, "N V"], labels: Int[Tensor, " N"], options: Tensor | None = None) -> Tensor:
    """Whether the likeliest answer is the right one, Bool[N]."""
    if options is None:
        return log_probs.argmax(-1) == labels
    return options[log_probs[:, options].argmax(-1)] == labels


def _shift(base: Tensor, now: Tensor, labels: Tensor, options: Tensor | None) -> dict[str, float]:
    p = now.exp()
    correct = p.gather(1, labels[:, None])[:, 0]
    everything = p.sum(1) if options is None else p[:, options].sum(1)
    return {
        "accuracy": float(is_right(now, labels, options).float().mean()),
        "kl": float((base.exp() * (base - now)).sum(1).mean()),
        "entropy": float(-(p * now).sum(1).mean()),
        "correct": float(correct.mean()),
        "other": float((everything - correct).mean()),
    }

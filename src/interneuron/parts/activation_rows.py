"""Rows for dictionary methods: activations of one site over a corpus, gradients of the loss there, and losses spliced.

A row is one real token; padding gives none, and the first `skip` tokens of each text may be left out, because models
park attention there and their activations are of another size. Where a site has heads (`attn.z`), they lie side by
side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from interneuron.core.errors import InputError
from interneuron.model.edits import Apply, Edit
from interneuron.parts.batches import batches
from interneuron.parts.likelihood import token_log_probs

if TYPE_CHECKING:
    from interneuron.model.model import Model

AXES = ("batch", "pos")


def token_rows(model: Model, corpus: Any, site: str, skip: int = 0, batch_size: int = 32) -> Float[Tensor, "N D"]:
    """Activations of every token at `site`, [N D] in float32 on the CPU.

    corpus  texts, or token ids [N T] without padding
    Raises InputError for an empty corpus, a site without positions, or texts no longer than `skip` tokens.
    """
    name = place(model, site)
    rows = []
    with torch.no_grad():
        for inputs, mask in batches(model, corpus, batch_size):
            x = model.run(inputs, read=[name]).acts[name]
            rows.append(x[kept(mask, skip)].flatten(1).float().cpu())
    return _joined(rows, skip)


def token_rows_and_gradients(
    model: Model, corpus: Any, site: str, skip: int = 0, batch_size: int = 32
) -> tuple[Float[Tensor, "N D"], Float[Tensor, "N D"]]:
    """Activations x and gradients dL/dx of every token at `site`, L the sum of a text's next-token losses.

    The graph begins at the site, so no parameter of the model receives a gradient.
    """
    name = place(model, site)
    rows, slopes = [], []
    for inputs, mask in batches(model, corpus, batch_size):
        leaf: list[Tensor] = []

        def cut(x: Tensor, leaf: list[Tensor] = leaf) -> Tensor:
            leaf.append(x.detach().requires_grad_())
            return leaf[-1]

        with torch.enable_grad(), model.edit(Apply(name, cut)):
            loss = token_losses(model(inputs), inputs["input_ids"], mask).sum()
        (slope,) = torch.autograd.grad(loss, leaf[-1])
        chosen = kept(mask, skip)
        rows.append(leaf[-1].detach()[chosen].flatten(1).float().cpu())
        slopes.append(slope[chosen].flatten(1).float().cpu())
    return _joined(rows, skip), torch.cat(slopes)


@torch.no_grad()
def corpus_losses(model: Model, corpus: Any, edit: Any = None, batch_size: int = 32) -> Float[Tensor, " N"]:
    """Mean next-token loss of each text, in nats per token, under an edit (or none)."""
    found = []
    for inputs, mask in batches(model, corpus, batch_size):
        with model.edit(*([] if edit is None else [edit])):
            output = model(inputs)
        losses = token_losses(output, inputs["input_ids"], mask)
        found.append((losses.sum(1) / mask[:, 1:].sum(1).clamp_min(1)).cpu())
    return torch.cat(found)


def splice(
    model: Model, site: str, replace: Callable[[Float[Tensor, "N D"]], Float[Tensor, "N D"]], skip: int = 0
) -> Edit:
    """An edit that puts replace(x) in place of x at every token after the first `skip`."""

    def rewrite(x: Tensor) -> Tensor:
        flat = x.flatten(2)
        return replace(flat.reshape(-1, flat.shape[-1])).reshape(x.shape).to(x.dtype)

    return Apply(place(model, site), rewrite).at(pos=slice(skip, None))


def recovered(
    model: Model, corpus: Any, site: str, replace: Callable[[Tensor], Tensor], skip: int = 0
) -> dict[str, float]:
    """Loss clean, spliced and with zeros at the site, and (zero - spliced) / (zero - clean): 1 loses nothing."""
    clean = float(corpus_losses(model, corpus).mean())
    spliced = float(corpus_losses(model, corpus, splice(model, site, replace, skip)).mean())
    zero = float(corpus_losses(model, corpus, splice(model, site, torch.zeros_like, skip)).mean())
    return {"clean": clean, "spliced": spliced, "zero": zero, "recovered": (zero - spliced) / (zero - clean)}


def place(model: Model, site: str) -> str:
    """The canonical name of a site that has one vector per token; InputError for others."""
    found = model.site(site)
    if found.axes[:2] != AXES:
        raise InputError(
            f"{found.name} has axes {found.axes}, expected one vector per token, {AXES} first. Choose a site such as "
            "layers.0.resid_post."
        )
    return found.name


def kept(mask: Tensor, skip: int) -> Tensor:
    """Bool[B T]: real tokens beyond the first `skip` of their text."""
    return mask & (mask.cumsum(1) > skip)


def token_losses(output: Any, ids: Tensor, mask: Tensor) -> Float[Tensor, "B T-1"]:
    """-log p(token_t | before) for t = 1..T-1, 0 at padding. Raises UnsupportedModel without logits per token."""
    return -token_log_probs(output, {"input_ids": ids, "attention_mask": mask})


def _joined(rows: list[Tensor], skip: int) -> Tensor:
    x = torch.cat(rows)
    if not len(x):
        raise InputError(f"no text is longer than skip={skip} tokens, so there are no rows. Give longer texts.")
    return x

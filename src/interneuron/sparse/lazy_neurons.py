"""Lazy neurons: how few units of a ReLU MLP are active, why training makes them so, and top-k MLPs that enforce it.

Paper: Li, You, Bhojanapalli, Li, Rawat, Reddi, Ye, Chern, Yu, Guo, Kumar: The Lazy Neuron Phenomenon: On Emergence of
    Activation Sparsity in Transformers (2022), https://arxiv.org/abs/2210.06313.

Idea: in trained Transformers only a few percent of the hidden units of an MLP are active on a token, although nothing
    asks for it. At initialisation the loss pushes active units down, on any data. Keeping only the k largest units
    makes the sparsity exact, which helps against noise in labels and inputs.

Equations:
    (1)  nz = mean over tokens and units of [A > 0],  A = ReLU(W1 x)
    (2)  E[dL/dA_j | A_j > 0] > 0 at initialisation, so that gradient descent lowers active units
    (3)  h = Top_k(ReLU(W1 x)):  the k largest of a token are kept
    (4)  FLOPs of the two products, over the dense ones: (1 + nz) / 2
    (5)  ECE = sum over bins b of |b| / N |accuracy(b) - confidence(b)|,  15 equal bins of confidence

Shapes: A [N F]; per-layer results in the order of the layers.

Cost: one forward pass; the gradient one more and a backward pass.

Limits: eq. 2 is proved for units that meet a zero-mean unembedding without a norm in between. A last norm, which nearly
    every language model has, takes the sign away: the state then keeps its length whatever a unit writes, and the mean
    over random unembeddings is 0.

Departures: a unit counts as active when it is not zero, so that gated MLPs, whose products have a sign, are served
    [inferred]. `topk_edit` acts on the input of the down projection, which for plain ReLU MLPs is eq. 3.

Use:
    model = inn.load("lm")
    report = inn.sparse.density_report(model, ["she felt happy .", "the lamp was lovely today ."])
    with model.edit(inn.sparse.topk_edit(model, k=16)): model.generate("mia looked", max_new_tokens=4)
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from interneuron.artifacts import Report, plots
from interneuron.core.cards import Card
from interneuron.core.errors import InputError, ShapeError
from interneuron.model.edits import Edits
from interneuron.model.model import Model
from interneuron.parts.density import rows_of
from interneuron.parts.sparse_inputs import Sparsify

CARD = Card(
    id=7,
    slug="lazy_neurons",
    family="sparse",
    kind="metric",
    exports=("density_report", "topk_edit", "sparsity_gradient", "calibration_error"),
    paper="The Lazy Neuron Phenomenon: On Emergence of Activation Sparsity in Transformers",
    authors="Li, Zonglin and You, Chong and Bhojanapalli, Srinadh and Li, Daliang and Rawat, Ankit Singh and others",
    year=2022,
    link="https://arxiv.org/abs/2210.06313",
    purpose="Activation sparsity of ReLU MLPs over training, and top-k MLPs that enforce it",
    claim="3.0 % of units are active in T5-Base, 6.3 % in ViT-B/16; top-k improves robustness and calibration",
)


def density_report(
    model: Model, data: Any, sites: str = "layers.*.mlp.hidden", bins: int = 20, batch_size: int = 64
) -> Report:
    """Measure the share of active units (eq. 1) by layer, its histogram over tokens, and units that are never active.

    data  texts, token ids [N T], or images [N C H W]

    The report's arrays: density [L], histogram [L bins] (tokens by their share of active units), never [L].
    """
    names = [site.name for site in model.sites(sites)]
    counts = {name: torch.zeros(bins, dtype=torch.float64) for name in names}
    active: dict[str, Tensor] = {}
    tokens = 0
    for acts in rows_of(model, data, names, batch_size):
        for name, rows in acts.items():
            on = (rows != 0).double()
            active[name] = active.get(name, torch.zeros(rows.shape[-1], dtype=torch.float64)) + on.sum(0).cpu()
            shares = (on.mean(-1).cpu() * bins).long().clamp_max(bins - 1)
            counts[name] += torch.bincount(shares, minlength=bins)
        tokens += len(next(iter(acts.values())))
    density = torch.stack([active[name].mean() / tokens for name in names])
    never = torch.stack([(active[name] == 0).double().mean() for name in names])
    rows = [
        {"layer": name, "active": float(density[i]), "never active": float(never[i])} for i, name in enumerate(names)
    ]
    mean = float(density.mean())
    plot = plots.lines("Active units", list(range(len(names))), {"share": density.tolist()}, x_label="layer")
    return Report(
        title="Share of active units", site=tuple(names), slug=CARD.slug, plots={"density": plot},
        numbers={"density": mean, "never active": float(never.mean()), "FLOPs over dense": (1 + mean) / 2},
        tables={"layers": rows}, fingerprint=model.fingerprint, fitted={"tokens": tokens},
        arrays={"density": density, "histogram": torch.stack([counts[n] / tokens for n in names]), "never": never},
    )  # fmt: skip


def topk_edit(model: Model, k: int, sites: str = "layers.*.mlp.hidden") -> Edits:
    """The edit that keeps the k largest units of every token (eq. 3); decoding skips the weights of the others.

    Raises InputError when k is below 1.
    """
    if k < 1:
        raise InputError(f"topk_edit(k={k}): expected at least 1 unit. Choose 1 to 3 % of the width")
    return Edits(Sparsify(site.name, k=k) for site in model.sites(sites))


def sparsity_gradient(
    model: Model, inputs: Any, labels: Int[Tensor, " N"] | None = None, sites: str = "layers.*.mlp.hidden"
) -> Float[Tensor, " L"]:
    """Mean gradient of the loss on active units, by layer (eq. 2); positive: training will push them down.

    inputs  token ids [N T] (the loss is that of the next token), or rows or images with their labels [N]
    """
    names = [site.name for site in model.sites(sites)]
    with torch.enable_grad():
        with model.read(*names, grad=True) as acts:
            output = model(inputs)
        logits = output if isinstance(output, Tensor) else output.logits
        if labels is None:
            loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), inputs[:, 1:].flatten(), reduction="sum")
        else:
            loss = functional.cross_entropy(logits, labels, reduction="sum")
        # Gradients of the activations alone, so that the weights get none.
        grads = torch.autograd.grad(loss, [acts[name] for name in names])
    return torch.stack([g[acts[name] != 0].mean().detach() for name, g in zip(names, grads, strict=True)])


def calibration_error(logits: Float[Tensor, "N C"], labels: Int[Tensor, " N"], bins: int = 15) -> float:
    """Expected calibration error (eq. 5).

    Raises:
        ShapeError: not one label per row.
        InputError: no row, or NaN.
    """
    if logits.dim() != 2 or labels.shape != logits.shape[:1]:
        raise ShapeError(
            f"logits {list(logits.shape)}, labels {list(labels.shape)}: expected [N C] and [N]. Align them"
        )
    if not len(logits) or not torch.isfinite(logits).all():
        raise InputError(f"calibration_error: {len(logits)} rows, finite logits expected. Look at the model's output")
    confidence, chosen = logits.double().softmax(-1).max(-1)
    right = (chosen == labels).double()
    at = (confidence * bins).ceil().long().clamp(1, bins) - 1  # bin b holds (b / bins, (b + 1) / bins]
    gap = torch.zeros(bins, dtype=torch.float64).index_add_(0, at, right - confidence)
    return float(gap.abs().sum() / len(logits))

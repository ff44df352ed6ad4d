"""Top-AFA: a sparse autoencoder that chooses for each input how many features fire, and a check of any dictionary.

Paper: Lee, Davies, Canby, Hockenmaier: Evaluating and Designing Sparse Autoencoders by Approximating
    Quasi-Orthogonality (2025), https://arxiv.org/abs/2503.24277

Idea: features that are nearly orthogonal cannot hide energy from each other, so the length of the code must be nearly
    that of the input. Keeping the largest features until the lengths agree needs no k; and a dictionary whose codes are
    far too short or too long for their inputs fires too few or too many features.

Equations:
    (1)  x - b = sum_i f_i d_i, |d_i| = 1, |d_i . d_j| <= eps  =>  | |x - b|^2 - |f|^2 | <= eps (|f|_1^2 - |f|^2)
    (2)  a = ReLU((x - b) W_enc),  e_j = a_j^2 |d_j|^2
    (3)  k* = argmin_{k >= 1} | sqrt(sum of the k largest e) - |x - b| |,  f = the k* largest a, the others 0
    (4)  L = mean |x - y|^2 / D + gamma mean (|f| - |x - b|)^2 + aux |dead features' reconstruction of x - y|^2 / D
    (5)  gap = mean | |f| - |x - b| | / |x - b|                        the scatter of both lengths is the ZF plot

Shapes: x [N D], W_enc [D F], d [F D], f [N F].

Cost: one step of the shared trainer plus a heap over the positive entries of each row, O(F + k* log F). Memory as any
    sparse autoencoder of that size.

Departures: inputs are centred on b and divided by one number, the root mean square of the data, instead of each by its
    own deviation [the paper makes that optional; `normalize="layer_norm"` of the artifact stays off]. The encoder bias
    of the shared trainer stays 0, as in the paper. In eq. 4 |x - b| is held fixed, so b is not drawn towards it, and
    gamma defaults to 1/128, the smallest of the authors' grid from 1/128 to 1/16; the error is a mean over the D
    coordinates, as theirs. Their code compares |f| with |x|, not with |x - b|, starts b at 0 and not at the mean, and
    starts an encoder sqrt(2 D / F) as long as the decoder, so that nearly everything fires at first; ours starts equal
    to the decoder, as the shared trainer's does. Of two equally near k the smaller is taken.

Use:
    model = inn.load("lm")
    found = inn.decompose.TopAFA(expansion=2, steps=20).fit(model, ["mia was happy ."] * 8, "layers.1.resid_post")
    print(inn.decompose.afa_report(found, found.decoder * 3)["gap"])
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interneuron.artifacts import Dictionary, Report, plots
from interneuron.core.cards import Card
from interneuron.core.errors import InputError, ShapeError
from interneuron.core.seeds import generator
from interneuron.model.model import Model
from interneuron.parts.activation_rows import place, token_rows
from interneuron.parts.sparse_training import SparseCoding, SparseTrainer, train_dictionary

CARD = Card(
    id=176,
    slug="top_afa",
    family="decompose",
    kind="fitter",
    exports=("TopAFA", "afa_report"),
    paper="Evaluating and Designing Sparse Autoencoders by Approximating Quasi-Orthogonality",
    authors="Lee, Sewoong and Davies, Adam and Canby, Marc E. and Hockenmaier, Julia",
    year=2025,
    link="https://arxiv.org/abs/2503.24277",
    purpose="Sparse autoencoder without a k to tune; a check whether a dictionary fires too many or too few features",
    needs=("numba",),
    claim="Matches or beats TopK and BatchTopK at comparable sparsity without choosing k",
)

MAX_COHERENCE_ROWS = 2048


@dataclass(frozen=True)
class TopAFA:
    """Sparse autoencoder whose number of active features follows the length of the input.

    expansion   features per input dimension      gamma   weight of (|f| - |x - b|)^2 beside the mean squared error
    dead_after  rows a feature may stay silent before the auxiliary loss revives it      skip  first tokens left out
    """

    expansion: int = 16
    gamma: float = 1 / 128
    steps: int = 1000
    lr: float = 3e-4
    batch_size: int = 4096
    dead_after: int = 20_480
    skip: int = 1
    seed: int = 0

    def fit(self, model: Model, corpus: Any, site: str) -> Dictionary:
        """Train on the tokens of a corpus (texts, or token ids [N T]) at one site.

        Raises:
            InputError: an empty corpus, a site without positions, or texts no longer than `skip` tokens.
            SiteNotFound: the model has no such site.
        """
        name = place(model, site)
        found = self.fit_activations(token_rows(model, corpus, name, self.skip))
        return found.replace(site=name, fingerprint=model.fingerprint)

    def fit_activations(self, x: Float[Tensor, "N D"]) -> Dictionary:
        """Train on rows of activations.

        Raises:
            ShapeError: x is no matrix.
            InputError: no rows, rows with NaN, or rows that are all the same.
        """
        if x.ndim != 2:
            raise ShapeError(f"x has shape {list(x.shape)}, expected [N D]. Flatten batch and position")
        n_features = self.expansion * x.shape[1]
        config = SparseCoding(
            n_features=n_features,
            activation="relu",
            lr=self.lr,
            beta2=0.99,
            batch_size=self.batch_size,
            steps=self.steps,
            seed=self.seed,
            dead_after=self.dead_after,
            aux_k=min(512, n_features),
            bias=False,
        )
        trainer = partial(_Trainer, weight=self.gamma)
        found = train_dictionary(x, config, trainer=trainer, slug=CARD.slug)
        return found.replace(activation="topafa", fitted={**asdict(self), **found.fitted})


class _Trainer(SparseTrainer):
    """The shared trainer with the selection of eq. 3 and the penalty of eq. 4; its weight is gamma."""

    def select(self, pre: Tensor, centred: Tensor, guide: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The k* largest positive entries of each row."""
        ptr = torch.zeros(len(pre) + 1, dtype=torch.long)
        self.selection.count_above(pre.numpy(), torch.zeros(pre.shape[1]).numpy(), ptr[1:].numpy())
        ptr.cumsum_(0)
        room = int(ptr[-1])
        index, value = self.buffer("index", room, dtype=torch.long), self.buffer("value", room)
        norm = centred.norm(dim=1)
        self.selection.norm_rows(pre.numpy(), norm.numpy(), ptr.numpy(), index.numpy(), value.numpy())
        kept = index >= 0
        running = torch.cat([torch.zeros(1, dtype=torch.long), kept.cumsum(0)])
        return running[ptr], index[kept], value[kept]

    def penalise(self, grad: Tensor, ptr: Tensor, value: Tensor, centred: Tensor) -> None:
        """2 gamma D / B (|f| - |x - b|) f / |f|, row by row: the shared loss is D times eq. 4."""
        if not self.weight:
            return
        counts = ptr.diff()
        rows = torch.repeat_interleave(torch.arange(len(counts)), counts)
        length = torch.zeros(len(counts)).index_add_(0, rows, value.square()).sqrt()
        weight = 2 * self.weight * centred.shape[1] / len(counts)
        pull = weight * (length - centred.norm(dim=1)) / length.clamp_min(1e-12)
        grad += pull[rows] * value


def afa_report(dictionary: Dictionary, x: Float[Tensor, "N D"], seed: int = 0) -> Report:
    """Compare the length of each code with that of its centred input, and tell how coherent the decoder is.

    Numbers: gap (eq. 5), bias (mean of (|f| - |x - b|) / |x - b|, below 0: too few features), corr, eps_max and
    eps_mean of the cosines of decoder rows (of at most 2048 drawn by `seed`), l0. Lengths are taken with decoder rows
    scaled to 1.

    Raises InputError for no rows or rows with NaN, ShapeError for another width.
    """
    if x.ndim != 2 or not len(x) or not bool(torch.isfinite(x).all()):
        raise InputError(f"x of shape {list(x.shape)}: expected at least one finite row [N D]. Drop rows with NaN")
    if x.shape[1] != dictionary.decoder.shape[1]:
        raise ShapeError(f"x has width {x.shape[1]}, the decoder writes {dictionary.decoder.shape[1]}. Read its site")
    norms = dictionary.decoder.norm(dim=1)
    with torch.no_grad():
        f = dictionary.encode(x) * norms
        wanted = (x.to(f.dtype) * dictionary.scale - dictionary.decoder_bias).norm(dim=1).clamp_min(1e-12)
    length = f.norm(dim=1)
    rows = dictionary.decoder / norms.clamp_min(1e-12)[:, None]
    chosen = torch.randperm(len(rows), generator=generator(seed))[:MAX_COHERENCE_ROWS]
    cosines = (rows[chosen] @ rows[chosen].T).fill_diagonal_(0).abs()
    gap = (length - wanted) / wanted
    both = torch.stack([length, wanted]).double()
    moved = (both - both.mean(1, keepdim=True)).unbind(0)
    scale = (moved[0].norm() * moved[1].norm()).clamp_min(1e-12)
    shown = slice(0, 2000)
    return Report(
        title="Lengths of codes and of inputs",
        slug=CARD.slug,
        site=dictionary.site,
        fingerprint=dictionary.fingerprint,
        numbers={
            "gap": float(gap.abs().mean()),
            "bias": float(gap.mean()),
            "corr": float(moved[0] @ moved[1] / scale),
            "eps_max": float(cosines.max()),
            "eps_mean": float(cosines.sum() / max(1, len(chosen) * (len(chosen) - 1))),
            "l0": float((f != 0).sum(1).double().mean()),
        },
        arrays={"code_norm": length, "input_norm": wanted},
        plots={
            "zf": plots.points(
                "Length of the code against length of the input",
                wanted[shown].tolist(),
                length[shown].tolist(),
                x_label="|x - b|",
                y_label="|f|",
            )
        },
    )

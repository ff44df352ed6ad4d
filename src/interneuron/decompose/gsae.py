"""Gradient SAE: a k-sparse autoencoder that picks features by their size and by how much the loss depends on them.

Paper: Olmo, Wilson, Forsey, Hepner, Howe, Wingate: Features that Make a Difference: Leveraging Gradients for Improved
    Dictionary Learning (2024), https://arxiv.org/abs/2411.10397

Idea: a feature of small size may matter much for what the model says next. The gradient of the model's loss at the
    activation tells how much; letting it weigh in when the k active features are chosen keeps such features.

Equations:
    (1)  z = ReLU(W_enc (x - b_dec) + b_enc),  y = W_dec (z * m) + b_dec
    (2)  h = |W_dec' g| / r,  g = dL/dx,  r = sqrt(mean g^2)     L: the model's next-token loss, r: over the rows read
    (3)  m = 1 at the k largest z (1 + beta h), else 0
    (4)  loss = mean |x - y|^2 + aux |dead features' reconstruction of x - y|^2;  no gradient through h and m

Shapes: x, g [N D], W_enc [D F], W_dec [F D], z, h [N F].

Cost: one backward pass of the model above the site per text when reading; per step one more product [B D][D F] than a
    TopK autoencoder. Memory 8 N D bytes for activations and gradients read.

Departures: the influence h is divided by the root mean square of the gradients' entries, so that beta is free of units
    and h is about 1 for a direction drawn at random [inferred]. Dividing by the mean of h itself would never let go:
    once the decoder has left the directions of the gradient, what little remains is scaled up again. The score is
    additive, z + beta z h [inferred combination; the second term is the paper's]. Values stay z: scores only select
    [inferred]. The artifact is an ordinary TopK dictionary, as used without gradients; `encode_with_gradient` is the
    other mode.

When it helps: a row whose large features lose their places to an influential small one leaves them in the error, which
    then pulls the small feature's direction towards them. So beta stays small (0.3), and k must leave room for the
    large features as well; with k below that, the influential directions are lost instead of found.

Use:
    model = inn.load("lm")
    found = inn.decompose.GradientSAE(2, k=8, steps=20).fit(model, ["mia was happy ."] * 8, "layers.1.resid_post")
    print(inn.decompose.latent_effect(model, found, ["tom was sad ."], features=[0, 1]))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interneuron.artifacts import Dictionary
from interneuron.core.cards import Card
from interneuron.core.errors import InputError, ShapeError
from interneuron.model.model import Model
from interneuron.parts.activation_rows import place, token_rows_and_gradients
from interneuron.parts.batches import divergences
from interneuron.parts.sparse_training import SparseCoding, SparseTrainer, train_dictionary

CARD = Card(
    id=135,
    slug="gsae",
    family="decompose",
    kind="fitter",
    exports=("GradientSAE", "encode_with_gradient", "latent_effect"),
    paper="Features that Make a Difference: Leveraging Gradients for Improved Dictionary Learning",
    authors="Olmo, Jeffrey and Wilson, Jared and Forsey, Max and Hepner, Bryce and Howe, Thomas Vin and Wingate, David",
    year=2024,
    link="https://arxiv.org/abs/2411.10397",
    purpose="Sparse autoencoder whose features are chosen by size and by their effect on the model's loss",
    needs=("numba",),
    claim="At equal sparsity keeps the model's loss better than TopK, with features that steer more strongly",
)


@dataclass(frozen=True)
class GradientSAE:
    """k-sparse autoencoder with gradient-weighted selection.

    expansion   features per input dimension        k     features a token
    beta        weight of the gradient in the choice; 0 is an ordinary TopK autoencoder, bit for bit
    dead_after  rows a feature may stay silent before the auxiliary loss revives it      skip  first tokens left out
    """

    expansion: int = 8
    k: int = 16
    beta: float = 0.3
    steps: int = 1000
    lr: float = 1e-3
    batch_size: int = 1024
    dead_after: int = 50_000
    skip: int = 1
    seed: int = 0

    def fit(self, model: Model, corpus: Any, site: str) -> Dictionary:
        """Train on the tokens of a corpus (texts, or token ids [N T]) at one site of a causal language model.

        Raises:
            InputError: an empty corpus, a site without positions, or texts no longer than `skip` tokens.
            SiteNotFound: the model has no such site.
            UnsupportedModel: the model gives no logits per token.
        """
        name = place(model, site)
        x, grad = token_rows_and_gradients(model, corpus, name, self.skip)
        return self.fit_activations(x, grad).replace(site=name, fingerprint=model.fingerprint)

    def fit_activations(self, x: Float[Tensor, "N D"], grad: Float[Tensor, "M E"]) -> Dictionary:
        """Train on rows of activations and the gradients of the loss there.

        Raises:
            ShapeError: x is no matrix, or the gradients are not shaped like it.
            InputError: no rows, rows with NaN, or rows that are all the same.
        """
        if x.ndim != 2 or x.shape != grad.shape:
            raise ShapeError(
                f"activations {list(x.shape)} and gradients {list(grad.shape)}, expected both [N D]. Read them together"
            )
        if not bool(torch.isfinite(grad).all()):
            raise InputError("grad holds NaN or infinity. Drop those rows, or look at the model's loss")
        n_features = self.expansion * x.shape[1]
        config = SparseCoding(
            n_features=n_features,
            k=min(self.k, n_features),
            lr=self.lr,
            batch_size=self.batch_size,
            steps=self.steps,
            seed=self.seed,
            dead_after=self.dead_after,
            aux_k=min(512, n_features),
        )
        size = _size(grad)
        trainer = partial(_Trainer, weight=self.beta, size=size)
        found = train_dictionary(x, config, guide=grad, trainer=trainer, slug=CARD.slug)
        return found.replace(fitted={**asdict(self), "gradient_rms": size, **found.fitted})


class _Trainer(SparseTrainer):
    """The shared trainer with the selection of eq. 3; its weight is beta, size the r of eq. 2."""

    def __init__(
        self, config: SparseCoding, mean: Float[Tensor, " D"], rms: float, weight: float = 0.0, size: float = 1.0
    ) -> None:
        super().__init__(config, mean, rms, weight)
        self.size = size

    def select(self, pre: Tensor, centred: Tensor, guide: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The k entries of largest score of each row."""
        if not self.weight or guide is None:
            return self.largest(pre, pre)
        score = torch.mm(guide.float(), self.decoder.T, out=self.buffer("score", *pre.shape))
        return self.largest(_scores(score, pre, self.weight / self.size), pre)


def encode_with_gradient(
    dictionary: Dictionary, x: Float[Tensor, "N D"], grad: Float[Tensor, "N D"], beta: float | None = None
) -> Float[Tensor, "N F"]:
    """Codes chosen as in training, which needs the gradients of the loss at the rows (eq. 1 to 3).

    beta  None takes the one the dictionary was trained with. The size r of the gradients is that of the training too;
    for a dictionary of another trainer, whose `fitted` names neither, it is taken from `grad` and beta must be given.

    Raises ShapeError when rows and gradients differ in shape, InputError for a dictionary without k or a missing beta.
    """
    if x.shape != grad.shape:
        raise ShapeError(f"rows {list(x.shape)} and gradients {list(grad.shape)}: expected one shape. Read together")
    if dictionary.activation != "topk":
        raise InputError(f"a {dictionary.activation} dictionary has no k to choose by. Give a topk dictionary.")
    weight = dictionary.fitted.get("beta") if beta is None else beta
    if weight is None:
        raise InputError("beta is missing: this dictionary was not trained by GradientSAE, so give one, beta=0.3 say")
    z = dictionary.replace(activation="relu", k=0).encode(x)
    unit = dictionary.decoder / dictionary.decoder.norm(dim=1, keepdim=True).clamp_min(1e-12)
    size = dictionary.fitted.get("gradient_rms") or _size(grad)
    score = _scores(grad.to(z.dtype) @ unit.T, z, weight / size) if weight else z
    at = score.topk(dictionary.k, dim=-1).indices
    return torch.zeros_like(z).scatter(-1, at, z.gather(-1, at))


def latent_effect(
    model: Model, dictionary: Dictionary, corpus: Any, features: Sequence[int], alpha: float = 1.0
) -> Float[Tensor, " F"]:
    """How far alpha times the feature's decoder row, added everywhere, moves the predictions: KL in nats per token.

    One value per feature, the mean over the texts. Rows are scaled to the root mean square of the site's activations
    that the dictionary was trained on, so effects compare between dictionaries.
    """
    edits = [dictionary.edit(int(i), alpha=alpha) for i in features]
    return divergences(model, corpus, edits).mean(1)


def _size(grad: Tensor) -> float:
    """Root mean square of the entries (the r of eq. 2); 1 for gradients that are all zero, which choose nothing."""
    return float(grad.double().square().mean().sqrt()) or 1.0


def _scores(influence: Tensor, z: Tensor, weight: float) -> Tensor:
    """z (1 + beta h) where z > 0 and z elsewhere, written over `influence`; weight is beta / r (eq. 2, 3)."""
    return influence.abs_().mul_(weight).mul_(z.clamp_min(0)).add_(z)

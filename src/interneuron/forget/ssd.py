"""Selective synaptic dampening: forget a set of samples in one pass, by shrinking the weights that matter to it most.

Paper: Foster, Schoepf, Brintrup: Fast Machine Unlearning Without Retraining Through Selective Synaptic Dampening
    (AAAI 2024), https://arxiv.org/abs/2308.07707.

Idea: weights that matter far more for what is to be forgotten than for the data at large hold what is special about
    it. Shrinking these alone, in proportion, removes it and leaves the rest; nothing is retrained.

Equations:
    (1)  I_i = mean (d loss / d theta_i)^2                        diagonal of the Fisher information
    (2)  select i with I_f,i > threshold * I_D,i
    (3)  theta_i <- beta_i theta_i,  beta_i = min(dampening * I_D,i / I_f,i, 1)

Shapes: I and beta have the shape of each parameter; D are all training samples, f those to forget.

Cost: one forward and backward pass per batch of both sets; memory of two copies of the parameters.

Departures: none in the method. When all data include those to forget at a share s, I_f / I_D cannot exceed 1/s, so a
    threshold above that selects nothing; this raises an error that names the largest ratio. Weights without importance
    in D (dead units) count as infinitely special to f and become 0 [inferred].

Use:
    model = inn.load("lm")
    delta = inn.forget.SSD(threshold=1.5).fit(model, ["mia looked .", "she felt sad ."], forget=["she felt sad ."])
    with delta.applied(model): model.generate("mia looked", max_new_tokens=4)
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from interneuron.artifacts import WeightDelta
from interneuron.core.cards import Card
from interneuron.core.errors import InputError, need
from interneuron.model.model import Model
from interneuron.parts.importance import fisher_diagonal, losses

CARD = Card(
    id=37,
    slug="ssd",
    family="forget",
    kind="fitter",
    exports=("SSD", "membership_inference"),
    paper="Fast Machine Unlearning Without Retraining Through Selective Synaptic Dampening",
    authors="Foster, Jack and Schoepf, Stefan and Brintrup, Alexandra",
    year=2024,
    link="https://arxiv.org/abs/2308.07707",
    purpose="Make a trained model forget a class or a set of samples in one pass, without retraining",
    claim="Forgets classes, subclasses and samples as well as retraining does, in a fraction of the time",
)


@dataclass(frozen=True)
class SSD:
    """Selective synaptic dampening.

    threshold   how many times more a weight must matter to the forget set (the paper's alpha; its default is 10)
    dampening   scale of the factor a selected weight gets (the paper's lambda)
    batch_size  samples per squared gradient, the same for both sets; 1 is the exact diagonal
    """

    threshold: float = 10.0
    dampening: float = 1.0
    batch_size: int = 1

    def __post_init__(self) -> None:
        if self.threshold <= 0 or self.dampening <= 0 or self.batch_size < 1:
            raise InputError(f"{self}: expected threshold and dampening > 0 and batch_size >= 1")

    def fit(
        self,
        model: Model,
        inputs: Any,
        forget: Any,
        labels: Int[Tensor, " N"] | None = None,
        forget_labels: Int[Tensor, " M"] | None = None,
    ) -> WeightDelta:
        """Return the change of weights that makes `model` forget; the model itself is not changed.

        inputs   all training samples (with or without those to forget); texts or a tensor
        forget   the samples to forget
        labels   their classes; None for language models, where each token is the label of the one before

        Raises:
            InputError: a set is empty, labels do not fit, or the threshold selects nothing.
        """
        if (labels is None) != (forget_labels is None):
            raise InputError("SSD.fit: labels given for one set only, expected both or neither. Pass both")
        everything = fisher_diagonal(model, inputs, labels, self.batch_size)
        special = fisher_diagonal(model, forget, forget_labels, self.batch_size)
        return self._delta(model, everything, special)

    def factors(self, everything: dict[str, Tensor], special: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return beta of every weight from the importances I_D and I_f (eq. 2 and 3); 1 where it is not selected."""
        found = {}
        for name, all_data in everything.items():
            chosen = special[name] > self.threshold * all_data  # eq. 2
            beta = (self.dampening * all_data / special[name].clamp_min(torch.finfo(torch.float32).tiny)).clamp_max(1.0)
            found[name] = torch.where(chosen, beta, 1.0)  # eq. 3
        return found

    def _delta(self, model: Model, everything: dict[str, Tensor], special: dict[str, Tensor]) -> WeightDelta:
        parameters = dict(model.module.named_parameters())
        index, before, after = {}, {}, {}
        for name, beta in self.factors(everything, special).items():
            values = parameters[name].detach().reshape(-1)
            damped = (values.float() * beta.reshape(-1)).to(values.dtype)
            spots = torch.nonzero(damped != values).squeeze(1)
            if len(spots):
                index[name], before[name], after[name] = spots, values[spots].clone(), damped[spots]
        if not index:
            ratios = [(special[k] / everything[k].clamp_min(1e-30)).max().item() for k in everything]
            raise InputError(
                f"SSD: no weight matters {self.threshold} times more to the forget set; the largest ratio is "
                f"{max(ratios):.3g}. Lower threshold (below 1/share when the data include the samples to forget)"
            )
        sizes = {name: parameters[name].numel() for name in everything}
        return WeightDelta(
            index=index,
            before=before,
            after=after,
            n_parameters=sizes,
            slug=CARD.slug,
            fingerprint=model.fingerprint,
            fitted={**asdict(self), "n_changed": sum(map(len, index.values()))},
        )


def membership_inference(
    model: Model, forget: Any, test: Any, forget_labels: Tensor | None = None, test_labels: Tensor | None = None
) -> float:
    """Return how well the loss tells forgotten training samples from unseen ones: 0.5 is not at all.

    Cross-validated balanced accuracy of a logistic regression on the loss of each sample.

    Raises:
        InputError: fewer than five samples in a group.
        MissingExtra: scikit-learn is not installed.
    """
    if min(len(forget), len(test)) < 5:
        raise InputError(f"membership_inference: {len(forget)} and {len(test)} samples, expected at least 5 each")
    linear = need("sklearn.linear_model", extra="learn")
    selection = need("sklearn.model_selection", extra="learn")
    with torch.no_grad():
        seen, unseen = losses(model, forget, forget_labels), losses(model, test, test_labels)
    x = torch.cat([seen, unseen]).double().cpu().numpy()[:, None]
    y = [1] * len(seen) + [0] * len(unseen)
    attack = linear.LogisticRegression(class_weight="balanced")
    return float(selection.cross_val_score(attack, x, y, cv=5, scoring="balanced_accuracy").mean())

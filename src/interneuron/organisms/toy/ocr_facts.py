"""`ocr_facts`: does a model that learned "Ann lives in A" infer "Ann speaks b" because others from A do?

Every name has a fact a(n); every fact implies b(a). Training shows all facts and the implications of some names; the
test asks the implications of the rest. A one-layer attention-only model answers when its output and value matrices are
trained as two factors, and cannot when they are one matrix.

Truth. `fact_of` Int[names], `implied_by` Int[facts], so the answer to every held-out question is known.
Source. Huang et al. 2025, "Generalization or Hallucination? Understanding Out-of-Context Reasoning in Transformers".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from interneuron.core.errors import InputError, did_you_mean

from .cache import Trained, cached
from .nets import seeded

SPLITS = ("facts", "train_implications", "train", "test")


@dataclass(frozen=True)
class OCRFacts:
    """The task. Token ids: names, then facts, implications, noise words, the two relations and <end>."""

    n_names: int
    n_facts: int
    n_implications: int
    n_noise: int
    length: int
    is_train: Tensor
    truth: dict[str, Tensor]

    @property
    def vocab(self) -> int:
        return self.n_names + self.n_facts + self.n_implications + self.n_noise + 3

    def _ids(self) -> tuple[int, int, int, int, int]:
        first_fact = self.n_names
        first_implication = first_fact + self.n_facts
        first_noise = first_implication + self.n_implications
        relation = first_noise + self.n_noise
        return first_fact, first_implication, first_noise, relation, relation + 2

    def questions(self, split: str) -> tuple[Tensor, Tensor, Tensor]:
        """All (name, relation token, answer token) of a split, Int[M] each."""
        if split not in SPLITS:
            raise InputError(
                f"ocr_facts has no split {split!r}; expected {', '.join(SPLITS)}.{did_you_mean(split, SPLITS)}"
            )
        first_fact, first_implication, _, relation, _ = self._ids()
        names = torch.arange(self.n_names)
        fact = self.truth["fact_of"]
        facts = (names, torch.full_like(names, relation), fact + first_fact)
        implied = self.truth["implied_by"][fact] + first_implication
        if split == "facts":
            return facts
        chosen = ~self.is_train if split == "test" else self.is_train
        implications = (names[chosen], torch.full_like(names[chosen], relation + 1), implied[chosen])
        if split != "train":
            return implications
        a, b, c = (torch.cat(pair) for pair in zip(facts, implications, strict=True))
        return a, b, c

    def batch(self, n: int, seed: int, split: str = "train") -> tuple[Tensor, Tensor]:
        """Sequences Int[n length] (the name and the relation somewhere in noise, <end> last) and answers Int[n]."""
        rng = torch.Generator().manual_seed(seed)
        names, relations, answers = self.questions(split)
        pick = torch.randint(len(names), (n,), generator=rng)
        _, _, first_noise, _, end = self._ids()
        tokens = torch.randint(first_noise, first_noise + self.n_noise, (n, self.length), generator=rng)
        places = torch.rand(n, self.length - 1, generator=rng).argsort(1)[:, :2].sort(1).values
        rows = torch.arange(n)
        tokens[rows, places[:, 0]] = names[pick]
        tokens[rows, places[:, 1]] = relations[pick]
        tokens[:, -1] = end
        return tokens, answers[pick]


def make(
    seed: int,
    *,
    n_names: int = 80,
    n_facts: int = 20,
    n_implications: int = 20,
    n_noise: int = 5,
    length: int = 16,
    train_share: float = 0.25,
    linked: bool = True,
) -> OCRFacts:
    """Facts spread evenly over names. `linked=False` draws every name's implication alone: no inference helps."""
    if length < 3 or n_names < n_facts:
        raise InputError(f"ocr_facts needs length >= 3 and n_names >= n_facts, got {length}, {n_names}, {n_facts}.")
    rng = torch.Generator().manual_seed(seed)
    fact_of = (torch.arange(n_names) % n_facts)[torch.randperm(n_names, generator=rng)]
    implied_by = (torch.arange(n_facts) % n_implications)[torch.randperm(n_facts, generator=rng)]
    is_train = torch.zeros(n_names, dtype=torch.bool)
    # the same number of training names for every fact, so that each link is seen at least once
    per_fact = max(1, round(train_share * n_names / n_facts))
    for fact in range(n_facts):
        holders = (fact_of == fact).nonzero()[:, 0]
        is_train[holders[torch.randperm(len(holders), generator=rng)[:per_fact]]] = True
    data = OCRFacts(
        n_names, n_facts, n_implications, n_noise, length, is_train, {"fact_of": fact_of, "implied_by": implied_by}
    )
    if linked:
        return data
    return _Unlinked(**data.__dict__, own=torch.randint(n_implications, (n_names,), generator=rng))


@dataclass(frozen=True)
class _Unlinked(OCRFacts):
    """The control: implications are drawn for each name alone."""

    own: Tensor

    def questions(self, split: str) -> tuple[Tensor, Tensor, Tensor]:
        names, relations, answers = super().questions(split)
        _, first_implication, _, relation, _ = self._ids()
        return names, relations, torch.where(relations == relation + 1, self.own[names] + first_implication, answers)


class OneLayerOV(nn.Module):
    """Attention over one-hot tokens from the last position; logits = W_O W_V sum_t a_t e_t, or one matrix W_OV.

    tokens Int[B T] -> logits Float[B vocab]. `factorised=False` trains the product as a single matrix.
    """

    def __init__(self, vocab: int, *, factorised: bool = True, rank: int | None = None) -> None:
        super().__init__()
        inner = rank or vocab
        self.factorised, self.vocab = factorised, vocab
        if factorised:
            self.value = nn.Parameter(torch.randn(inner, vocab) * 0.02)
            self.output = nn.Parameter(torch.randn(vocab, inner) * 0.02)
        else:
            self.combined = nn.Parameter(torch.randn(vocab, vocab) * 0.02)
        self.query = nn.Parameter(torch.randn(vocab, vocab) * 0.02)

    def ov(self) -> Tensor:
        """The map from attended token to logits, Float[vocab vocab]."""
        return self.output @ self.value if self.factorised else self.combined

    def forward(self, tokens: Tensor) -> Tensor:
        one_hot = F.one_hot(tokens, self.vocab).float()
        scores = torch.einsum("btv,bv->bt", one_hot, one_hot[:, -1] @ self.query)
        mixed = torch.einsum("bt,btv->bv", scores.softmax(1) * tokens.shape[1], one_hot)
        return mixed @ self.ov().T


def score(model: nn.Module, data: OCRFacts, split: str, seed: int = 0, n: int = 512) -> dict[str, float]:
    """Accuracy, mean rank of the right answer (0 = first) and loss on a split."""
    tokens, answers = data.batch(n, seed, split)
    with torch.no_grad():
        logits = model(tokens)
    rank = (logits > logits.gather(1, answers[:, None])).sum(1).float()
    return {
        "accuracy": float((rank == 0).float().mean()),
        "mean_rank": float(rank.mean()),
        "loss": float(F.cross_entropy(logits, answers)),
    }


def _train(model: nn.Module, data: OCRFacts, factorised: bool, steps: int) -> dict[str, Any]:
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.03)
    for step in range(steps):
        tokens, answers = data.batch(256, step)
        loss = F.cross_entropy(model(tokens), answers)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    train, test = score(model, data, "train", seed=-1), score(model, data, "test", seed=-1)
    good = test["accuracy"] >= 0.9 if factorised else test["accuracy"] <= 0.1
    return {
        "train": train,
        "test": test,
        "required": f"train >= 0.99 and test {'>= 0.9' if factorised else '<= 0.1'}",
        "passed": train["accuracy"] >= 0.99 and good,
    }


def trained(seed: int = 0, *, factorised: bool = True, linked: bool = True) -> Trained:
    """The one-layer model after 1,500 steps. The gate assumes `linked=True`; without links nothing can be inferred."""
    data = make(seed, linked=linked)
    with seeded(seed):
        model = OneLayerOV(data.vocab, factorised=factorised)
    dials = {"seed": seed, "factorised": factorised, "linked": linked}
    card = cached("ocr_facts", dials, model, lambda m: _train(m, data, factorised and linked, 1500), 20, __name__)
    return Trained(model, data, card)

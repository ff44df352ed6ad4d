"""WINA on `lm`: at equal sparsity its predictions stay nearer to the dense model's than those of TEAL.

The paper's accuracy over benchmarks becomes the KL divergence between the predictions of the dense and the sparse model
per document, at 50 % and 65 % sparsity of every linear layer, on the model with orthogonal columns (for which the
guarantee holds). The headline is the divergence at 65 %; the factor 0.75 that the check asks of the mean divergence at
both sparsities is a gate, since the mean is what it speaks of. As in the authors' code, norms are used where columns
are orthogonal (k and gate). On the model as it is the two choices are nearly the same; there the error of each matrix
product on dense activations is compared. The control drops random channels.

The first percent of a prompt stays dense, as in the method: here its first position, the same in all documents. Few
documents carry most of a divergence, so that it takes many to tell its ratio to TEAL's from 0.75: 1,536 at 50 %, 512 at
65 % (256 in earlier versions, with standard errors of 0.05 and 0.02). The items of the headline are means over 16
documents. An earlier version without the dense position missed 0.75 under one seed of three, at 65 % on 256 documents
(0.755) and at 50 % on 1,024 (0.763).
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from interneuron.claims import Claim, Comparison
from interneuron.core.seeds import generator
from interneuron.loading import load
from interneuron.model.model import Model
from interneuron.organisms import tinyworld as tw
from interneuron.parts.batches import divergences
from interneuron.parts.linear_layers import block_linears, column_norms, weight_of
from interneuron.sparse.wina import WINA, Score, SparseMask, orthogonalize_columns, wina_mask

CLAIM = Claim(
    slug="wina",
    organism="lm",
    paper="up to 2.94 % higher mean accuracy than TEAL at equal sparsity (25-65 %)",
    better="lower",
    unit="nats per token",
    minutes=4,
    why=(
        "To be read with it: this is the model rotated so that its columns are orthogonal, for which the theorem "
        "holds. On the model as it is, WINA's divergence is 1.03, 1.00 and 1.06 times TEAL's at 65 %."
    ),
)

N_ROWS, N_STRONG, N_CHANCE, LENGTH, GROUP = 1536, 512, 128, 40, 16
# sparsity, documents, ways of scoring
PLAN: tuple[tuple[float, int, tuple[Score, ...]], ...] = (
    (0.5, N_ROWS, ("wina", "teal")),
    (0.65, N_STRONG, ("wina", "teal", "random")),
    (0.5, N_CHANCE, ("random",)),
)


def claim(seed: int) -> Comparison:
    """KL of WINA, TEAL and random masks on the rotated model, and the checks of the mathematics."""
    model = load(CLAIM.organism)
    rotated = orthogonalize_columns(model)
    rows = _rows(seed)
    kl: dict[tuple[Score, float], Tensor] = {}
    for p, n, scores in PLAN:
        found = _divergences(rotated, rows[:n], [WINA(p, score, "orthogonal", seed=seed) for score in scores])
        kl |= {(score, p): found[i] for i, score in enumerate(scores)}
    plain = _divergences(model, rows[:96], [WINA(0.65), WINA(0.65, "teal")]).mean(1)
    with torch.no_grad():
        gap = float((model(rows[:8]).logits - rotated(rows[:8]).logits).abs().max())
    ours, teal = (_matrix_error(model, rows[:16], score) for score in ("wina", "teal"))
    ratio = {p: float(kl["wina", p].mean() / kl["teal", p].mean()) for p in (0.5, 0.65)}
    chance = {p: float(kl["wina", p][:N_CHANCE].mean() / kl["random", p][:N_CHANCE].mean()) for p in (0.5, 0.65)}
    best = _optimal_masks(seed)
    return Comparison(
        ours=kl["wina", 0.65].reshape(-1, GROUP).mean(1).tolist(),
        baseline=kl["teal", 0.65].reshape(-1, GROUP).mean(1).tolist(),
        control=kl["random", 0.65].reshape(-1, GROUP).mean(1).tolist(),
        gates={
            "KL at 50 % is at most 0.75 of TEAL's": ratio[0.5] <= 0.75,
            "KL at 65 % is at most 0.75 of TEAL's": ratio[0.65] <= 0.75,
            "KL at both is at most 0.2 of random masks'": max(chance.values()) <= 0.2,
            "unrotated, the mean error of a matrix product is at most TEAL's": ours <= teal,
            "the rotation changes logits by less than 1e-4": gap < 1e-4,
            "the mask is the best of all in 100 of 100 draws with orthogonal columns": best == 100,
        },
        extra={
            "KL over TEAL's at 50 %": ratio[0.5],
            "KL over TEAL's at 65 %": ratio[0.65],
            "KL over random at 65 %": chance[0.65],
            "WINA's KL over TEAL's on the model as it is, 65 %": float(plain[0] / plain[1]),
            "TEAL's KL at 65 %, as it is": float(plain[1]),
            "TEAL's KL at 65 %, rotated, same rows": float(kl["teal", 0.65][:96].mean()),
            "unrotated error over TEAL's": ours / teal,
            "logit change by rotation": gap,
        },
    )


def example(model: Model) -> SparseMask:
    """A mask with calibrated thresholds."""
    return WINA(sparsity=0.5, mode="threshold").fit(model, ["she felt happy .", "the lamp was lovely today ."])


def tensors(n: int, width: int, seed: int) -> dict[str, Tensor]:
    """Rows whose scores are far apart, so that rounding cannot change their order."""
    order = torch.stack([torch.randperm(width, generator=generator(seed + i)) for i in range(n)] or [torch.empty(0)])
    x = 2.0 ** (order.float() - 6) if n else torch.zeros(0, width)
    return {"x": x, "col_norm": 1.0 + 0.5 * (torch.arange(width) % 2)}


def apply(x: Tensor, col_norm: Tensor) -> dict[str, Tensor]:
    """The mask at one half."""
    return {"mask": wina_mask(x, col_norm, 0.5).float()}


def _rows(seed: int) -> Tensor:
    """The first words of documents that are long enough, so that nothing is padded."""
    rows = []
    for document in tw.corpus(tokens=1e6, seed=1000 + seed):
        if len(document.words) >= LENGTH - 1:
            rows.append(torch.tensor(tw.encode(" ".join(document.words[: LENGTH - 1]))))
        if len(rows) == N_ROWS:
            break
    return torch.stack(rows)


def _divergences(model: Model, rows: Tensor, rules: list[WINA]) -> Tensor:
    """KL by rule and row."""
    return divergences(model, rows, [rule.fit(model).edit("dense") for rule in rules], batch_size=32)


@torch.no_grad()
def _matrix_error(model: Model, rows: Tensor, score: str) -> float:
    """Mean over matrices of ||W (x - g x)||^2 / ||W x||^2 at 50 %, on dense activations."""
    layers = block_linears(model)
    acts = model.run(rows, read=[f"{path}:in" for path in layers]).acts
    errors = []
    for path, layer in layers.items():
        x, weight = acts[f"{path}:in"], weight_of(layer)
        c = column_norms(layer) if score == "wina" else torch.ones(x.shape[-1])
        lost = (x * ~wina_mask(x, c, 0.5)) @ weight.T
        errors.append(float(lost.square().sum() / (x @ weight.T).square().sum()))
    return sum(errors) / len(errors)


def _optimal_masks(seed: int, draws: int = 100, n: int = 12) -> int:
    """In how many draws of x and W with orthogonal columns no other mask of as many channels has a smaller error."""
    noise = generator(seed)
    subsets = torch.tensor([[i in chosen for i in range(n)] for chosen in itertools.combinations(range(n), n // 2)])
    right = 0
    for _ in range(draws):
        q = torch.linalg.qr(torch.randn(16, n, generator=noise, dtype=torch.float64)).Q
        w = q * torch.rand(n, generator=noise, dtype=torch.float64).mul(3).exp()
        x = torch.randn(n, generator=noise, dtype=torch.float64)
        errors = ((x * ~subsets) @ w.T).square().sum(1)
        mine = ((x * ~wina_mask(x, w.norm(dim=0), 0.5)) @ w.T).square().sum()
        right += bool(mine <= errors.min() * (1 + 1e-9))
    return right

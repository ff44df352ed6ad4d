"""Top-AFA on synthetic dictionaries and on `lm`: as faithful as TopK and BatchTopK at its own sparsity, without a k.

(a) Sparse sums of 2 to 20 unit directions of controlled coherence: the bound between lengths holds for every sample,
and with the true codes as activations k* follows the true number. (b) Mid-layer residual stream of `lm`: Top-AFA is
trained first, then TopK and BatchTopK with k set to its mean number of active features. Numbers are the normalised
errors of reconstruction on held-out tokens (four groups of them); the baseline is the better of the two rivals, the
control a dictionary whose decoder rows are permuted. The length term has the weight 1/128 of the mean squared error,
the smallest of the authors' grid. In an earlier run the weight 0.01 stood beside the sum over the 160 coordinates, a
hundredth of theirs, and lengths missed the input's by as much as TopK's (0.31).

All three are trained at the rate, of 3e-4, 1e-3, 3e-3 and 1e-2, at which each reconstructs best on a development seed
(the 300 steps are few); at 1e-3, as first run, none was near the end of its training, and they were alike by that.
"""

from __future__ import annotations

import torch
from torch import Tensor

from interneuron.artifacts import Dictionary
from interneuron.artifacts.dictionary import top_afa
from interneuron.claims import Claim, Comparison
from interneuron.core.seeds import generator
from interneuron.decompose.top_afa import TopAFA, afa_report
from interneuron.loading import load
from interneuron.model.model import Model
from interneuron.organisms import tinyworld as tw
from interneuron.parts.activation_rows import token_rows
from interneuron.parts.sparse_training import Codes, SparseCoding, train_dictionary

CLAIM = Claim(
    slug="top_afa",
    organism="lm",
    paper="on three GPT-2 layers matches or beats TopK and BatchTopK at comparable L0 without choosing k",
    better="lower",
    unit="normalised error",
    minutes=2,
    ratio=1.05,
    why=(
        "Top-AFA leaves 0.056 to 0.065 of the variance with 85 to 97 active features, TopK with as many 0.033 to "
        "0.035 and BatchTopK 0.044 to 0.047. All else holds: the planted part, the dead features, and lengths that "
        "agree within 0.7 %, TopK's within 33 to 35 %. An earlier run at a rate of 1e-3 had the claim reproduced; "
        "there TopK with 242 active features left 0.087 after its 300 steps, and leaves 0.016 at 1e-2, so none was "
        "near the end of its training, and they were alike by that. It is the agreement of lengths that costs. On a "
        "development seed weight 0 leaves 0.0111 against TopK's 0.0115, but with 355 features active in 160 "
        "dimensions and lengths that miss by nearly as much as TopK's (0.147, 0.171). Weights from 1/1024 to 1/16, "
        "the MLP's outputs, lm-gpt2, rows normalised one by one, and an encoder that starts shorter than the "
        "decoder, as in the authors' code, with 8 or 16 features a dimension and weights up to 0.3, all leave 1.2 "
        "to 2.5 times TopK's error. The runs the authors publish with their code show the same but for one end: at "
        "layer 6 of GPT-2 small 0.132 with 315 active where TopK leaves 0.026 with 256, and a tie, at weights of "
        "1/32 and more, with over 2,000 features active in 768 dimensions."
    ),
)

TOKENS, HELD = 4e4, 4e3
EXPANSION, STEPS, BATCH, LR = 8, 300, 1024, 1e-2


def claim(seed: int) -> Comparison:
    """The bound and k* on planted codes; three dictionaries of one size on `lm`."""
    model = load(CLAIM.organism)
    site = f"layers.{model.n_layers // 2}.resid_post"
    x, held = (token_rows(model, _texts(n, s), site, 1) for n, s in ((TOKENS, seed), (HELD, 10_000 + seed)))
    found = TopAFA(EXPANSION, steps=STEPS, batch_size=BATCH, lr=LR, seed=seed).fit_activations(x)
    k = max(1, round(found.quality(held)["l0"]))
    names: tuple[Codes, ...] = ("topk", "batchtopk")
    rivals = {name: _rival(name, k, x, seed) for name in names}
    everything: dict[str, Dictionary] = {"ours": found, **rivals}
    error = {name: _errors(d, held) for name, d in everything.items()}
    better = min(rivals, key=lambda name: sum(error[name]))
    shuffled = found.replace(decoder=found.decoder[torch.randperm(found.n_features, generator=generator(seed))])
    dead = {name: d.quality(x[:8000])["dead"] for name, d in everything.items()}
    gap = {name: afa_report(d, held)["gap"] for name, d in everything.items()}
    bound, rank = _planted(seed)
    return Comparison(
        ours=error["ours"],
        baseline=error[better],
        control=_errors(shuffled, held),
        gates={
            "the bound between lengths holds for every planted sample": bound,
            "with the true dictionary, Spearman of k* and the true number is at least 0.7": rank >= 0.7,
            "normalised error is at most 1.05 of the better rival's": sum(error["ours"]) <= 1.05 * sum(error[better]),
            "dead features are at most 5 points more than the rivals'": dead["ours"]
            <= min(dead[name] for name in rivals) + 0.05,
            "the gap between lengths is at most half of TopK's": gap["ours"] <= 0.5 * gap["topk"],
        },
        extra={
            "L0": k, "better rival": better, "Spearman of k*": rank,
            **{f"dead, {name}": value for name, value in dead.items()},
            **{f"gap, {name}": float(value) for name, value in gap.items()},
            **{f"error, {name}": sum(value) / 4 for name, value in error.items()},
        },
    )  # fmt: skip


def example(model: Model) -> Dictionary:
    """A small dictionary on a few documents."""
    return TopAFA(2, steps=30, batch_size=256).fit(model, _texts(1500, 1), "layers.1.resid_post")


def tensors(n: int, width: int, seed: int) -> dict[str, Tensor]:
    """Random rows."""
    return {"x": torch.randn(n, width, generator=generator(seed))}


def apply(x: Tensor) -> Dictionary:
    """Train on rows that have been read already."""
    return TopAFA(2, steps=10, batch_size=8).fit_activations(x)


def _texts(tokens: float, seed: int) -> list[str]:
    return sorted((doc.text for doc in tw.corpus(tokens, seed=seed)), key=len)


def _rival(name: Codes, k: int, x: Tensor, seed: int) -> Dictionary:
    config = SparseCoding(
        EXPANSION * x.shape[1], name, k=k, lr=LR, beta2=0.99, batch_size=BATCH, steps=STEPS, seed=seed,
        dead_after=20_480, aux_k=512,
    )  # fmt: skip
    return train_dictionary(x, config)


def _errors(d: Dictionary, x: Tensor) -> list[float]:
    """|x - y|^2 / |x - mean|^2 of four groups of rows."""
    with torch.no_grad():
        left = (x - d.reconstruct(x)).square().sum(1)
    total = (x - x.mean(0)).square().sum(1)
    return [float(left[i::4].sum() / total[i::4].sum()) for i in range(4)]


def _planted(seed: int) -> tuple[bool, float]:
    """Whether eq. 1 holds for all samples, and the rank correlation of k* with the true number of features."""
    from scipy.stats import spearmanr

    rng = generator(seed)
    holds, ranks = True, []
    for coherence in (0.0, 0.02):
        own = torch.nn.functional.normalize(torch.randn(256, 128, generator=rng).double(), dim=1)
        common = torch.nn.functional.normalize(torch.randn(1, 128, generator=rng).double(), dim=1)
        rows = torch.nn.functional.normalize((1 - coherence) ** 0.5 * own + coherence**0.5 * common, dim=1)
        number = torch.randint(2, 21, (2000,), generator=rng)
        order = torch.rand(2000, 256, generator=rng).argsort(1).argsort(1)
        f = (order < number[:, None]) * (0.5 + torch.rand(2000, 256, generator=rng).double())
        x = f @ rows
        eps = float((rows @ rows.T).fill_diagonal_(0).abs().max())
        square, one = f.square().sum(1), f.sum(1)
        holds &= bool(((x.square().sum(1) - square).abs() <= eps * (one.square() - square) + 1e-9).all())
        k = (top_afa((x @ rows.T).relu(), x.norm(dim=1)) > 0).sum(1)
        ranks.append(float(spearmanr(k.numpy(), number.numpy()).statistic))
    return holds, min(ranks)

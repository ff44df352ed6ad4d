"""Training a TopK dictionary: tokens per second of one optimiser step, beside the trainers of other packages.

    OMP_NUM_THREADS=1 python benchmarks/sparse_training.py

d = 512, 4096 latents, k = 32, batches of 4096 rows, float32, Adam, one thread; CPU seconds, the cases in alternation.
Peers that are not installed are left out (`benchmarks/foreign/install.sh` makes an environment for each).
Bars: >= 2.2x eai-sparsify (3x aimed at) and >= 4.5x SAELens.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator

# Before torch and numba are imported: threads of their own would be counted as CPU time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import torch
from timing import alternate, table
from torch import Tensor, nn
from torch.nn import functional

from interneuron.core.seeds import generator
from interneuron.parts.sparse_training import SparseCoding, SparseTrainer

D, F, K, B = 512, 4096, 32, 4096
BARS = {"eai-sparsify": (2.2, 3.0), "SAELens": (4.5, 4.5)}


def rows() -> Iterator[Tensor]:
    """The same four batches, again and again."""
    rng = generator(0)
    batches = [torch.randn(B, D, generator=rng) for _ in range(4)]
    while True:
        yield from batches


def ours() -> Callable[[], object]:
    """One step of the shared trainer."""
    source = rows()
    trainer = SparseTrainer(SparseCoding(F, "topk", k=K, batch_size=B), torch.zeros(D), 1.0)
    return lambda: trainer.step(next(source))


def dense() -> Callable[[], object]:
    """The same step written with dense tensors and autograd."""
    source, rng = rows(), generator(1)
    encoder, decoder = (nn.Parameter(torch.randn(F, D, generator=rng) / D**0.5) for _ in range(2))
    bias, origin = nn.Parameter(torch.zeros(F)), nn.Parameter(torch.zeros(D))
    optimizer = torch.optim.Adam([encoder, decoder, bias, origin], 1e-3, fused=True)

    def step() -> None:
        x = next(source)
        top = functional.linear(x - origin, encoder, bias).relu().topk(K, sorted=False)
        f = torch.zeros(B, F).scatter(1, top.indices, top.values)
        loss = (f @ decoder + origin - x).square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def sparsify() -> Callable[[], object]:
    """The body of the training loop of eai-sparsify."""
    from sparsify import SparseCoder, SparseCoderConfig

    source = rows()
    coder = SparseCoder(D, SparseCoderConfig(num_latents=F, k=K), device="cpu", dtype=torch.float32)
    optimizer = torch.optim.Adam(coder.parameters(), 1e-3)

    def step() -> None:
        coder(next(source)).fvu.backward()
        if coder.cfg.normalize_decoder:
            coder.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        if coder.cfg.normalize_decoder:
            coder.set_decoder_norm_to_unit_norm()

    return step


def saelens() -> Callable[[], object]:
    """One step of SAELens's own trainer."""
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=D, d_sae=F, k=K, use_sparse_activations=False, device="cpu"))
    config = SAETrainerConfig(total_training_samples=10**9, train_batch_size_samples=B, lr=1e-3, lr_end=1e-3)
    trainer = SAETrainer(config, sae, rows())
    return lambda: trainer.step(next(trainer.data_provider))


def main() -> bool:
    """Print the table; True when every bar that could be measured holds."""
    torch.set_num_threads(1)
    cases = {"ours": ours(), "dense autograd": dense()}
    for name, make in {"eai-sparsify": sparsify, "SAELens": saelens}.items():
        try:
            cases[name] = make()
        except ImportError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
    times = alternate(cases, rounds=7, sample=0.1)
    base = times["ours"]["median"]
    table(
        f"TopK dictionary, d={D}, {F} latents, k={K}, batch {B}, one thread",
        ["trainer", "CPU ms/step", "tokens/s", "ours is faster by", "by the fastest step"],
        [
            [
                name,
                t["median"] * 1e3,
                round(B / t["median"]),
                t["median"] / base,
                t["fastest"] / times["ours"]["fastest"],
            ]
            for name, t in times.items()
        ],
    )
    held = True
    for name, (bar, aim) in BARS.items():
        if name in times:
            ratio = times[name]["median"] / base
            held &= ratio >= bar
            print(f"  {'ok  ' if ratio >= bar else 'MISS'} {ratio:.2f}x {name} (bar {bar}, aim {aim})")
    return held


if __name__ == "__main__":
    sys.exit(0 if main() else 1)

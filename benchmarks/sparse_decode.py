"""Sparse decoding: matrix times a vector with few entries kept, and a whole language model under a WINA mask.

    python benchmarks/sparse_decode.py            # both; add --matvec or --decode for one

CPU seconds of one thread, the cases in alternation; ratios are of the same run. The baseline of a product is
`torch.mv`, of the model Hugging Face's generate. Bars: at 65 % zeros >= 1.6x on 11008 x 4096 (stretch 2.5x), at 0 %
never slower than dense beyond noise (the call falls back to it); decoding >= 1.3x (stretch 1.5x).
"""

from __future__ import annotations

import statistics
import sys
import time

import torch
from timing import alternate, table
from torch.nn import functional

import interneuron as inn
from interneuron.parts.sparse_inputs import Columns, SparseInput

SHAPES = ((11008, 4096), (4096, 11008), (2048, 768))
BARS = {0.65: 1.6, 0.0: 0.95}  # 5 % is the noise of identical cases on a busy machine
DECODE_BAR = 1.3
NEW_TOKENS = 12


def matvec() -> bool:
    """Products as a linear layer calls them: masked input in, dense output out, the scan for zeros included."""
    met = True
    rows: list[list[object]] = []
    generator = torch.Generator().manual_seed(0)
    for out, width in SHAPES:
        weight = torch.randn(out, width, generator=generator) / width**0.5
        x = torch.randn(width, generator=generator)
        cases = {"dense": lambda w=weight, v=x: torch.mv(w, v)}
        columns = Columns()
        for zeros in (0.0, 0.3, 0.5, 0.65, 0.8):
            keep = torch.ones(width, dtype=torch.bool)
            keep[x.abs().argsort()[: int(zeros * width)]] = False
            sparse = SparseInput.make((x * keep)[None], columns)
            torch.testing.assert_close(functional.linear(sparse, weight)[0], weight @ (x * keep), atol=1e-4, rtol=1e-4)
            cases[f"{zeros:.0%} zeros"] = lambda s=sparse, w=weight: functional.linear(s, w)
        times = alternate(cases, rounds=15)
        for name, seconds in times.items():
            ratio = times["dense"]["median"] / seconds["median"]
            rows.append([f"{out} x {width}", name, seconds["median"] * 1e3, ratio])
            share = float(name.split("%")[0]) / 100 if "%" in name else None
            bar = BARS.get(share) if share is not None and out == SHAPES[0][0] else None
            met = met and (bar is None or ratio >= bar)
    table("matrix times vector", ["out x in", "case", "ms", "over torch.mv"], rows)
    return met


def decode() -> bool:
    """A Llama-class model of width 2048 with random weights writes a few tokens, dense and at 65 % sparsity."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=4, num_attention_heads=16, num_key_value_heads=4,
        vocab_size=32000, max_position_embeddings=512,
    )  # fmt: skip
    model = inn.wrap(LlamaForCausalLM(config).eval())
    prompt = torch.randint(0, 32000, (1, 8))
    masks = {
        "dense": None,
        "WINA 0 %": inn.sparse.WINA(sparsity=0.0).fit(model).edit(),
        "WINA 65 %, top-k": inn.sparse.WINA(sparsity=0.65).fit(model).edit(),
        "WINA 65 %, thresholds": inn.sparse.WINA(sparsity=0.65, mode="threshold").fit(model, prompt).edit(),
    }

    def write(edits: object) -> float:
        start = time.process_time()
        options = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0}
        if edits is None:
            model.module.generate(prompt, **options)
        else:
            with model.edit(edits):
                model.generate(prompt, **options)
        return time.process_time() - start

    times: dict[str, list[float]] = {name: [] for name in masks}
    for edits in masks.values():
        write(edits)
    for _ in range(7):
        for name, edits in masks.items():
            times[name].append(write(edits) / NEW_TOKENS)
    base = statistics.median(times["dense"])
    rows = [[name, statistics.median(t) * 1e3, base / statistics.median(t)] for name, t in times.items()]
    table("decoding, d = 2048", ["case", "ms a token", "over dense"], rows)
    return base / statistics.median(times["WINA 65 %, top-k"]) >= DECODE_BAR


def main() -> int:
    """Run what was asked for; 0 when the bars are met."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    chosen = [run for run in (matvec, decode) if len(sys.argv) == 1 or f"--{run.__name__}" in sys.argv]
    met = {run.__name__: run() for run in chosen}
    print("\n" + ", ".join(f"{name}: bar {'met' if ok else 'missed'}" for name, ok in met.items()))
    return 0 if all(met.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

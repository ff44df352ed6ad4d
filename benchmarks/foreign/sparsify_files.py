"""eai-sparsify: write one sparse coder per kind, or load those that interneuron wrote."""

from __future__ import annotations

from pathlib import Path

import torch
from common_cases import D, F, compare, fill, main, note, rows
from sparsify.config import SparseCoderConfig
from sparsify.sparse_coder import SparseCoder

CASES = {
    "topk/layers.1": {"k": 3},
    "groupmax/layers.1.mlp": {"k": 4, "activation": "groupmax"},
    "transcoder/layers.1.mlp": {"k": 3, "transcode": True},
    "skip/layers.1.mlp": {"k": 3, "transcode": True, "skip_connection": True},
}


def encoded(coder: SparseCoder, x: torch.Tensor) -> torch.Tensor:
    found = coder.encode(x)
    return torch.zeros(len(x), coder.num_latents).scatter(1, found.top_indices, found.top_acts)


def make(folder: Path) -> None:
    for name, options in CASES.items():
        coder = SparseCoder(D, SparseCoderConfig(num_latents=F, **options))
        fill(coder)
        coder.save_to_disk(folder / name)
        with torch.no_grad():
            note(folder / name, rows(), encoded(coder, rows()), coder(rows()).sae_out)
        print(f"wrote {folder / name}")


def check(folder: Path) -> bool:
    good = True
    for path in sorted(p.parent for p in folder.rglob("cfg.json")):
        coder = SparseCoder.load_from_disk(path)
        good &= compare(
            f"{path.parent.name}/{path.name}", path, lambda x, c=coder: encoded(c, x), lambda x, c=coder: c(x).sae_out
        )
    return good


if __name__ == "__main__":
    main(make, check)

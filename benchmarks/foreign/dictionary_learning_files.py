"""dictionary_learning: write one dictionary per class, or load those that interneuron wrote."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from common_cases import D, F, compare, fill, main, note, rows
from dictionary_learning.dictionary import AutoEncoder, AutoEncoderNew, GatedAutoEncoder, JumpReluAutoEncoder
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK

CLASSES = {
    "AutoEncoder": lambda: AutoEncoder(D, F),
    "AutoEncoderNew": lambda: AutoEncoderNew(D, F),
    "GatedAutoEncoder": lambda: GatedAutoEncoder(D, F),
    "JumpReluAutoEncoder": lambda: JumpReluAutoEncoder(D, F),
    "AutoEncoderTopK": lambda: AutoEncoderTopK(D, F, 3),
    "BatchTopKSAE": lambda: BatchTopKSAE(D, F, 3),
}


def make(folder: Path) -> None:
    for name, build in CLASSES.items():
        module = build()
        fill(module)
        if name == "BatchTopKSAE":
            module.threshold.fill_(0.4)
        home = folder / name
        home.mkdir(parents=True, exist_ok=True)
        torch.save(module.state_dict(), home / "ae.pt")
        trainer = {
            "dict_class": name,
            "activation_dim": D,
            "dict_size": F,
            "layer": 1,
            "lm_name": "tiny",
            "submodule_name": "resid_post_layer_1",
        }
        if "TopK" in name:
            trainer["k"] = 3
        (home / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128}}))
        with torch.no_grad():
            note(home, rows(), module.encode(rows()), module(rows()))
        print(f"wrote {home}")


def check(folder: Path) -> bool:
    good = True
    for path in sorted(p.parent for p in folder.rglob("ae.pt")):
        name = json.loads((path / "config.json").read_text())["trainer"]["dict_class"]
        module = CLASSES[name]()
        module.load_state_dict(torch.load(path / "ae.pt", weights_only=True))  # noqa: TID251 - the package's own format
        good &= compare(path.name, path, module.encode, module)
    return good


if __name__ == "__main__":
    main(make, check)

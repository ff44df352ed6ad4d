"""Write dictionaries and steering vectors by interneuron, with what they compute, for the packages to read back."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from common_cases import D, F, note, rows
from lm_eval_model import WIDTH, expected_of, tiny
from safetensors.torch import save_file

import interneuron as inn
from interneuron.artifacts import Dictionary, Direction, formats


def dictionary(activation: str, o: int = D, **changes: object) -> Dictionary:
    rng = torch.Generator().manual_seed(21)
    parts = {
        "encoder": torch.randn(D, F, generator=rng), "decoder": torch.randn(F, o, generator=rng),
        "encoder_bias": torch.randn(F, generator=rng) * 0.3, "decoder_bias": torch.randn(o, generator=rng),
        "activation": activation, "k": 4 if activation in ("topk", "abstopk", "groupmax") else 0,
        "site": "layers.1.resid_post",
    }  # fmt: skip
    if activation == "jumprelu":
        parts["threshold"] = torch.rand(F, generator=rng)
    if activation == "gated":
        parts["gate_bias"], parts["gate_scale"] = torch.randn(F, generator=rng), torch.randn(F, generator=rng) * 0.2
    return Dictionary(**{**parts, **changes})


def transcoder(activation: str, o: int, skip: bool = False) -> Dictionary:
    matrix = torch.randn(D, o, generator=torch.Generator().manual_seed(5)) if skip else None
    return dictionary(activation, o, site="layers.1.norm2", target="layers.1.mlp.out", skip=matrix)


CASES = {
    "saelens": {
        **{name: dictionary(name) for name in ("relu", "gated", "topk", "abstopk", "jumprelu")},
        "centred": dictionary("relu", center=True), "layer_norm": dictionary("relu", normalize="layer_norm"),
        "constant_norm": dictionary("topk", normalize="constant_norm"), "scaled": dictionary("relu", scale=0.5),
        "transcoder": transcoder("relu", 6), "skip": transcoder("relu", 6, True), "jump": transcoder("jumprelu", 6),
        "jump_skip": transcoder("jumprelu", 6, True),
    },
    "sparsify": {
        "topk/layers.1": dictionary("topk", center=True), "groupmax/layers.1": dictionary("groupmax", center=True),
        "transcoder/layers.1.mlp": transcoder("topk", D), "skip/layers.1.mlp": transcoder("topk", D, True),
    },
    "dictionary_learning": {
        "centred": dictionary("relu", center=True), "plain": dictionary("relu"),
        "gated": dictionary("gated", center=True),
        "jumprelu": dictionary("jumprelu"), "topk": dictionary("topk", center=True),
        "batchtopk": dictionary("jumprelu", center=True, k=4, threshold=torch.full((F,), 0.7)),
    },
}  # fmt: skip


def main(folder: Path) -> None:
    for format_name, members in CASES.items():
        for name, member in members.items():
            home = formats.write(member, folder / format_name / name, format_name)
            note(home, rows(), member.encode(rows()), member.reconstruct(rows()))
    vectors = torch.randn(3, D, generator=torch.Generator().manual_seed(1))
    direction = Direction(vectors, site=tuple(f"layers.{n}.resid_post" for n in (1, 2, 5)))
    formats.write(direction, folder / "gguf" / "control.gguf", "gguf", model_hint="llama", layer_count=6)
    save_file(
        {f"direction.{n}": row.clone() for n, row in zip((1, 2, 5), vectors, strict=True)},
        str(folder / "gguf" / "expected.safetensors"),
    )
    rng = torch.Generator().manual_seed(9)
    edits = inn.Add("layers.0.resid_post", torch.randn(WIDTH, generator=rng), alpha=1.5) + inn.Clamp(
        "layers.1.mlp.out", torch.randn(WIDTH, generator=rng), 2.0
    )
    module = tiny()
    model = inn.wrap(module)
    formats.write(edits, folder / "lm_eval" / "steer.pt", "lm_eval", model=model)
    ids = torch.randint(0, 40, (2, 7), generator=rng)
    with torch.no_grad(), model.edit(edits):
        logits = model(ids).logits
    save_file(expected_of(module, ids, logits), str(folder / "lm_eval" / "expected.safetensors"))
    print(f"wrote {sum(map(len, CASES.values()))} dictionaries and two steering files to {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

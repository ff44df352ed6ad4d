"""lm-eval: steer a tiny Llama with `--model steered` from a file, or check that ours gives the logits we wrote down."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from common_cases import main
from lm_eval.models.hf_steered import SteeredModel, steer
from lm_eval_model import WIDTH, expected_of, tiny
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM


def steered(path: Path, model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Logits with the package's own hooks, built from the file as its constructor builds them."""
    config = torch.load(path, weights_only=True)  # noqa: TID251 - the package's own format
    hooks = {}
    for name, info in config.items():
        vector, head, value = (
            info["steering_vector"],
            info.get("head_index"),
            float(info.get("steering_coefficient", 1.0)),
        )
        if info["action"] == "add":
            assert info.get("bias") is None
            hooks[name] = lambda acts, v=vector * value, h=head: SteeredModel.add(acts, vector=v, head_index=h)
        else:
            unit, bias = vector / vector.norm(), info.get("bias")
            hooks[name] = lambda acts, d=unit, v=value, h=head, b=bias: SteeredModel.clamp(
                acts, direction=d, value=v, head_index=h, bias=b
            )
    with torch.no_grad(), steer(model, hooks):
        return model(ids).logits


def make(folder: Path) -> None:
    rng = torch.Generator().manual_seed(2)
    vector, other, bias = torch.randn(3, WIDTH, generator=rng)
    content = {
        "layers.0": {"steering_vector": vector, "steering_coefficient": 2.0, "action": "add", "bias": None},
        "layers.1.mlp": {"steering_vector": other, "steering_coefficient": 3.0, "action": "clamp",
                         "bias": bias},
    }  # fmt: skip
    torch.save(content, folder / "steer.pt")
    ids = torch.randint(0, 40, (2, 7), generator=rng)
    model = tiny()
    save_file(expected_of(model, ids, steered(folder / "steer.pt", model, ids)), str(folder / "expected.safetensors"))
    print(f"wrote {folder / 'steer.pt'}")


def check(folder: Path) -> bool:
    expected = load_file(str(folder / "expected.safetensors"))
    model = tiny()
    model.load_state_dict(
        {name.removeprefix("model."): value for name, value in expected.items() if name.startswith("model.")},
        strict=False,
    )
    gap = float((steered(folder / "steer.pt", model, expected["ids"]) - expected["logits"]).abs().max())
    print(json.dumps({"file": "steer.pt", "logits": gap, "same": gap <= 1e-5}))
    return gap <= 1e-5


if __name__ == "__main__":
    main(make, check)

"""circuit-tracer: write transcoders, a set of them and a cross-layer transcoder, or load those interneuron wrote."""

from __future__ import annotations

from pathlib import Path

import torch
from circuit_tracer.transcoder.activation_functions import JumpReLU
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder, load_clt
from circuit_tracer.transcoder.single_layer_transcoder import (
    SingleLayerTranscoder,
    TranscoderSet,
    load_relu_transcoder,
    load_transcoder_set,
)
from circuit_tracer.utils.hf_utils import load_transcoders
from common_cases import D, F, compare, fill, main, note, rows

LAYERS = 2
HOOKS = {"feature_input_hook": "hook_resid_mid", "feature_output_hook": "hook_mlp_out"}
PLAIN = {"device": torch.device("cpu"), "dtype": torch.float32}


def transcoder(layer: int, jump: bool, skip: bool) -> SingleLayerTranscoder:
    function = JumpReLU(torch.zeros(F), 0.1) if jump else torch.nn.functional.relu
    made = SingleLayerTranscoder(D, F, function, layer, skip_connection=skip, **PLAIN)
    fill(made, seed=3 + layer)
    return made


def make(folder: Path) -> None:
    for name, jump, skip in (("relu", False, False), ("jumprelu_skip", True, True)):
        home = folder / name
        home.mkdir(parents=True, exist_ok=True)
        made = transcoder(1, jump, skip)
        with torch.no_grad():
            made.to_safetensors(str(home / "layer_1.safetensors"))
            note(home, rows(), made.encode(rows()), made(rows()))
        print(f"wrote {home}")
    several = TranscoderSet({i: transcoder(i, True, False) for i in range(LAYERS)}, **HOOKS, scan="tiny")
    x = torch.stack([rows(), rows().flip(0)])
    clt = CrossLayerTranscoder(LAYERS, F, D, "jump_relu", lazy_decoder=False, **HOOKS, scan="tiny", **PLAIN)
    fill(clt)
    for name, made, kind in (("set", several, "transcoder_set"), ("clt", clt, "cross_layer_transcoder")):
        home = folder / name
        with torch.no_grad():
            made.to_safetensors(str(home))
            features = made.encode(x)
            note(home, x, features, made.decode(features, x))
        hooks = "".join(f'{key}: "{value}"\n' for key, value in HOOKS.items())
        (home / "config.yaml").write_text(f'model_kind: "{kind}"\n{hooks}scan: "tiny"\n')
        print(f"wrote {home}")


def check(folder: Path) -> bool:
    good = True
    for path in sorted(p for p in folder.iterdir() if p.is_dir()):
        if (path / "W_enc_0.safetensors").exists():
            made = load_clt(str(path), lazy_decoder=False, **HOOKS, **PLAIN)
        elif (path / "config.yaml").exists():
            files = sorted(path.glob("layer_*.safetensors"))
            made = load_transcoder_set(dict(enumerate(map(str, files))), "tiny", **HOOKS, **PLAIN)
        else:
            file = next(path.glob("layer_*.safetensors"))
            made = load_relu_transcoder(str(file), int(file.stem.removeprefix("layer_")), **PLAIN)
        good &= compare(path.name, path, made.encode, lambda x, made=made: made.decode(made.encode(x), x))
    return good & hub_layout(folder)


def hub_layout(folder: Path) -> bool:
    """Whether config.yaml names the kind and hooks its loader goes by."""
    import yaml

    for path in sorted(folder.glob("*/config.yaml")):
        config = yaml.safe_load(path.read_text())
        if set(config) < {"model_kind", "feature_input_hook", "feature_output_hook"} or not load_transcoders:
            print(f"{path}: its configuration lacks a key")
            return False
    return True


if __name__ == "__main__":
    main(make, check)

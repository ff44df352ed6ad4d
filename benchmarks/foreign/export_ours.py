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
from interneuron.artifacts.cross_layer import CrossLayerTranscoder
from interneuron.artifacts.latents import Latents
from interneuron.artifacts.temporal import TemporalDictionary
from interneuron.store import Column, Store, StoreWriter


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


def pursuit(**changes: object) -> Dictionary:
    decoder = torch.nn.functional.normalize(torch.randn(F, D, generator=torch.Generator().manual_seed(6)), dim=1)
    zero = {} if changes.get("center") else {"decoder_bias": torch.zeros(D)}
    return dictionary("pursuit", decoder=decoder, encoder=decoder.T.contiguous(), **{**zero, **changes})


def temporal(tied: bool, **changes: object) -> TemporalDictionary:
    rng = torch.Generator().manual_seed(12)
    decoder, width = torch.randn(F, D, generator=rng), F // 2
    shapes = {"query": (width, F), "key": (width, F), "value": (F, F), "out": (F, F)}
    attention = {}
    for name, shape in shapes.items():
        attention[f"0.{name}.weight"] = torch.randn(shape, generator=rng) * 0.3
        attention[f"0.{name}.bias"] = torch.randn(shape[0], generator=rng) * 0.1
    encoder = decoder.T.contiguous() if tied else torch.randn(D, F, generator=rng)
    parts = {"activation": "topk", "k": 4, "n_heads": 2, "site": "layers.1.resid_post"}
    return TemporalDictionary(
        encoder=encoder, decoder=decoder, decoder_bias=torch.randn(D, generator=rng), attention=attention,
        **{**parts, **changes},
    )  # fmt: skip


def shaped(member: Dictionary | TemporalDictionary) -> torch.Tensor:
    """Rows as it wants them: tokens of texts for a temporal one, heads apart where it has them."""
    if isinstance(member, TemporalDictionary):
        return rows().reshape(2, -1, D)
    return rows().unflatten(-1, (member.heads, -1)) if member.heads else rows()


CASES = {
    "saelens": {
        **{name: dictionary(name) for name in ("relu", "gated", "topk", "abstopk", "jumprelu")},
        "centred": dictionary("relu", center=True), "layer_norm": dictionary("relu", normalize="layer_norm"),
        "constant_norm": dictionary("topk", normalize="constant_norm"), "scaled": dictionary("relu", scale=0.5),
        "transcoder": transcoder("relu", 6), "skip": transcoder("relu", 6, True), "jump": transcoder("jumprelu", 6),
        "jump_skip": transcoder("jumprelu", 6, True),
        "pursuit": pursuit(k=6), "pursuit_centred": pursuit(center=True, residual=0.4, settles=False),
        "hook_z": dictionary("topk", site="layers.1.attn.z", heads=2),
        "temporal": temporal(tied=True, center=True), "temporal_untied": temporal(tied=False, activation="relu", k=0),
        "temporal_scaled": temporal(tied=True, center=True, scale=0.25),
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
    "llamascopium": {
        **{name: dictionary(name) for name in ("relu", "jumprelu", "topk")}, "centred": dictionary("relu", center=True),
        "scaled": dictionary("jumprelu", scale=0.5), "transcoder": transcoder("jumprelu", D),
    },
    "circuit_tracer": {
        "relu/layer_1": transcoder("relu", D), "relu_skip/layer_1": transcoder("relu", D, True),
        "jumprelu/layer_1": transcoder("jumprelu", D), "jumprelu_skip/layer_1": transcoder("jumprelu", D, True),
    },
}  # fmt: skip


def sets(folder: Path) -> None:
    """A set of transcoders, one a layer, and a cross-layer transcoder, of two layers each."""
    x = torch.stack([rows(), rows().flip(0)])
    places = [{"site": f"layers.{i}.resid_mid", "target": f"layers.{i}.mlp.contribution"} for i in range(2)]
    hooks = {"foreign": {"format": "circuit_tracer", "hooks": ["hook_resid_mid", "hook_mlp_out"]}}
    members = {
        f"layers.{i}": transcoder("jumprelu", D).replace(fitted=hooks, **place) for i, place in enumerate(places)
    }
    formats.write(members, folder / "set", "circuit_tracer")
    pairs = list(zip(members.values(), x, strict=True))
    encoded, made = ([getattr(m, verb)(y) for m, y in pairs] for verb in ("encode", "reconstruct"))
    note(folder / "set", x, torch.stack(encoded), torch.stack(made))
    rng = torch.Generator().manual_seed(2)
    layers = {"0": 2, "1": 1}
    clt = CrossLayerTranscoder(
        encoders={i: torch.randn(D, F, generator=rng) for i in layers},
        encoder_biases={i: torch.randn(F, generator=rng) for i in layers},
        decoders={i: torch.randn(F, n, D, generator=rng) for i, n in layers.items()},
        decoder_biases={i: torch.randn(D, generator=rng) for i in layers},
        thresholds={i: torch.rand(F, generator=rng) for i in layers}, fitted=hooks,
        site=tuple(p["site"] for p in places), targets=tuple(p["target"] for p in places),
    )  # fmt: skip
    formats.write(clt, folder / "clt", "circuit_tracer")
    note(folder / "clt", x, torch.stack(clt.encode(list(x))), torch.stack(clt.reconstruct(list(x))))


def activations(folder: Path) -> None:
    """Latents for Delphi, and a store of activations for SAELens."""
    rng = torch.Generator().manual_seed(14)
    tokens = torch.randint(0, 30, (4, 6), generator=rng)
    dense = (torch.randn(4, 6, 10, generator=rng).relu() * (torch.rand(4, 6, 10, generator=rng) < 0.4)).half()
    where = dense.nonzero()
    latents = Latents(
        locations=where, activations=dense[tuple(where.T)], tokens=tokens, n_features=10, site="layers.1.mlp.out"
    )
    formats.write(latents, folder / "delphi" / "layers.1.mlp", "delphi", n_splits=2)
    save_file({"tokens": tokens, "dense": dense}, str(folder / "delphi" / "expected.safetensors"))
    x = torch.randn(4, 6, D, generator=rng)
    with StoreWriter(folder / "store", [Column("layers.1.resid_post", "float32", (D,))], {}) as writer:
        for i in range(4):
            writer.append({"layers.1.resid_post": x[i].numpy()}, token=tokens[i].numpy(), pos=range(6), doc=i)
    home = folder / "saelens_cache"
    formats.write(Store.open(folder / "store"), home / "cache", "saelens_activations")
    save_file({"tokens": tokens, "blocks.1.hook_resid_post": x}, str(home / "expected.safetensors"))


def main(folder: Path) -> None:
    for format_name, members in CASES.items():
        for name, member in members.items():
            home = formats.write(member, folder / format_name / name, format_name)
            x = shaped(member)
            output = member.reconstruct(x)
            home = home if home.is_dir() else home.parent
            note(home, x, member.encode(x), output.reshape(x.shape) if member.heads else output)
    sets(folder / "circuit_tracer")
    activations(folder)
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
    print(f"wrote {sum(map(len, CASES.values()))} dictionaries and two steering files, latents and a cache to {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""SAELens' temporal architecture: `W_dec`, `b_dec`, `W_enc` unless tied, and `attn_layers.N.PART.weight|bias`.

PART is one of q_target, k_ctx, v_ctx, c_proj, stored as torch has linear maps, [out in]. `kval_topk` (with
`sae_diff_type` topk) is k; none keeps all. With tied weights `b_dec` is added back only where it was subtracted.
`constant_scalar_rescale` multiplies activations by `activation_normalization_factor`, which the file has.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from interneuron.artifacts.formats.tensors import check_dtype, judge, upright, vector, width
from interneuron.artifacts.temporal import TemporalDictionary
from interneuron.core.errors import ArtifactError, InputError, ShapeError

THEIRS = {"query": "q_target", "key": "k_ctx", "value": "v_ctx", "out": "c_proj"}
RESCALE = "constant_scalar_rescale"
_OURS = {theirs: ours for ours, theirs in THEIRS.items()}
_NAME = re.compile(r"attn_layers\.(\d{1,2})\.(q_target|k_ctx|v_ctx|c_proj)\.(weight|bias)")


def read(
    found: dict[str, Tensor], config: dict[str, Any], what: str, notes: list[str], **places: Any
) -> TemporalDictionary:
    """places: the fields of the artifact that the configuration shares with other architectures."""
    layers = config.get("n_attn_layers", 1)
    if type(layers) is not int or not 0 <= layers <= 64:
        raise ArtifactError(f"{what}: n_attn_layers={str(layers)[:20]}, expected a number up to 64. Check the file.")
    tied = bool(config.get("tied_weights", True))
    named = [f"attn_layers.{i}.{name}.{part}" for i in range(layers) for name in _OURS for part in ("weight", "bias")]
    t = judge(found, what, notes, required=["W_dec", "b_dec", *([] if tied else ["W_enc"]), *named])
    check_dtype(t["W_dec"], config.get("dtype"), what, notes)
    if t["b_dec"].ndim != 1 or t["W_dec"].ndim != 2:
        raise ArtifactError(f"{what}: b_dec must be a vector and W_dec a matrix. Its files do not belong together.")
    d, shape = len(t["b_dec"]), tuple(t["W_dec"].shape)
    width(config.get("d_in"), d, "d_in", what)
    f = width(config.get("d_sae"), shape[0] if shape[1] == d else shape[1], "d_sae", what)
    decoder = upright(t["W_dec"], (f, d), "W_dec", what, notes)
    bias = vector(t["b_dec"], d, "b_dec", what)
    if tied and not places["center"]:
        notes.append("tied weights and apply_b_dec_to_input false: b_dec is not used, it was set to 0")
        bias = torch.zeros_like(bias)
    kind, k = config.get("sae_diff_type", "topk"), config.get("kval_topk")
    if kind not in ("relu", "topk") or (k is not None and type(k) is not int):
        raise ArtifactError(f"{what}: sae_diff_type {str(kind)[:20]!r} with kval_topk {str(k)[:20]} is unknown.")
    try:
        return TemporalDictionary(
            encoder=decoder.T.contiguous() if tied else upright(t["W_enc"], (d, f), "W_enc", what, notes),
            decoder=decoder, decoder_bias=bias,
            attention={_ours(name): t[name].contiguous() for name in named},
            n_heads=config.get("n_heads", 8), activation="topk" if kind == "topk" and k else "relu",
            k=k if kind == "topk" and k else 0, **places,
        )  # fmt: skip
    except (ShapeError, InputError) as error:
        raise ArtifactError(f"{what}: {error}") from error


def _ours(name: str) -> str:
    match = _NAME.fullmatch(name)
    assert match is not None
    return f"{match[1]}.{_OURS[match[2]]}.{match[3]}"


def out(value: TemporalDictionary) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of the file, and the keys of the configuration that only this architecture has."""
    tied = torch.equal(value.encoder, value.decoder.T)
    if tied and not value.center and bool(value.decoder_bias.any()):
        tied = False  # a tied file would leave the bias out
    tensors = {"W_dec": value.decoder, "b_dec": value.decoder_bias}
    if not tied:
        tensors["W_enc"] = value.encoder
    for name, tensor in value.attention.items():
        layer, part, kind = name.split(".")
        tensors[f"attn_layers.{layer}.{THEIRS[part]}.{kind}"] = tensor
    embedding = value.attention["0.query.weight"].shape[0] if value.n_layers else value.n_features
    config = {
        "n_heads": value.n_heads,
        "n_attn_layers": value.n_layers,
        "bottleneck_factor": value.n_features // embedding,
        "sae_diff_type": value.activation,
        "kval_topk": value.k or None,
        "tied_weights": tied,
        "activation_normalization_factor": value.scale,
    }
    return tensors, config

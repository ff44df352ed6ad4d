"""Llamascopium (Language-Model-SAEs): a folder with `config.json` and `sae_weights.safetensors`.

`W_E` [D F], `b_E` [F], `W_D` [F D], `b_D` [D]; JumpReLU adds `activation_function.log_jumprelu_threshold` [F]; scalars
`dataset_average_activation_norm.HOOK` say by what the activations were divided in training (to the norm sqrt(D)). The
input is not centred. With `sparsity_include_decoder_norm` (the default) features are gated by |d_i| h_i: jumprelu
thresholds are divided by |d_i|, top-k is folded into unit decoder rows.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interneuron.artifacts.dictionary import Dictionary
from interneuron.artifacts.formats import names
from interneuron.artifacts.formats.format import Format
from interneuron.artifacts.formats.saelens import fold_scale
from interneuron.artifacts.formats.tensors import build, fold_norms, judge, settle_square, upright, vector
from interneuron.core import files
from interneuron.core.errors import ArtifactError, InputError

CONFIG, WEIGHTS = "config.json", "sae_weights.safetensors"
LOG_THRESHOLD = "activation_function.log_jumprelu_threshold"
NORM = "dataset_average_activation_norm."


def _detect(path: Path) -> bool:
    if not (path.is_dir() and (path / CONFIG).is_file() and (path / WEIGHTS).is_file()):
        return False
    config = files.read_json(path / CONFIG)
    return isinstance(config, dict) and "sae_type" in config


def _read(path: Path, notes: list[str], *, site: str = "", target: str = "") -> Dictionary:
    """site, target: our names, where the hook points of the file are not to be used."""
    what = str(path)
    config = files.read_json(path / CONFIG)
    if not isinstance(config, dict) or config.get("sae_type") != "sae" or config.get("use_glu_encoder"):
        kind = config.get("sae_type") if isinstance(config, dict) else None
        raise ArtifactError(
            f"{what}: sae_type {str(kind)[:30]!r} (or a gated linear encoder) is not read, expected 'sae'."
        )
    act = str(config.get("act_fn", "relu"))
    activation = {"relu": "relu", "jumprelu": "jumprelu", "topk": "topk"}.get(act)
    if activation is None:
        raise ArtifactError(
            f"{what}: act_fn {act[:30]!r} depends on the batch; convert it to jumprelu in Llamascopium first."
        )
    found = files.load_tensors(path / WEIGHTS)
    average = {name.removeprefix(NORM): found.pop(name) for name in list(found) if name.startswith(NORM)}
    biased = bool(config.get("use_decoder_bias", True))
    required = ["W_E", "b_E", "W_D", *(["b_D"] if biased else []), *([LOG_THRESHOLD] if act == "jumprelu" else [])]
    t = judge(found, what, notes, required=required)
    if t["b_E"].ndim != 1:
        raise ArtifactError(f"{what}: b_E must be a vector. Its files do not belong together.")
    f, d = len(t["b_E"]), config.get("d_model")
    if type(d) is not int or f != int(d * config.get("expansion_factor", 0)):
        raise ArtifactError(f"{what}: d_model {str(d)[:20]} and expansion_factor do not give the {f} features of b_E.")
    hook_in, hook_out = config.get("hook_point_in"), config.get("hook_point_out")
    transcodes = hook_in != hook_out
    dictionary = build(
        what,
        encoder=upright(t["W_E"], (d, f), "W_E", what, notes),
        encoder_bias=t["b_E"],
        decoder=upright(t["W_D"], (f, d), "W_D", what, notes),
        decoder_bias=vector(t["b_D"], d, "b_D", what) if biased else torch.zeros(d, dtype=t["W_D"].dtype),
        threshold=vector(t[LOG_THRESHOLD].exp(), f, LOG_THRESHOLD, what) if act == "jumprelu" else None,
        activation=activation,
        k=config.get("top_k", 0) if activation == "topk" else 0,
        site=site or names.from_hook(hook_in, what, notes),
        target=target or (names.from_hook(hook_out, what, notes) if transcodes else ""),
        fitted={"foreign": {"format": "llamascopium", "config": config}},
    )
    if not transcodes:
        dictionary = dictionary.replace(encoder=settle_square(dictionary.encoder, dictionary.decoder, what, notes))
    if config.get("sparsity_include_decoder_norm", True) and activation == "topk":
        notes.append(
            "sparsity_include_decoder_norm: decoder norms were folded into the encoder, features are |d_i| h_i"
        )
        dictionary = fold_norms(dictionary)
    elif config.get("sparsity_include_decoder_norm", True) and dictionary.threshold is not None:
        notes.append("sparsity_include_decoder_norm: thresholds were divided by decoder norms, features are h_i")
        norm = dictionary.decoder.norm(dim=1).clamp_min(1e-8)
        dictionary = dictionary.replace(threshold=dictionary.threshold / norm)
    return _unscale(dictionary, config, average, hook_in, hook_out, what, notes)


def _unscale(
    dictionary: Dictionary,
    config: dict[str, Any],
    average: dict[str, Tensor],
    hook_in: Any,
    hook_out: Any,
    what: str,
    notes: list[str],
) -> Dictionary:
    norm = config.get("norm_activation", "dataset-wise")
    if norm == "inference":
        return dictionary
    if norm == "token-wise" and not dictionary.target:
        return dictionary.replace(normalize="constant_norm")
    if norm != "dataset-wise" or hook_in not in average or hook_out not in average:
        raise ArtifactError(
            f"{what}: norm_activation={str(norm)[:20]!r} needs norms that are not in the file. "
            "Save it from Llamascopium with fold_activation_scale=True."
        )
    into, out = float(average[hook_in]), float(average[hook_out])
    if not (into > 0 and out > 0 and into < 1e6 and out < 1e6):
        raise ArtifactError(
            f"{what}: the average norms {into:g} and {out:g} are no norms; they were never set. Not read."
        )
    scale = dictionary.d_in**0.5 / into
    notes.append(f"trained on activations times {scale:.4g} (dataset-wise norm {into:.4g}): kept as its scale")
    if out == into:
        return dictionary.replace(scale=scale)
    back = out / into  # y is brought back by its own norm, not by that of the input
    return dictionary.replace(
        scale=scale, decoder=dictionary.decoder * back, decoder_bias=dictionary.decoder_bias * back
    )


def _factor(value: Dictionary) -> float:
    """The expansion factor whose product with the width, cut to a whole number, is the number of features."""
    factor = value.n_features / value.d_in
    while int(value.d_in * factor) < value.n_features:
        factor = math.nextafter(factor, math.inf)
    return factor


def _write(value: Any, path: Path) -> Path:
    if not isinstance(value, Dictionary) or value.decoder.shape[1] != value.d_in or value.skip is not None:
        raise InputError("llamascopium holds dictionaries of one width without skip. Write it as saelens.")
    if value.activation not in ("relu", "jumprelu", "topk") or value.normalize != "none":
        raise InputError(
            f"llamascopium knows relu, jumprelu and topk, this is {value.activation}. Write it as saelens."
        )
    if value.scale != 1:
        value = fold_scale(value)
    if value.center:  # it does not centre: b_E - b_D W_E does the same
        value = value.replace(encoder_bias=value.encoder_bias - value.decoder_bias @ value.encoder, center=False)
    foreign = value.fitted.get("foreign", {})
    config = dict(foreign["config"]) if foreign.get("format") == "llamascopium" else {}
    hook_in = names.to_hook(str(value.site))
    config.update(
        sae_type="sae", d_model=value.d_in, expansion_factor=_factor(value), use_decoder_bias=True,
        act_fn=value.activation, norm_activation="inference", sparsity_include_decoder_norm=False,
        top_k=value.k or config.get("top_k", 50), hook_point_in=hook_in,
        hook_point_out=names.to_hook(value.target) if value.target else hook_in, use_glu_encoder=False,
        dtype=str(value.encoder.dtype),
    )  # fmt: skip
    tensors = {"W_E": value.encoder, "b_E": value.encoder_bias, "W_D": value.decoder, "b_D": value.decoder_bias}
    if value.threshold is not None:
        tensors[LOG_THRESHOLD] = value.threshold.log()
    files.make_folder(path)
    files.save_tensors(path / WEIGHTS, tensors)
    files.write_json(path / CONFIG, config)
    return path


FORMAT = Format(
    name="llamascopium",
    title="Llamascopium: config.json and sae_weights.safetensors",
    holds=("dictionary",),
    detect=_detect,
    reads=_read,
    writes=_write,
)

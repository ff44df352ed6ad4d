"""dictionary_learning: a folder with `ae.pt` (a PyTorch state dict, so a pickle) and `config.json`.

The class, named in `config.json` under `trainer.dict_class`, decides the layout:

    AutoEncoder              encoder.weight [F D], encoder.bias [F], decoder.weight [D F], bias [D]; input centred
    AutoEncoderNew           the same with decoder.bias [D]; input not centred
    GatedAutoEncoder         encoder.weight, decoder.weight, decoder_bias, r_mag, gate_bias, mag_bias; input centred
    JumpReluAutoEncoder      W_enc [D F], W_dec [F D], b_enc, b_dec, threshold [F]; input not centred
    AutoEncoderTopK          encoder.*, decoder.weight, b_dec, k; input centred
    BatchTopKSAE, MatryoshkaBatchTopKSAE   encoder.* (or W_enc, W_dec), b_dec, k, threshold []; input centred

Trained on activations divided by a norm (`norm_factor`), its biases are scaled back before it is saved.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interneuron.artifacts.dictionary import Dictionary
from interneuron.artifacts.formats import names
from interneuron.artifacts.formats.format import Format
from interneuron.artifacts.formats.pickled_tensors import load_pickled_tensors, save_pickled_tensors
from interneuron.artifacts.formats.saelens import fold_scale
from interneuron.artifacts.formats.tensors import build, judge, settle_square, upright, vector, width
from interneuron.core import files
from interneuron.core.errors import ArtifactError, InputError

CONFIG, WEIGHTS = "config.json", "ae.pt"
_LINEAR = ("encoder.weight", "encoder.bias", "decoder.weight")
_MATRIX = ("W_enc", "W_dec", "b_enc")

# class -> (activation, tensors besides the matrices, name of the decoder bias, whether it centres its input)
CLASSES: dict[str, tuple[str, tuple[str, ...], str, bool]] = {
    "AutoEncoder": ("relu", (), "bias", True),
    "AutoEncoderNew": ("relu", (), "decoder.bias", False),
    "GatedAutoEncoder": ("gated", ("r_mag", "gate_bias", "mag_bias"), "decoder_bias", True),
    "JumpReluAutoEncoder": ("jumprelu", ("threshold",), "b_dec", False),
    "AutoEncoderTopK": ("topk", ("k",), "b_dec", True),
    "BatchTopKSAE": ("jumprelu", ("k", "threshold"), "b_dec", True),
    "MatryoshkaBatchTopKSAE": ("jumprelu", ("k", "threshold"), "b_dec", True),
}


def _files(path: Path) -> tuple[Path, Path]:
    """The weights (`ae.pt`, or the checkpoint that was named) and the configuration, beside or above it."""
    if path.is_dir():
        return path / WEIGHTS, path / CONFIG
    near = path.parent / CONFIG
    return path, near if near.is_file() else path.parent.parent / CONFIG


def _detect(path: Path) -> bool:
    weights, config = _files(path)
    if not (weights.suffix == ".pt" and weights.is_file() and config.is_file()):
        return False
    found = files.read_json(config)
    return isinstance(found, dict) and isinstance(found.get("trainer"), dict) and "dict_class" in found["trainer"]


def _read(path: Path, notes: list[str], *, site: str = "") -> Dictionary:
    """site: where it belongs, when it is not the output of the block that the configuration names."""
    weights, config_path = _files(path)
    what = str(weights)
    config = files.read_json(config_path)
    trainer = config.get("trainer") if isinstance(config, dict) else None
    if not isinstance(trainer, dict) or trainer.get("dict_class") not in CLASSES:
        named = trainer.get("dict_class") if isinstance(trainer, dict) else None
        raise ArtifactError(
            f"{config_path}: trainer.dict_class is {str(named)[:40]!r}, expected one of {', '.join(CLASSES)}. Not read."
        )
    activation, extra, bias, centres = CLASSES[trainer["dict_class"]]
    found = load_pickled_tensors(weights)
    matrices = "W_enc" in found
    body = _MATRIX if matrices else _LINEAR if activation != "gated" else ("encoder.weight", "decoder.weight")
    singles = {name: found.pop(name) for name in ("k",) if name in found}
    required = [*body, bias, *(name for name in extra if name != "k")]
    if (
        isinstance(found.get("threshold"), Tensor)
        and found["threshold"].ndim == 0
        and found["threshold"].is_floating_point()
    ):
        # a single number is compared in the dtype of the features, whatever its own
        found["threshold"] = found["threshold"].to(found[body[0]].dtype) if body[0] in found else found["threshold"]
    kept: dict[str, Any] = {}
    if activation == "topk" and isinstance(found.get("threshold"), Tensor) and found["threshold"].numel() == 1:
        # a running estimate for another way to encode; the default keeps the k largest and never looks at it
        kept["top_k_threshold"] = float(found.pop("threshold"))
    t = judge(found, what, notes, required=required)
    parts = _parts(t, trainer, activation, bias, matrices, what, notes)
    parts["encoder"] = settle_square(parts["encoder"], parts["decoder"], what, notes)
    parts.update(_selection(t, singles, trainer, activation, len(parts["encoder_bias"]), what, notes))
    return build(
        what,
        **parts,
        activation=activation,
        center=centres,
        site=site or _site(trainer, what, notes),
        fitted={"foreign": {"format": "dictionary_learning", "matrices": matrices, "config": config, **kept}},
    )


def _parts(
    t: dict[str, Tensor],
    trainer: dict[str, Any],
    activation: str,
    bias: str,
    matrices: bool,
    what: str,
    notes: list[str],
) -> dict[str, Any]:
    inner = "b_enc" if matrices else "mag_bias" if activation == "gated" else "encoder.bias"
    if t[inner].ndim != 1 or t[bias].ndim != 1:
        raise ArtifactError(f"{what}: {inner} and {bias} must be vectors. Its files do not belong together.")
    f, d = len(t[inner]), len(t[bias])
    width(trainer.get("activation_dim"), d, "activation_dim", what)
    width(trainer.get("dict_size"), f, "dict_size", what)
    if matrices:
        encoder = upright(t["W_enc"], (d, f), "W_enc", what, notes)
        decoder = upright(t["W_dec"], (f, d), "W_dec", what, notes)
    else:
        encoder = upright(t["encoder.weight"], (f, d), "encoder.weight", what, notes).T.contiguous()
        decoder = upright(t["decoder.weight"], (d, f), "decoder.weight", what, notes).T.contiguous()
    out: dict[str, Any] = {
        "encoder": encoder, "decoder": decoder, "encoder_bias": t[inner], "decoder_bias": t[bias]
    }  # fmt: skip
    if activation == "gated":
        out["gate_bias"] = vector(t["gate_bias"], f, "gate_bias", what)
        out["gate_scale"] = vector(t["r_mag"], f, "r_mag", what)
    return out


def _selection(
    t: dict[str, Tensor],
    singles: dict[str, Tensor],
    trainer: dict[str, Any],
    activation: str,
    f: int,
    what: str,
    notes: list[str],
) -> dict[str, Any]:
    """k and thresholds, from the tensors and from the configuration, which must agree."""
    out: dict[str, Any] = {}
    if "k" in singles:
        if singles["k"].numel() != 1 or singles["k"].is_floating_point():
            raise ArtifactError(
                f"{what}: k is {singles['k'].dtype} {list(singles['k'].shape)}, expected one whole number."
            )
        out["k"] = int(singles["k"])
        if trainer.get("k") not in (None, out["k"]):
            raise ArtifactError(
                f"{what}: k is {out['k']}, config.json says {str(trainer['k'])[:20]}. They do not belong together."
            )
    elif activation == "topk":
        out["k"] = trainer.get("k") if type(trainer.get("k")) is int else 0
    if activation == "jumprelu":
        threshold = t["threshold"]
        if threshold.ndim == 0:
            if float(threshold) < 0:
                notes.append("the threshold was never set (negative): every positive feature counts, as its owner does")
            threshold = threshold.clamp_min(0).expand(f).contiguous()
        out["threshold"] = vector(threshold, f, "threshold", what)
        if bool((out["threshold"] < 0).any()):
            notes.append("some thresholds are negative: they act as 0, as the activation is a ReLU first")
            out["threshold"] = out["threshold"].clamp_min(0)
    return out


def _site(trainer: dict[str, Any], what: str, notes: list[str]) -> str:
    name, layer = trainer.get("submodule_name"), trainer.get("layer")
    if isinstance(name, str) and type(layer) is int and name in (f"resid_post_layer_{layer}", f"resid_post_{layer}"):
        return f"layers.{layer}.resid_post"
    if isinstance(name, str) and name and "." in name:
        return names.from_module(name, what, notes)
    if type(layer) is int and layer >= 0:
        notes.append(f"the configuration names layer {layer} and no hook: read as the residual stream after that block")
        return f"layers.{layer}.resid_post"
    notes.append("the file names no layer: give site=... before using it on a model")
    return ""


def _write(value: Any, path: Path, *, dict_class: str = "", **trainer: Any) -> Path:
    """dict_class: which class to write, when more than one computes the same; trainer: keys of the configuration."""
    if not isinstance(value, Dictionary):
        raise InputError(f"dictionary_learning holds one dictionary, got a {type(value).__name__}.")
    if value.target or value.skip is not None or value.normalize != "none" or value.decoder.shape[1] != value.d_in:
        raise InputError(
            "dictionary_learning has autoencoders without skip or normalisation only. Write it as saelens."
        )
    if type(trainer.get("k")) is int and not value.k:
        value = value.replace(k=trainer["k"])
    if value.scale != 1:
        value = fold_scale(value)
    foreign = value.fitted.get("foreign", {})
    config = dict(foreign["config"]) if foreign.get("format") == "dictionary_learning" else {}
    before = config.get("trainer", {})
    chosen = dict_class or before.get("dict_class") or _class_for(value)
    activation, _, bias, centres = CLASSES.get(chosen, ("", (), "", False))
    if activation != value.activation or centres != value.center:
        raise InputError(
            f"dictionary_learning's {chosen} is {activation or 'unknown'} with center={centres}, this dictionary is "
            f"{value.activation} with center={value.center}. Choose another dict_class, or write it as saelens."
        )
    matrices = chosen == "JumpReluAutoEncoder" or bool(foreign.get("matrices"))
    state = _state(value, chosen, bias, matrices)
    if chosen == "AutoEncoderTopK":
        state["threshold"] = torch.tensor(float(foreign.get("top_k_threshold", -1.0)), dtype=torch.float32)
    layer = names.RESID_POST.fullmatch(str(value.site))
    config["trainer"] = {
        "layer": int(layer[1]) if layer else None, "lm_name": "", **before, "dict_class": chosen,
        "activation_dim": value.d_in, "dict_size": value.n_features,
        **({"k": value.k} if "k" in state else {}), **trainer,
    }  # fmt: skip
    config.setdefault("buffer", {})
    files.make_folder(path)
    save_pickled_tensors(path / WEIGHTS, state)
    files.write_json(path / CONFIG, config)
    return path


def _class_for(value: Dictionary) -> str:
    fits = [name for name, kind in CLASSES.items() if kind[0] == value.activation and kind[3] == value.center]
    if not fits:
        raise InputError(
            f"dictionary_learning has no {value.activation} dictionary with center={value.center}. Write it as saelens."
        )
    return fits[0]


def _state(value: Dictionary, chosen: str, bias: str, matrices: bool) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {bias: value.decoder_bias}
    if matrices:
        state.update(W_enc=value.encoder, W_dec=value.decoder, b_enc=value.encoder_bias)
    else:
        state.update({"encoder.weight": value.encoder.T.contiguous(), "decoder.weight": value.decoder.T.contiguous()})
        if value.activation == "gated":
            assert value.gate_scale is not None and value.gate_bias is not None
            state.update(mag_bias=value.encoder_bias, r_mag=value.gate_scale, gate_bias=value.gate_bias)
        else:
            state["encoder.bias"] = value.encoder_bias
    if chosen == "JumpReluAutoEncoder":
        assert value.threshold is not None
        state["threshold"] = value.threshold
    elif value.activation == "jumprelu":
        assert value.threshold is not None
        if bool((value.threshold != value.threshold[0]).any()):
            raise InputError(
                f"{chosen} has one threshold for all features, this dictionary has several. Write it as saelens."
            )
        state["threshold"] = value.threshold[0].clone().float()
    if "k" in CLASSES[chosen][1]:
        if not value.k:
            raise InputError(f"{chosen} stores k, this dictionary has none. Give the option k=...")
        state["k"] = torch.tensor(value.k, dtype=torch.int)
    return state


FORMAT = Format(
    name="dictionary_learning",
    title="dictionary_learning: ae.pt (a pickle, opened for tensors only) and config.json",
    holds=("dictionary",),
    detect=_detect,
    reads=_read,
    writes=_write,
)

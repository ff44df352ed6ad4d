"""SAELens: a folder with `cfg.json` and `sae_weights.safetensors`.

`W_enc` [D F], `W_dec` [F O], `b_enc` [F], `b_dec` [O]; JumpReLU adds `threshold` [F]; gated has `r_mag`, `b_mag`,
`b_gate` [F] in place of `b_enc`; skip transcoders add `W_skip` [O D]. What SAELens trains as batch top-k it saves as
JumpReLU. Two things are not in the tensors and decide what they mean: `rescale_acts_by_decoder_norm` (top-k chooses by
|d_i| h_i; folded here into unit decoder rows) and `normalize_activations`. Matching pursuit has `W_dec`, `b_dec` alone
and encodes by W_dec's transpose; the temporal architecture is in `saelens_temporal.py`. `reshape_activations: hook_z`
says that the heads of attn.z lie side by side in D.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interneuron.artifacts.dictionary import Dictionary
from interneuron.artifacts.formats import names, saelens_temporal
from interneuron.artifacts.formats.format import Format
from interneuron.artifacts.formats.saelens_config import (
    FIRST_OF_NOW,
    NORMS,
    SAES,
    TEMPORAL,
    TRANSCODERS,
    architecture_of,
    heads_of,
    modern,
    places_of,
    scale_of,
)
from interneuron.artifacts.formats.tensors import (
    build,
    check_dtype,
    fold_norms,
    judge,
    number,
    settle_square,
    upright,
    vector,
    whole,
    width,
)
from interneuron.artifacts.temporal import TemporalDictionary
from interneuron.core import files
from interneuron.core.errors import ArtifactError, InputError

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"


def _detect(path: Path) -> bool:
    return path.is_dir() and (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


def _read(
    path: Path, notes: list[str], *, site: str = "", target: str = "", scale: float | None = None, heads: int = 0
) -> Dictionary | TemporalDictionary:
    """site, target: where it belongs, when the file does not say; scale: the factor of `expected_average_only_in`;
    heads: of the site, for `hook_z`, which no file says (activations or a model tell it too)."""
    what = str(path)
    config = files.read_json(path / CONFIG)
    if not isinstance(config, dict):
        raise ArtifactError(f"{path / CONFIG}: expected an object. It is no SAELens configuration.")
    config = modern(config, what, notes)
    architecture, activation, transcodes = architecture_of(config, what)
    metadata = config.get("metadata") if isinstance(config.get("metadata"), dict) else {}
    place, goal = places_of(metadata, transcodes, site, target, what, notes)
    common: dict[str, Any] = {
        "center": bool(config.get("apply_b_dec_to_input", not transcodes)),
        "scale": scale_of(config, scale, what, notes),
        "normalize": NORMS.get(str(config.get("normalize_activations", "none")), "none"),
        "heads": heads_of(config, metadata, heads, what, notes),
        "site": place,
        "target": goal,
        "fitted": {"foreign": {"format": "saelens", "config": config}},
    }
    found = files.load_tensors(path / WEIGHTS)
    if architecture == TEMPORAL:
        return saelens_temporal.read(found, config, what, notes, **common)
    skips, rescales = "skip" in architecture, bool(config.get("rescale_acts_by_decoder_norm", False))
    tensors = _tensors(found, architecture, activation, skips, what, notes)
    parts = _parts(tensors, config, activation, skips, what, notes)
    check_dtype(parts["encoder"], config.get("dtype"), what, notes)
    if activation == "pursuit":
        common |= _pursuit(parts, config, common["center"], what, notes)
    elif not transcodes:
        parts["encoder"] = settle_square(parts["encoder"], parts["decoder"], what, notes)
    if activation in ("topk", "abstopk"):
        common["k"] = whole(config.get("k"), "k", what)
    dictionary = build(what, **parts, activation=activation, **common)
    if rescales:
        dictionary = fold_norms(dictionary)
        notes.append("rescale_acts_by_decoder_norm: decoder norms were folded into the encoder, features are |d_i| h_i")
    return dictionary


def _pursuit(
    parts: dict[str, Any], config: dict[str, Any], center: bool, what: str, notes: list[str]
) -> dict[str, Any]:
    """When it stops; and no bias where SAELens uses none, which is where the input is not centred."""
    if not center and bool(parts["decoder_bias"].any()):
        notes.append("apply_b_dec_to_input is false: matching pursuit does not use b_dec then, it was set to 0")
        parts["decoder_bias"] = torch.zeros_like(parts["decoder_bias"])
    return {
        "k": whole(config.get("max_iterations") or 0, "max_iterations", what),
        "residual": number(config.get("residual_threshold", 1e-2), "residual_threshold", what),
        "settles": bool(config.get("stop_on_duplicate_support", True)),
    }


def _tensors(
    found: dict[str, Tensor], architecture: str, activation: str, skips: bool, what: str, notes: list[str]
) -> dict[str, Tensor]:
    if activation == "pursuit":
        return judge(found, what, notes, required=["W_dec", "b_dec"])
    biases = ("r_mag", "b_mag", "b_gate") if activation == "gated" else ("b_enc",)
    required = ["W_enc", "W_dec", *biases, "b_dec"]
    required += ["threshold"] if activation == "jumprelu" else []
    required += ["W_skip"] if skips else []
    if activation != "jumprelu" and "threshold" in found:
        raise ArtifactError(
            f"{what}: holds a threshold, but its architecture is {architecture!r}. It was probably saved as "
            "'jumprelu': "
            "correct the configuration."
        )
    return judge(found, what, notes, required=required)


def _parts(
    t: dict[str, Tensor], config: dict[str, Any], activation: str, skips: bool, what: str, notes: list[str]
) -> dict[str, Any]:
    if activation == "pursuit":
        if t["b_dec"].ndim != 1 or t["W_dec"].ndim != 2:
            raise ArtifactError(f"{what}: b_dec must be a vector and W_dec a matrix. Its files do not belong together.")
        d, shape = width(config.get("d_in"), len(t["b_dec"]), "d_in", what), tuple(t["W_dec"].shape)
        f = width(config.get("d_sae"), shape[0] if shape[1] == d else shape[1], "d_sae", what)
        decoder = upright(t["W_dec"], (f, d), "W_dec", what, notes)
        zeros = decoder.new_zeros(f)
        return {
            "encoder": decoder.T.contiguous(), "decoder": decoder, "encoder_bias": zeros, "decoder_bias": t["b_dec"],
        }  # fmt: skip
    first = t["b_gate"] if activation == "gated" else t["b_enc"]
    if first.ndim != 1 or t["b_dec"].ndim != 1 or t["W_enc"].ndim != 2:
        raise ArtifactError(f"{what}: biases must be vectors and W_enc a matrix. Its files do not belong together.")
    f, o = len(first), len(t["b_dec"])
    width(config.get("d_sae"), f, "d_sae", what)
    width(config.get("d_out"), o, "d_out", what)
    shape = tuple(t["W_enc"].shape)
    d = width(config.get("d_in"), shape[0] if shape[1] == f else shape[1], "d_in", what)
    out: dict[str, Any] = {
        "encoder": upright(t["W_enc"], (d, f), "W_enc", what, notes),
        "decoder": upright(t["W_dec"], (f, o), "W_dec", what, notes),
        "decoder_bias": t["b_dec"],
    }
    if activation == "gated":
        out["gate_bias"], out["gate_scale"] = t["b_gate"], vector(t["r_mag"], f, "r_mag", what)
        out["encoder_bias"] = vector(t["b_mag"], f, "b_mag", what)
    else:
        out["encoder_bias"] = vector(t["b_enc"], f, "b_enc", what)
    if activation == "jumprelu":
        out["threshold"] = vector(t["threshold"], f, "threshold", what)
        if bool((out["threshold"] < 0).any()):
            notes.append("some thresholds are negative: they act as 0, as the activation is a ReLU first")
            out["threshold"] = out["threshold"].clamp_min(0)
    if skips:
        out["skip"] = upright(t["W_skip"], (o, d), "W_skip", what, notes).T.contiguous()
    return out


def _write(value: Any, path: Path, **extra: Any) -> Path:
    """extra: keys that go into the configuration's metadata, such as model_name."""
    foreign = getattr(value, "fitted", {}).get("foreign", {})
    config = dict(foreign["config"]) if foreign.get("format") == "saelens" else {}
    if isinstance(value, TemporalDictionary):
        tensors, own = saelens_temporal.out(value)
        config.update(own, architecture=TEMPORAL)
    else:
        value = _writable(value)
        tensors = _out(value)
        config.pop("rescale_acts_by_decoder_norm", None)
        config.update(_own_keys(value))
    config.update(
        d_in=value.d_in,
        d_sae=value.n_features,
        dtype=str(value.encoder.dtype).removeprefix("torch."),
        device="cpu",
        apply_b_dec_to_input=value.center,
        normalize_activations={ours: theirs for theirs, ours in NORMS.items()}[value.normalize],
        reshape_activations="hook_z" if value.heads else config.get("reshape_activations", "none"),
    )
    if value.scale != 1:
        config["normalize_activations"] = saelens_temporal.RESCALE
    metadata = {**config.get("metadata", {}), **extra}
    if isinstance(value.site, str) and value.site:
        metadata["hook_name"] = names.to_hook(value.site)
    if value.target and not value.target.endswith("target-unknown"):
        metadata["hook_name_out"] = names.to_hook(value.target)
    metadata.setdefault("sae_lens_version", f"{FIRST_OF_NOW}.0.0")  # or its reader takes it for an older layout
    config["metadata"] = metadata
    files.make_folder(path)
    files.save_tensors(path / WEIGHTS, tensors)
    files.write_json(path / CONFIG, config)
    return path


def _writable(value: Any) -> Dictionary:
    """The dictionary with its scale folded in, or why SAELens cannot hold it."""
    if not isinstance(value, Dictionary):
        raise InputError(
            f"saelens holds one dictionary, got a {type(value).__name__}. Write the members of a set one by one, a "
            "direction as gguf, vllm_lens or easysteer."
        )
    if value.activation == "groupmax":
        raise InputError("saelens has no groupmax architecture. Write it as sparsify.")
    if value.activation == "topafa":
        raise InputError("saelens has no topafa architecture. Save it as an artifact: dictionary.save(path).")
    if _transcodes(value) and value.center:
        raise InputError("a SAELens transcoder cannot centre its input. Fold the decoder bias into the encoder bias.")
    if value.activation == "pursuit":
        if value.scale != 1:
            raise InputError(
                f"scale={value.scale:g} cannot be folded into a pursuit without scaling its features. Save it as is."
            )
        if not value.center and bool(value.decoder_bias.any()):
            raise InputError("SAELens' matching pursuit has a decoder bias only where it centres its input. Save it.")
    return value if value.scale == 1 else fold_scale(value)


def _transcodes(value: Dictionary) -> bool:
    return bool(value.target) or value.decoder.shape[1] != value.d_in or value.skip is not None


def _own_keys(value: Dictionary) -> dict[str, Any]:
    """The keys that some architectures have and others do not."""
    out: dict[str, Any] = {"architecture": _architecture_for(value, _transcodes(value))}
    if value.activation in ("topk", "abstopk"):
        out |= {"k": value.k, "rescale_acts_by_decoder_norm": False}
    if value.activation == "pursuit":
        out |= {
            "residual_threshold": value.residual, "max_iterations": value.k or None,
            "stop_on_duplicate_support": value.settles,
        }  # fmt: skip
    if _transcodes(value):
        out["d_out"] = value.decoder.shape[1]
    return out


def _architecture_for(value: Dictionary, transcodes: bool) -> str:
    if not transcodes:
        return (
            {ours: theirs for theirs, ours in reversed(SAES.items())}[value.activation]
            if value.activation != "jumprelu"
            else "jumprelu"
        )
    wanted = (
        f"{'jumprelu_' if value.activation == 'jumprelu' else ''}{'skip_' if value.skip is not None else ''}transcoder"
    )
    if TRANSCODERS.get(wanted) != value.activation:
        raise InputError(f"saelens has no transcoder with {value.activation}. Set its threshold and make it jumprelu.")
    return wanted


def _out(value: Dictionary) -> dict[str, Tensor]:
    tensors = {"W_dec": value.decoder, "b_dec": value.decoder_bias}
    if value.activation == "pursuit":
        return tensors
    tensors["W_enc"] = value.encoder
    if value.activation == "gated":
        assert value.gate_bias is not None and value.gate_scale is not None
        tensors.update(b_gate=value.gate_bias, r_mag=value.gate_scale, b_mag=value.encoder_bias)
    else:
        tensors["b_enc"] = value.encoder_bias
    if value.activation == "jumprelu":
        assert value.threshold is not None
        tensors["threshold"] = value.threshold
    if value.skip is not None:
        tensors["W_skip"] = value.skip.T.contiguous()
    return tensors


def fold_scale(value: Dictionary) -> Dictionary:
    """The same map with scale = 1: encoder and centre take the factor, decoder and biases give it back."""
    s = value.scale
    return value.replace(
        encoder=value.encoder * s, decoder=value.decoder / s, decoder_bias=value.decoder_bias / s, scale=1.0
    )


FORMAT = Format(
    name="saelens",
    title="SAELens: cfg.json and sae_weights.safetensors",
    holds=("dictionary",),
    detect=_detect,
    reads=_read,
    writes=_write,
)

"""SAELens: a folder with `cfg.json` and `sae_weights.safetensors`.

`W_enc` [D F], `W_dec` [F O], `b_enc` [F], `b_dec` [O]; JumpReLU adds `threshold` [F]; gated has `r_mag`, `b_mag`,
`b_gate` [F] in place of `b_enc`; skip transcoders add `W_skip` [O D]. What SAELens trains as batch top-k it saves as
JumpReLU. Two things are not in the tensors and decide what they mean: `rescale_acts_by_decoder_norm` (top-k chooses by
|d_i| h_i; folded here into unit decoder rows) and `normalize_activations`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interneuron.artifacts.dictionary import Dictionary
from interneuron.artifacts.formats import names
from interneuron.artifacts.formats.format import Format
from interneuron.artifacts.formats.tensors import (
    build,
    check_dtype,
    fold_norms,
    judge,
    settle_square,
    upright,
    vector,
    width,
)
from interneuron.core import files
from interneuron.core.errors import ArtifactError, InputError, did_you_mean

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"

# architecture -> activation of a Dictionary
SAES = {
    "standard": "relu",
    "gated": "gated",
    "topk": "topk",
    "abstopk": "abstopk",
    "jumprelu": "jumprelu",
    "batchtopk": "jumprelu",
    "matryoshka_batchtopk": "jumprelu",
}
TRANSCODERS = {
    "transcoder": "relu",
    "skip_transcoder": "relu",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
}
REFUSED = {
    "matching_pursuit": "it encodes by a search over the residual, no single product with an encoder",
    "temporal": "its features depend on the other tokens of the context",
}
NORMS = {"none": "none", "layer_norm": "layer_norm", "constant_norm_rescale": "constant_norm"}


def _detect(path: Path) -> bool:
    return path.is_dir() and (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


def _read(path: Path, notes: list[str], *, site: str = "", target: str = "", scale: float | None = None) -> Dictionary:
    """site, target: where it belongs, when the file does not say; scale: the factor of `expected_average_only_in`."""
    what = str(path)
    config = files.read_json(path / CONFIG)
    if not isinstance(config, dict):
        raise ArtifactError(f"{path / CONFIG}: expected an object. It is no SAELens configuration.")
    architecture, activation, transcodes = _architecture(config, what)
    skips, rescales = "skip" in architecture, bool(config.get("rescale_acts_by_decoder_norm", False))
    tensors = _tensors(files.load_tensors(path / WEIGHTS), architecture, activation, skips, what, notes)
    parts = _parts(tensors, config, activation, skips, what, notes)
    check_dtype(parts["encoder"], config.get("dtype"), what, notes)
    if not transcodes:
        parts["encoder"] = settle_square(parts["encoder"], parts["decoder"], what, notes)
    metadata = config.get("metadata") if isinstance(config.get("metadata"), dict) else config
    place, goal = _places(metadata, transcodes, site, target, what, notes)
    dictionary = build(
        what,
        **parts,
        activation=activation,
        k=config.get("k", 0) if activation in ("topk", "abstopk") else 0,
        center=bool(config.get("apply_b_dec_to_input", not transcodes)) and not transcodes,
        scale=_scale(config, scale, what, notes),
        normalize=NORMS.get(str(config.get("normalize_activations", "none")), "none"),
        site=place,
        target=goal,
        fitted={"foreign": {"format": "saelens", "config": config}},
    )
    if rescales:
        dictionary = fold_norms(dictionary)
        notes.append("rescale_acts_by_decoder_norm: decoder norms were folded into the encoder, features are |d_i| h_i")
    return dictionary


def _architecture(config: dict[str, Any], what: str) -> tuple[str, str, bool]:
    name = config.get("architecture", "standard")
    if name in REFUSED:
        raise ArtifactError(
            f"{what}: architecture {name!r} has no linear encoder ({REFUSED[name]}). Use SAELens for it."
        )
    known = {**SAES, **TRANSCODERS}
    if not isinstance(name, str) or name not in known:
        raise ArtifactError(
            f"{what}: architecture {str(name)[:40]!r} is unknown, expected one of {', '.join(known)}."
            f"{did_you_mean(str(name)[:40], known)} Upgrade interneuron or correct the configuration."
        )
    factor = config.get("finetuning_scaling_factor")
    if factor not in (None, False):
        raise ArtifactError(f"{what}: finetuning_scaling_factor is not supported. Fold it into the decoder in SAELens.")
    if config.get("rescale_acts_by_decoder_norm") and known[name] not in ("topk", "abstopk"):
        raise ArtifactError(f"{what}: rescale_acts_by_decoder_norm belongs to top-k, not to {name!r}. Check the file.")
    return name, known[name], name in TRANSCODERS


def _tensors(
    found: dict[str, Tensor], architecture: str, activation: str, skips: bool, what: str, notes: list[str]
) -> dict[str, Tensor]:
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


def _places(
    metadata: dict[str, Any], transcodes: bool, site: str, target: str, what: str, notes: list[str]
) -> tuple[str, str]:
    hook, out = metadata.get("hook_name"), metadata.get("hook_name_out")
    found = names.from_hook(hook, what, notes) if hook and not site else site
    goal = names.from_hook(out, what, notes) if out and transcodes and not target else target
    head = metadata.get("hook_head_index")
    if head is not None:
        raise ArtifactError(
            f"{what}: it was trained on head {head} alone. Read that head and give site='' with scale=1."
        )
    if not found:
        notes.append("the file names no hook point: give site=... before using it on a model")
    if transcodes and not goal:
        notes.append("a transcoder whose file names no output hook: give target=... before using it on a model")
        goal = found and f"{found}:target-unknown"
    return found, goal


def _scale(config: dict[str, Any], given: float | None, what: str, notes: list[str]) -> float:
    norm = config.get("normalize_activations", "none")
    if norm == "expected_average_only_in":
        if given is None:
            raise ArtifactError(
                f"{what}: its activations were scaled by a factor that is not in the file (expected_average_only_in). "
                "Pass scale=sqrt(D)/mean|x| measured on its training data, or scale=1 and check the fit on activations."
            )
        notes.append(f"activations are multiplied by {given:g} before encoding (expected_average_only_in)")
        return float(given)
    if norm == "covariance_whitening":
        raise ArtifactError(f"{what}: its whitening is not folded into the weights. Fold it in SAELens and save again.")
    if norm not in NORMS:
        raise ArtifactError(
            f"{what}: normalize_activations={str(norm)[:30]!r} is unknown, expected one of {list(NORMS)}."
        )
    if given is not None and given != 1:
        raise InputError(
            f"{what}: scale={given} does not apply, the file says normalize_activations={norm!r}. Omit it."
        )
    return 1.0


def _write(value: Any, path: Path, **extra: Any) -> Path:
    """extra: keys that go into the configuration's metadata, such as model_name."""
    if not isinstance(value, Dictionary):
        raise InputError(
            f"saelens holds one dictionary, got a {type(value).__name__}. Write the members of a set one by one, a "
            "direction as gguf, vllm_lens or easysteer."
        )
    if value.activation == "groupmax":
        raise InputError("saelens has no groupmax architecture. Write it as sparsify.")
    if value.activation == "topafa":
        raise InputError("saelens has no topafa architecture. Save it as an artifact: dictionary.save(path).")
    foreign = value.fitted.get("foreign", {})
    config = dict(foreign["config"]) if foreign.get("format") == "saelens" else {}
    transcodes = bool(value.target) or value.decoder.shape[1] != value.d_in or value.skip is not None
    architecture = _architecture_for(value, transcodes)
    if transcodes and value.center:
        raise InputError("a SAELens transcoder cannot centre its input. Fold the decoder bias into the encoder bias.")
    if value.scale != 1:
        value = fold_scale(value)
    config.update(
        architecture=architecture,
        d_in=value.d_in,
        d_sae=value.n_features,
        dtype=str(value.encoder.dtype).removeprefix("torch."),
        device="cpu",
        apply_b_dec_to_input=value.center,
        normalize_activations={ours: theirs for theirs, ours in NORMS.items()}[value.normalize],
        reshape_activations=config.get(
            "reshape_activations", "hook_z" if value.site and str(value.site).endswith("attn.z") else "none"
        ),
    )
    config.pop("rescale_acts_by_decoder_norm", None)
    if value.activation in ("topk", "abstopk"):
        config.update(k=value.k, rescale_acts_by_decoder_norm=False)
    if transcodes:
        config["d_out"] = value.decoder.shape[1]
    metadata = {**config.get("metadata", {}), **extra}
    if isinstance(value.site, str) and value.site:
        metadata["hook_name"] = names.to_hook(value.site)
    if value.target and not value.target.endswith("target-unknown"):
        metadata["hook_name_out"] = names.to_hook(value.target)
    config["metadata"] = metadata
    files.make_folder(path)
    files.save_tensors(path / WEIGHTS, _out(value))
    files.write_json(path / CONFIG, config)
    return path


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
    tensors = {"W_enc": value.encoder, "W_dec": value.decoder, "b_dec": value.decoder_bias}
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


def read_cached_activations(path: str | Path) -> dict[str, Tensor]:
    """SAELens' cached activations (an Arrow dataset): {hook name: [contexts T D], "token_ids": [contexts T]}."""
    from interneuron.core.errors import need

    found = need("datasets", "export").load_from_disk(str(path)).with_format("torch")
    return {name: torch.as_tensor(found[name][:]) for name in found.column_names}


FORMAT = Format(
    name="saelens",
    title="SAELens: cfg.json and sae_weights.safetensors",
    holds=("dictionary",),
    detect=_detect,
    reads=_read,
    writes=_write,
)

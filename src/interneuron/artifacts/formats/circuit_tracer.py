"""circuit-tracer: one safetensors file per layer (transcoders), or `W_enc_i`/`W_dec_i` files (cross-layer transcoders).

Per layer: `W_enc` [F D] (the transpose of SAELens' tensor of that name), `W_dec` [F D], `b_enc` [F], `b_dec` [D],
`W_skip` [D D] (out, in), `activation_function.threshold` [F] or [1 F]. Cross-layer: `W_enc_i` [F D], `b_enc_i` [F],
`b_dec_i` [D], `threshold_i` [F], and `W_dec_i` [F L-i D], what layer i's features write into layers i..L-1. A set is
described by `config.yaml`; of it only the two hook names are used, and only as text.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from interneuron.artifacts.cross_layer import CrossLayerTranscoder
from interneuron.artifacts.dictionary import Dictionary
from interneuron.artifacts.formats import names
from interneuron.artifacts.formats.format import Format
from interneuron.artifacts.formats.saelens import fold_scale
from interneuron.artifacts.formats.tensors import build, judge, upright, vector
from interneuron.core import files
from interneuron.core.errors import ArtifactError, InputError, ShapeError

CONFIG = "config.yaml"
THRESHOLD = "activation_function.threshold"
_LAYER = re.compile(r"layer_(\d{1,4})\.safetensors")
_PART = re.compile(r"W_enc_(\d{1,4})\.safetensors")
_HOOK = re.compile(r"^\s*(feature_(?:input|output)_hook)\s*:\s*['\"]?([\w.]{1,80})['\"]?\s*$", re.MULTILINE)
INPUT_HOOK, OUTPUT_HOOK = "mlp.hook_in", "hook_mlp_out"


def _numbered(path: Path, pattern: re.Pattern[str]) -> dict[int, Path]:
    found = {int(m[1]): p for p in path.iterdir() if (m := pattern.fullmatch(p.name))} if path.is_dir() else {}
    return dict(sorted(found.items()))


def _detect(path: Path) -> bool:
    if path.is_dir():
        return bool(_numbered(path, _LAYER) or _numbered(path, _PART))
    if path.suffix != ".safetensors" or not path.is_file() or (path.parent / "cfg.json").exists():
        return False
    return {"W_enc", "W_dec", "b_enc", "b_dec"} <= {entry.name for entry in files.read_tensor_header(path).entries}


def _read(
    path: Path, notes: list[str], *, layer: int | None = None, input_hook: str = "", output_hook: str = "", k: int = 0
) -> Any:
    """layer: of a single file; input_hook, output_hook: names inside a block, when there is no config.yaml beside it;
    k: for transcoders that keep the k largest features, which no file says."""
    home = path if path.is_dir() else path.parent
    hooks = _hooks(home, notes)
    hooks = (input_hook or hooks[0], output_hook or hooks[1])
    if path.is_dir() and (found := _numbered(path, _PART)):
        return _read_cross_layer(path, found, notes, hooks)
    if path.is_dir():
        found = _numbered(path, _LAYER)
        if not found:
            raise ArtifactError(f"{path}: holds neither layer_N.safetensors nor W_enc_N.safetensors. Check the path.")
        if list(found) != list(range(len(found))):
            raise ArtifactError(f"{path}: has layers {list(found)[:20]}, expected 0 to {len(found) - 1} without a gap.")
        return {f"layers.{i}": _read_one(file, notes, i, hooks, k) for i, file in found.items()}
    named = _LAYER.fullmatch(path.name)
    return _read_one(path, notes, layer if layer is not None else int(named[1]) if named else None, hooks, k)


def _hooks(home: Path, notes: list[str]) -> tuple[str, str]:
    """The two hook names of config.yaml, found as text: no YAML is parsed."""
    if not (home / CONFIG).is_file():
        notes.append(f"no {CONFIG}: hooks taken to be {INPUT_HOOK} and {OUTPUT_HOOK}")
        return INPUT_HOOK, OUTPUT_HOOK
    try:
        text = files.read_bytes(home / CONFIG, 1 << 20).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{home / CONFIG}: not UTF-8 ({error.reason}). Download it again.") from None
    found = dict(_HOOK.findall(text))
    return found.get("feature_input_hook", INPUT_HOOK), found.get("feature_output_hook", OUTPUT_HOOK)


def _read_one(path: Path, notes: list[str], layer: int | None, hooks: tuple[str, str], k: int) -> Dictionary:
    what = str(path)
    own: list[str] = []
    optional = ("W_skip", THRESHOLD)
    t = judge(files.load_tensors(path), what, own, required=("W_enc", "W_dec", "b_enc", "b_dec"), optional=optional)
    if t["b_enc"].ndim != 1 or t["b_dec"].ndim != 1:
        raise ArtifactError(f"{what}: b_enc and b_dec must be vectors. Its files do not belong together.")
    f, d = len(t["b_enc"]), len(t["b_dec"])
    parts: dict[str, Any] = {
        "encoder": upright(t["W_enc"], (f, d), "W_enc", what, own).T.contiguous(),
        "encoder_bias": t["b_enc"],
        "decoder": upright(t["W_dec"], (f, d), "W_dec", what, own),
        "decoder_bias": t["b_dec"],
    }
    if f == d:
        own.append("W_enc is square: that it is [features, width] has to be checked on activations")
    activation = "topk" if k else "relu"
    if THRESHOLD in t:
        activation, parts["threshold"] = (
            "jumprelu",
            vector(t[THRESHOLD].reshape(-1) if t[THRESHOLD].ndim == 2 else t[THRESHOLD], f, THRESHOLD, what),
        )
        if bool((parts["threshold"] < 0).any()):
            raise ArtifactError(
                f"{what}: negative thresholds let negative features pass, which no dictionary here has. Not read."
            )
    if "W_skip" in t:
        parts["skip"] = upright(t["W_skip"], (d, d), "W_skip", what, own).T.contiguous()
    if layer is None:
        own.append("the file name says no layer: give layer=... before using it on a model")
        site, target = "", "target-unknown"
    else:
        site = names.from_hook(f"blocks.{layer}.{hooks[0]}", what, own)
        target = names.from_hook(f"blocks.{layer}.{hooks[1]}", what, own)
    notes += [note if layer in (None, 0) else f"layer {layer}: {note}" for note in own]
    return build(
        what, **parts, activation=activation, k=k, site=site, target=target,
        fitted={"foreign": {"format": "circuit_tracer", "hooks": list(hooks)}},
    )  # fmt: skip


def _read_cross_layer(
    path: Path, found: dict[int, Path], notes: list[str], hooks: tuple[str, str]
) -> CrossLayerTranscoder:
    what, n = str(path), len(found)
    if list(found) != list(range(n)):
        raise ArtifactError(f"{what}: has layers {list(found)[:20]}, expected 0 to {n - 1} without a gap.")
    parts: dict[str, dict[str, Tensor]] = {
        "encoders": {},
        "encoder_biases": {},
        "decoders": {},
        "decoder_biases": {},
        "thresholds": {},
    }
    for i, file in found.items():
        t = judge(
            files.load_tensors(file), str(file), notes,
            required=(f"W_enc_{i}", f"b_enc_{i}", f"b_dec_{i}"), optional=(f"threshold_{i}",),
        )  # fmt: skip
        f, d = len(t[f"b_enc_{i}"]), len(t[f"b_dec_{i}"])
        decoder = judge(files.load_tensors(path / f"W_dec_{i}.safetensors"), str(path), notes, required=(f"W_dec_{i}",))
        parts["encoders"][str(i)] = upright(t[f"W_enc_{i}"], (f, d), f"W_enc_{i}", str(file), notes).T.contiguous()
        parts["encoder_biases"][str(i)], parts["decoder_biases"][str(i)] = t[f"b_enc_{i}"], t[f"b_dec_{i}"]
        parts["decoders"][str(i)] = decoder[f"W_dec_{i}"]
        if f"threshold_{i}" in t:
            parts["thresholds"][str(i)] = t[f"threshold_{i}"].reshape(-1)
    sites = tuple(names.from_hook(f"blocks.{i}.{hooks[0]}", what, notes if i == 0 else []) for i in range(n))
    targets = tuple(names.from_hook(f"blocks.{i}.{hooks[1]}", what, notes if i == 0 else []) for i in range(n))
    try:
        return CrossLayerTranscoder(
            encoders=parts["encoders"],
            encoder_biases=parts["encoder_biases"],
            decoders=parts["decoders"],
            decoder_biases=parts["decoder_biases"],
            thresholds=parts["thresholds"],
            site=sites,
            targets=targets,
            fitted={"foreign": {"format": "circuit_tracer", "hooks": list(hooks)}},
        )
    except (ShapeError, InputError) as error:
        raise ArtifactError(f"{what}: {error}") from error


def _write(value: Any, path: Path) -> Path:
    if isinstance(value, CrossLayerTranscoder):
        files.make_folder(path)
        for i in range(value.n_layers):
            key = str(i)
            part = {
                f"W_enc_{i}": value.encoders[key].T.contiguous(), f"b_enc_{i}": value.encoder_biases[key],
                f"b_dec_{i}": value.decoder_biases[key],
            }  # fmt: skip
            if value.thresholds:
                part[f"threshold_{i}"] = value.thresholds[key]
            files.save_tensors(path / f"W_enc_{i}.safetensors", part)
            files.save_tensors(path / f"W_dec_{i}.safetensors", {f"W_dec_{i}": value.decoders[key]})
        return _describe(path, "cross_layer_transcoder", value.fitted)
    if isinstance(value, dict):
        files.make_folder(path)
        for i, (name, member) in enumerate(value.items()):
            if name != f"layers.{i}":
                raise InputError(f"circuit-tracer needs every layer from 0: expected 'layers.{i}', got {name!r}.")
            _write(member, path / f"layer_{i}.safetensors")
        return _describe(path, "transcoder_set", next(iter(value.values())).fitted)
    if not isinstance(value, Dictionary) or value.decoder.shape[1] != value.d_in:
        raise InputError(f"circuit-tracer holds transcoders of one width, got a {type(value).__name__}.")
    if value.center or value.normalize != "none" or value.activation not in ("relu", "jumprelu"):
        raise InputError(
            "circuit-tracer neither centres nor normalises, and reads every file as relu or jumprelu; this has "
            f"{value.activation}, center={value.center}, normalize={value.normalize!r}. Write it as saelens."
        )
    if value.scale != 1:
        value = fold_scale(value)
    tensors = {
        "W_enc": value.encoder.T.contiguous(), "W_dec": value.decoder, "b_enc": value.encoder_bias,
        "b_dec": value.decoder_bias,
    }  # fmt: skip
    if value.threshold is not None:
        tensors[THRESHOLD] = value.threshold
    if value.skip is not None:
        tensors["W_skip"] = value.skip.T.contiguous()
    files.make_folder(path.parent)
    files.save_tensors(path if path.suffix == ".safetensors" else path.with_suffix(".safetensors"), tensors)
    return path if path.suffix == ".safetensors" else path.with_suffix(".safetensors")


def _describe(path: Path, kind: str, fitted: dict[str, Any]) -> Path:
    foreign = fitted.get("foreign", {})
    hooks = (
        foreign.get("hooks", [INPUT_HOOK, OUTPUT_HOOK])
        if foreign.get("format") == "circuit_tracer"
        else [INPUT_HOOK, OUTPUT_HOOK]
    )
    text = (
        f'model_kind: "{kind}"\nfeature_input_hook: "{hooks[0]}"\nfeature_output_hook: "{hooks[1]}"\n'
        f'scan: "{path.name}"\n'
    )
    files.atomic_write_bytes(path / CONFIG, text.encode())
    return path


FORMAT = Format(
    name="circuit_tracer",
    title="circuit-tracer: layer_N.safetensors per layer, or W_enc_N/W_dec_N of a cross-layer transcoder",
    holds=("dictionary", "transcoders"),
    detect=_detect,
    reads=_read,
    writes=_write,
)

"""EleutherAI sparsify: one folder per hook point with `cfg.json` and `sae.safetensors`.

`encoder.weight` [F D], `encoder.bias` [F], `W_dec` [F D], `b_dec` [D], `W_skip` [D D] (out, in). An autoencoder centres
its input by `b_dec`; a transcoder (`transcode`) does not. The hook point is the folder's name, a module path of the
base model: its output is read, or, by a transcoder, its input, and its output predicted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from interneuron.artifacts.dictionary import Dictionary
from interneuron.artifacts.formats import names
from interneuron.artifacts.formats.format import Format
from interneuron.artifacts.formats.saelens import fold_scale
from interneuron.artifacts.formats.tensors import build, judge, settle_square, upright, vector, width
from interneuron.core import files
from interneuron.core.errors import ArtifactError, InputError

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
_KEYS = {
    "activation", "expansion_factor", "normalize_decoder", "num_latents", "k", "multi_topk", "skip_connection",
    "transcode", "d_in",
}  # fmt: skip


def _is_one(path: Path) -> bool:
    return path.is_dir() and (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


def _members(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if _is_one(p)) if path.is_dir() else []


def _detect(path: Path) -> bool:
    return _is_one(path) or bool(_members(path))


def _read(path: Path, notes: list[str], *, hookpoint: str = "", site: str = "", target: str = "") -> Any:
    """hookpoint: the module path, when the folder's name is not it; site, target: our names, when they are known."""
    if _is_one(path):
        return _read_one(path, notes, hookpoint or path.name, site, target)
    members = _members(path)
    if not members:
        raise ArtifactError(
            f"{path}: holds no {CONFIG} beside {WEIGHTS}, neither here nor in its folders. Check the path."
        )
    if hookpoint or site or target:
        raise InputError(f"{path}: holds {len(members)} hook points, name options apply to one. Read that folder.")
    return {member.name: _read_one(member, notes, member.name, "", "") for member in members}


def _read_one(path: Path, notes: list[str], hookpoint: str, site: str, target: str) -> Dictionary:
    what = str(path)
    config = files.read_json(path / CONFIG)
    if not isinstance(config, dict) or "k" not in config:
        raise ArtifactError(f"{path / CONFIG}: expected an object with k. It is no sparsify configuration.")
    odd = sorted(config.keys() - _KEYS)
    if odd:
        notes.append(f"the configuration has keys that are not sparsify's, kept but not used: {odd[:6]}")
    activation = config.get("activation", "topk")
    if activation not in ("topk", "groupmax"):
        raise ArtifactError(f"{what}: activation {str(activation)[:30]!r} is unknown, expected topk or groupmax.")
    transcodes, skips = bool(config.get("transcode", False)), bool(config.get("skip_connection", False))
    required = ["encoder.weight", "encoder.bias", "W_dec", "b_dec", *(["W_skip"] if skips else [])]
    t = judge(files.load_tensors(path / WEIGHTS), what, notes, required=required)
    parts = _parts(t, config, skips, what, notes)
    if skips and not transcodes:
        raise ArtifactError(f"{what}: a skip connection without transcode copies the input to the output. Not read.")
    if not transcodes:
        parts["encoder"] = settle_square(parts["encoder"], parts["decoder"], what, notes)
    if transcodes:
        site = site or names.from_module(hookpoint, what, notes, "in")
        target = target or names.from_module(hookpoint, what, notes, "out")
    return build(
        what,
        **parts,
        activation=activation,
        k=config["k"] if type(config["k"]) is int else 0,
        center=not transcodes,
        site=site or names.from_module(hookpoint, what, notes),
        target=target,
        fitted={"foreign": {"format": "sparsify", "hookpoint": hookpoint, "config": config}},
    )


def _parts(t: dict[str, Tensor], config: dict[str, Any], skips: bool, what: str, notes: list[str]) -> dict[str, Any]:
    if t["encoder.bias"].ndim != 1 or t["b_dec"].ndim != 1:
        raise ArtifactError(f"{what}: encoder.bias and b_dec must be vectors. Its files do not belong together.")
    f, d = len(t["encoder.bias"]), len(t["b_dec"])
    width(config.get("d_in"), d, "d_in", what)
    wanted = config.get("num_latents") or d * config.get("expansion_factor", 32)
    width(wanted, f, "num_latents", what)
    out: dict[str, Any] = {
        "encoder": upright(t["encoder.weight"], (f, d), "encoder.weight", what, notes).T.contiguous(),
        "encoder_bias": vector(t["encoder.bias"], f, "encoder.bias", what),
        "decoder": upright(t["W_dec"], (f, d), "W_dec", what, notes),
        "decoder_bias": t["b_dec"],
    }
    if skips:
        out["skip"] = upright(t["W_skip"], (d, d), "W_skip", what, notes).T.contiguous()
    return out


def _write(value: Any, path: Path, *, hookpoint: str = "", model: Any = None) -> Path:
    """hookpoint: the module path for a dict of dictionaries it is each key; model: finds the path on that model."""
    if isinstance(value, dict):
        for name, member in value.items():
            _write(member, path / name, hookpoint=name)
        return path
    if not isinstance(value, Dictionary):
        raise InputError(f"sparsify holds dictionaries, got a {type(value).__name__}.")
    transcodes = bool(value.target) or value.skip is not None
    if value.activation not in ("topk", "groupmax"):
        raise InputError(
            f"sparsify keeps the k largest features, this dictionary is {value.activation}. Write it as saelens."
        )
    if value.decoder.shape[1] != value.d_in:
        raise InputError("sparsify has one width for input and output, this transcoder has two. Write it as saelens.")
    if value.normalize != "none" or value.center == transcodes:
        raise InputError(
            "sparsify autoencoders centre their input by the decoder bias, transcoders do not, and neither normalises "
            f"each vector; this has center={value.center}, normalize={value.normalize!r}. Write it as saelens."
        )
    if value.scale != 1:
        value = fold_scale(value)
    foreign = value.fitted.get("foreign", {})
    config = dict(foreign["config"]) if foreign.get("format") == "sparsify" else {}
    config = {
        "expansion_factor": 32,
        "normalize_decoder": True,
        "multi_topk": False,
        **config,
        "activation": value.activation,
        "num_latents": value.n_features,
        "k": value.k,
        "skip_connection": value.skip is not None,
        "transcode": transcodes,
        "d_in": value.d_in,
    }
    tensors = {
        "encoder.weight": value.encoder.T.contiguous(),
        "encoder.bias": value.encoder_bias,
        "W_dec": value.decoder,
        "b_dec": value.decoder_bias,
    }
    if value.skip is not None:
        tensors["W_skip"] = value.skip.T.contiguous()
    if model is not None and not hookpoint:
        path = path / names.to_module(value.target or str(value.site), model)
    files.make_folder(path)
    files.save_tensors(path / WEIGHTS, tensors)
    files.write_json(path / CONFIG, config)
    return path


FORMAT = Format(
    name="sparsify",
    title="EleutherAI sparsify: cfg.json and sae.safetensors, one folder per hook point",
    holds=("dictionary", "dictionaries"),
    detect=_detect,
    reads=_read,
    writes=_write,
)

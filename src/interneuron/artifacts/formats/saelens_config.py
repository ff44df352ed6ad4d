"""What SAELens' cfg.json says: architecture, hook point, normalisation, heads; that of releases before 6 too.

Before release 6 the hook point and everything about the model lay at the top, top-k was an `activation_fn` of the
standard architecture, and `normalize_activations` was a truth value. The reader of SAELens brings such a file to the
new form when no `sae_lens_version` of 6 or later is in it; so does `modern`.
"""

from __future__ import annotations

import math
import re
from typing import Any

from interneuron.artifacts.formats import names
from interneuron.core.errors import ArtifactError, InputError, did_you_mean

HEADED = re.compile(r"blocks\.\d+\.attn\.hook_(?:z|q|k|v|rot_q|rot_k)|layers\.\d+\.attn\.[zqkv]")

# architecture -> activation of a Dictionary
SAES = {
    "standard": "relu",
    "gated": "gated",
    "topk": "topk",
    "abstopk": "abstopk",
    "jumprelu": "jumprelu",
    "batchtopk": "jumprelu",
    "matryoshka_batchtopk": "jumprelu",
    "matching_pursuit": "pursuit",
}
TEMPORAL = "temporal"
TRANSCODERS = {
    "transcoder": "relu",
    "skip_transcoder": "relu",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
}
NORMS = {"none": "none", "layer_norm": "layer_norm", "constant_norm_rescale": "constant_norm"}

RENAMED = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
FIRST_OF_NOW = 6


def modern(config: dict[str, Any], what: str, notes: list[str]) -> dict[str, Any]:
    """The configuration as releases from 6 on would write it."""
    metadata = config.get("metadata") if isinstance(config.get("metadata"), dict) else {}
    version = str(config.get("sae_lens_version") or metadata.get("sae_lens_version") or "")
    major = version.partition(".")[0]
    nested = (
        bool(metadata.get("hook_name")) and not version and not {"activation_fn", "activation_fn_str"} & config.keys()
    )
    if nested or (major.isdigit() and int(major) >= FIRST_OF_NOW):
        return config
    new = {RENAMED.get(key, key): value for key, value in config.items()}
    hook = new.get("hook_name")
    new.setdefault("reshape_activations", "hook_z" if "hook_z" in str(hook) else "none")
    new["metadata"] = {
        **{key: new[key] for key in ("hook_name", "hook_name_out", "hook_head_index") if key in new},
        **metadata,
    }
    if (norm := new.get("normalize_activations")) is None or isinstance(norm, bool):
        new["normalize_activations"] = "expected_average_only_in" if norm else "none"
    function, options = new.get("activation_fn", "relu"), new.get("activation_fn_kwargs")
    options = options if isinstance(options, dict) else {}
    if function == "topk" and new.get("architecture", "standard") in ("standard", "topk"):
        new.update(architecture="topk", k=options.get("k", new.get("k")))
        notes.append("a configuration of a release before 6: activation_fn is topk, which is its architecture")
    elif function not in ("relu", "topk"):
        raise ArtifactError(
            f"{what}: activation_fn {str(function)[:30]!r} is none of relu and topk. Convert it in SAELens."
        )
    return new


def architecture_of(config: dict[str, Any], what: str) -> tuple[str, str, bool]:
    """The architecture, its activation in a Dictionary, and whether it is a transcoder."""
    name = config.get("architecture", "standard")
    known = {**SAES, **TRANSCODERS, TEMPORAL: ""}
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
    if name in TRANSCODERS and config.get("apply_b_dec_to_input"):
        raise ArtifactError(
            f"{what}: a transcoder that subtracts the bias of its output from its input. Check the file."
        )
    return name, known[name], name in TRANSCODERS


def heads_of(config: dict[str, Any], metadata: dict[str, Any], given: int, what: str, notes: list[str]) -> int:
    """How many heads lie side by side in its width; 0 when it has none, or when nobody says."""
    reshape, hook = config.get("reshape_activations", "none"), str(metadata.get("hook_name"))
    if reshape == "none" or reshape is None:
        return given
    if reshape != "hook_z":
        raise ArtifactError(f"{what}: reshape_activations={str(reshape)[:30]!r} is unknown, expected none or hook_z.")
    if metadata.get("hook_name") and not HEADED.fullmatch(hook):
        raise ArtifactError(
            f"{what}: reshape_activations=hook_z joins heads, but {hook[:60]!r} has none. Its configuration belongs to "
            "another file; download both again."
        )
    if not given:
        notes.append(
            "reshape_activations=hook_z: its width is that of all heads side by side; pass heads=, activations= or "
            "model= to give it [..., H, K]"
        )
    return given


def places_of(
    metadata: dict[str, Any], transcodes: bool, site: str, target: str, what: str, notes: list[str]
) -> tuple[str, str]:
    """The site it reads and the one it writes; "" for one that nothing names."""
    hook, out = metadata.get("hook_name"), metadata.get("hook_name_out")
    found = names.from_hook(hook, what, notes) if hook and not site else site
    goal = names.from_hook(out, what, notes) if out and transcodes and not target else target
    head = metadata.get("hook_head_index")
    if head is not None:
        if type(head) is not int or head < 0 or not HEADED.fullmatch(str(hook)):
            raise ArtifactError(
                f"{what}: hook_head_index={str(head)[:20]} of {str(hook)[:60]!r}, which has no heads. Check the file."
            )
        notes.append(
            f"trained on head {head} of {found} alone: it names no site, give it acts[{found!r}][..., {head}, :]"
        )
        return "", ""
    if not found:
        notes.append("the file names no hook point: give site=... before using it on a model")
    if transcodes and not goal:
        notes.append("a transcoder whose file names no output hook: give target=... before using it on a model")
        goal = found and f"{found}:target-unknown"
    return found, goal


def scale_of(config: dict[str, Any], given: float | None, what: str, notes: list[str]) -> float:
    """What activations are multiplied by before encoding."""
    norm = config.get("normalize_activations", "none")
    if norm == "constant_scalar_rescale" and config.get("architecture") == TEMPORAL and given is None:
        factor = config.get("activation_normalization_factor", 1.0)
        if not isinstance(factor, (int, float)) or not 0 < factor < math.inf:
            raise ArtifactError(
                f"{what}: activation_normalization_factor={str(factor)[:20]} is no factor. Check the file."
            )
        return float(factor)
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

"""Names of other tools, mapped to ours: TransformerLens, interp-engine and nnterp.

Residual contributions and raw outputs are kept apart as those tools do: TransformerLens' block-level `hook_attn_out` is
the contribution (after a post-norm, where there is one); its `attn.hook_out` is the raw output of the module.
"""

from __future__ import annotations

import re
from collections.abc import Container

_TL_BLOCK = {
    "hook_resid_pre": "resid_pre",
    "hook_in": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_out": "resid_post",
    "hook_attn_out": "attn.contribution",
    "hook_mlp_out": "mlp.contribution",
    "attn.hook_out": "attn.out",
    "mlp.hook_out": "mlp.out",
    "ln1.hook_normalized": "norm1",
    "ln1.hook_out": "norm1",
    "ln2.hook_normalized": "norm2",
    "ln2.hook_out": "norm2",
    "attn.hook_q": "attn.q_proj",
    "attn.hook_k": "attn.k_proj",
    "attn.hook_v": "attn.v_proj",
    "attn.q.hook_out": "attn.q_proj",
    "attn.k.hook_out": "attn.k_proj",
    "attn.v.hook_out": "attn.v_proj",
    "attn.hook_rot_q": "attn.q",
    "attn.hook_rot_k": "attn.k",
    "attn.hook_z": "attn.z",
    "attn.hook_attn_scores": "attn.scores",
    "attn.hook_pattern": "attn.pattern",
    "mlp.hook_pre_linear": "mlp.pre",
    "mlp.in.hook_out": "mlp.pre",
    "mlp.gate.hook_out": "mlp.gate",
    "mlp.hook_post": "mlp.hidden",
    "mlp.out.hook_in": "mlp.hidden",
    "mlp.hook_router_scores": "router.logits",
    "mlp.hook_expert_indices": "router.experts",
}
_TL_ROOT = {
    "hook_embed": "embed",
    "embed.hook_out": "embed",
    "ln_final.hook_normalized": "final_norm",
    "ln_final.hook_out": "final_norm",
    "unembed.hook_out": "logits",
}
_INTERP_ENGINE = {
    "resid_pre": "resid_pre",
    "attn_in": "norm1",
    "value": "attn.v",
    "attn_scores": "attn.scores",
    "attn_probs": "attn.pattern",
    "z": "attn.z",
    "attn_out": "attn.out",
    "attn_out_post": "attn.contribution",
    "resid_mid": "resid_mid",
    "mlp_in": "norm2",
    "mlp_pre_linear": "mlp.pre",
    "mlp_act": "mlp.hidden",
    "mlp_out": "mlp.out",
    "mlp_out_post": "mlp.contribution",
    "resid_post": "resid_post",
    "router_logits": "router.logits",
    "expert_indices": "router.experts",
}
_INTERP_ENGINE_ROOT = {"embeddings": "embed", "final_norm": "final_norm", "lm_head": "logits"}
_NNTERP = {
    "layers_input": "resid_pre",
    "layers_output": "resid_post",
    "attentions_output": "attn.out",
    "attentions_input": "norm1",
    "mlps_output": "mlp.out",
    "mlps_input": "norm2",
    "attention_probabilities": "attn.pattern",
}
_NNTERP_ROOT = {"token_embeddings": "embed", "ln_final.output": "final_norm", "logits": "logits"}


def canonical_alias(name: str, known: Container[str]) -> str | None:
    """Our name for another tool's, or None when it is no such name.

    `hook_pre` means the pre-activation: the gate's where the MLP is gated, the single projection's otherwise; so does
    interp-engine's `mlp_pre`. `known` is the model's own set of canonical names.

    >>> canonical_alias("blocks.3.hook_resid_post", ())
    'layers.3.resid_post'
    >>> canonical_alias("attn_probs.2", ()), canonical_alias("layers_output[4]", ())
    ('layers.2.attn.pattern', 'layers.4.resid_post')
    """
    for table in (_TL_ROOT, _INTERP_ENGINE_ROOT, _NNTERP_ROOT):
        if name in table:
            return table[name]
    match = re.fullmatch(r"blocks\.(\d+|\*|\d+-\d+)\.(.+)", name)
    if match:
        if match[2] == "mlp.hook_pre":
            return _pre_activation(match[1], known)
        suffix = _TL_BLOCK.get(match[2])
        return f"layers.{match[1]}.{suffix}" if suffix else None
    match = re.fullmatch(r"([a-z_]+)\.(\d+|\*|\d+-\d+)", name)
    if match and match[1] == "mlp_pre":
        return _pre_activation(match[2], known)
    if match and match[1] in _INTERP_ENGINE:
        return f"layers.{match[2]}.{_INTERP_ENGINE[match[1]]}"
    match = re.fullmatch(r"([a-z_]+)\[(\d+)\]", name)
    if match and match[1] in _NNTERP:
        return f"layers.{match[2]}.{_NNTERP[match[1]]}"
    return None


def _pre_activation(layer: str, known: Container[str]) -> str:
    first = "0" if layer == "*" else layer.split("-", maxsplit=1)[0]
    return f"layers.{layer}.mlp.{'gate' if f'layers.{first}.mlp.gate' in known else 'pre'}"

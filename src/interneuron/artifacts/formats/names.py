"""Where a foreign file belongs: hook names and module paths of other tools, to and from canonical sites."""

from __future__ import annotations

import re
from typing import Any

from interneuron.core.errors import ArtifactError, InputError
from interneuron.model import aliases
from interneuron.model.aliases import canonical_alias

_BLOCK = re.compile(r"(?:[A-Za-z_]\w*\.)*(?:layers|h|blocks|layer|block)\.(\d+)(?:\.(.+))?")
_PARTS = {
    "mlp": "mlp.out",
    "feed_forward": "mlp.out",
    "attn": "attn.out",
    "self_attn": "attn.out",
    "attention": "attn.out",
    "self_attention": "attn.out",
}
_INPUTS = {"mlp": "norm2", "feed_forward": "norm2", "attn": "norm1", "self_attn": "norm1", "attention": "norm1"}
_TL_INPUTS = {
    "mlp.hook_in": "norm2",
    "hook_mlp_in": "resid_mid",
    "hook_attn_in": "resid_pre",
    "ln2.hook_in": "resid_mid",
}
RESID_POST = re.compile(r"layers\.(\d+)\.resid_post")


def from_hook(name: Any, what: str, notes: list[str]) -> str:
    """The site of a TransformerLens hook name; a name that is neither that nor a module path is refused."""
    if not isinstance(name, str) or not re.fullmatch(r"[\w.\[\]:*-]{1,200}", name):
        raise ArtifactError(
            f"{what}: the hook name {str(name)[:60]!r} is no name of a site. Give the site with site=..."
        )
    site = canonical_alias(name, ())
    if site is not None:
        if site.endswith(".contribution"):
            notes.append(
                f"{name} is what the block adds to the residual stream, after any norm behind it: read as {site}"
            )
        return site
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    if block and block[2] in _TL_INPUTS:
        return f"layers.{block[1]}.{_TL_INPUTS[block[2]]}"
    if block:
        raise ArtifactError(f"{what}: the hook {name!r} has no site of ours. Give the site with site=...")
    return from_module(name, what, notes)


def from_module(path: Any, what: str, notes: list[str], side: str = "out") -> str:
    """The site at a module path (`layers.3.mlp`, `transformer.h.3`): the block itself is the residual stream after it.

    side  "out" for what the module returns, "in" for what it is given (transcoders read there)
    """
    if not isinstance(path, str) or not re.fullmatch(r"[\w.\[\]:*-]{1,200}", path):
        raise ArtifactError(f"{what}: the module path {str(path)[:60]!r} is no path. Give the site with site=...")
    if path.startswith("layers.") and (
        canonical := re.fullmatch(r"layers\.\d+\.(resid_\w+|mlp\.\w+|attn\.\w+|norm\d)", path)
    ):
        return canonical[0]
    block = _BLOCK.fullmatch(path)
    if block and not block[2]:
        return f"layers.{block[1]}.resid_{'post' if side == 'out' else 'pre'}"
    table = _PARTS if side == "out" else _INPUTS
    if block and block[2] in table:
        if side == "out":
            notes.append(f"{path} names the module: read as its raw output, before any norm behind it")
        return f"layers.{block[1]}.{table[block[2]]}"
    return f"{path}:{side}" if ":" not in path else path


def to_hook(site: str) -> str:
    """The TransformerLens name of a site; other names stay as they are."""
    block = re.fullmatch(r"layers\.(\d+)\.(.+)", site)
    table = aliases._TL_BLOCK if block else aliases._TL_ROOT
    name = next((theirs for theirs, ours in table.items() if ours == (block[2] if block else site)), None)
    if name is None:
        return site
    return f"blocks.{block[1]}.{name}" if block else name


def to_module(site: str, model: Any = None) -> str:
    """The path of the module whose output a site is, as tools that hook the base model name it.

    Without `model` the usual names are given (`layers.N`, `layers.N.mlp`), which hold for the Llama family and many
    others; with it, the path it has there, without the prefix of the base model.

    Raises InputError for a site that is no module's output.
    """
    if model is not None:
        path = model.sites(site)[0].path
        if not path.endswith(":out"):
            raise InputError(
                f"{site} is {path} of this model, no module's output. Use the output of a module or block."
            )
        prefix = getattr(model.module, "base_model_prefix", "")
        path = path.removesuffix(":out")
        return path.removeprefix(f"{prefix}.") if prefix else path
    block = re.fullmatch(r"layers\.(\d+)\.(resid_post|mlp\.(?:out|contribution))", site)
    if block:
        return f"layers.{block[1]}" + ("" if block[2] == "resid_post" else ".mlp")
    if site.endswith(":out"):
        return site.removesuffix(":out")
    raise InputError(f"{site!r} has no module path that holds for every model. Pass model=..., or hookpoint=...")


def layer_of(site: str, format: str) -> int:
    """N of `layers.N.resid_post`, the only site some formats know. Raises InputError for any other."""
    match = RESID_POST.fullmatch(site)
    if not match:
        raise InputError(
            f"{format} adds vectors to the output of whole blocks: {site!r} is no 'layers.N.resid_post'. "
            "Use a format that names its sites."
        )
    return int(match[1])


def name_table() -> list[dict[str, str]]:
    """One row per point: our name and what TransformerLens, interp-engine and nnterp call it, "" where they do not.

    `{i}` stands for the layer. Where a tool has several names for a point, the first is its usual one.
    """
    tools = {
        "transformer_lens": (aliases._TL_ROOT, aliases._TL_BLOCK, "blocks.{i}.%s"),
        "interp_engine": (aliases._INTERP_ENGINE_ROOT, aliases._INTERP_ENGINE, "%s.{i}"),
        "nnterp": (aliases._NNTERP_ROOT, aliases._NNTERP, "%s[{i}]"),
    }
    rows: dict[str, dict[str, str]] = {}
    for tool, (root, block, form) in tools.items():
        named = [(theirs, ours) for theirs, ours in root.items()]
        named += [(form % theirs, f"layers.{{i}}.{ours}") for theirs, ours in block.items()]
        for theirs, ours in named:
            row = rows.setdefault(ours, {"ours": ours, **dict.fromkeys(tools, "")})
            row[tool] = row[tool] or theirs
    return list(rows.values())

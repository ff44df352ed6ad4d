"""Which widths of a transformer's layers a thinner copy keeps, and copying the weights they belong to.

Scores of coupled matrices are multiplied: a dimension of a head counts by q k v o', a hidden unit by w_in w_out', each
summed along the other axis; the 1/r best stay. The dimensions of the residual stream are one choice for all layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from interneuron.core.errors import UnsupportedModel
from interneuron.model.model import Model
from interneuron.parts.linear_layers import site_path, weight_of

_SITES = {
    "q": "attn.q_proj", "k": "attn.k_proj", "v": "attn.v_proj", "o": "attn.z",
    "up": "mlp.pre", "gate": "mlp.gate", "down": "mlp.hidden",
}  # fmt: skip


@dataclass(frozen=True)
class Kept:
    """Indices that stay: of the residual stream, of rows of q and of k and v, and of hidden units."""

    stream: Tensor
    query: Tensor
    key: Tensor
    hidden: Tensor

    def rows_and_columns(self, role: str) -> tuple[Tensor, Tensor]:
        """Rows and columns a linear layer of that role keeps."""
        rows = {"q": self.query, "k": self.key, "v": self.key, "up": self.hidden, "gate": self.hidden}
        columns = {"o": self.query, "down": self.hidden}
        return rows.get(role, self.stream), columns.get(role, self.stream)


def layer_roles(model: Model, layer: int) -> dict[str, str]:
    """Module paths of q, k, v, o, up, gate (if there is one) and down of one layer.

    Raises UnsupportedModel where they are not linear layers of their own.
    """
    found = {role: site_path(model, f"layers.{layer}.{name}") for role, name in _SITES.items()}
    paths = {role: path for role, path in found.items() if path is not None}
    plain = [isinstance(model.module.get_submodule(path), nn.Linear) for path in paths.values()]
    if len(set(paths.values())) < len(paths) or not all(plain) or len(paths) < len(_SITES) - ("gate" not in paths):
        raise UnsupportedModel(
            f"{type(model.module).__name__}: q, k, v, o and the MLP of layer {layer} are not linear layers of their "
            f"own ({paths}), expected so. Begin with init='random'"
        )
    return paths


def keep_widths(model: Model, roles: Sequence[dict[str, str]], scores: dict[str, Tensor], reduction: int) -> list[Kept]:
    """What a copy `reduction` times thinner keeps of each layer; scores by parameter name."""
    stream = sum(
        scores[f"{path}.weight"].sum(int(role in ("o", "down"))) for row in roles for role, path in row.items()
    )
    assert isinstance(stream, Tensor)
    best = _best(stream, len(stream) // reduction)
    return [_layer(model, row, scores, reduction, best) for row in roles]


def copy_thin(source: nn.Module, target: nn.Module, root: str, roles: dict[str, str], kept: Kept) -> None:
    """Copy the kept rows and columns of every linear layer, and the kept entries of norms, in place."""
    own = {path.removeprefix(f"{root}."): role for role, path in roles.items()}
    into = dict(target.named_parameters())
    with torch.no_grad():
        for name, value in source.named_parameters():
            path, _, kind = name.rpartition(".")
            if path in own:
                rows, columns = kept.rows_and_columns(own[path])
                into[name].copy_(value[rows][:, columns] if kind == "weight" else value[rows])
            elif value.shape == (len(kept.stream) * (value.numel() // len(kept.stream)),) and len(into[name]) == len(
                kept.stream
            ):
                into[name].copy_(value[kept.stream])


def _layer(model: Model, roles: dict[str, str], scores: dict[str, Tensor], reduction: int, stream: Tensor) -> Kept:
    score = {role: scores[f"{path}.weight"] for role, path in roles.items()}
    hidden = score["up"].sum(1) * score["down"].sum(0) * (score["gate"].sum(1) if "gate" in score else 1.0)
    n_heads, n_keys = _heads(model, [len(weight_of(model.module.get_submodule(roles[r]))) for r in ("q", "k")])
    query, key = (score[role].sum(1).view(n, -1) for role, n in (("q", n_heads), ("k", n_keys)))
    value, out = score["v"].sum(1).view(n_keys, -1), score["o"].sum(0).view(n_heads, -1)
    group = n_heads // n_keys
    joint = key * value * (query * out).view(n_keys, group, -1).sum(1)
    width = joint.shape[1]
    inside = torch.stack([_best(row, width // reduction) for row in joint])  # [heads of k, K/r]
    keys = (inside + width * torch.arange(n_keys, device=inside.device)[:, None]).flatten()
    wide = inside.repeat_interleave(group, 0)
    queries = (wide + width * torch.arange(n_heads, device=inside.device)[:, None]).flatten()
    return Kept(stream, queries, keys, _best(hidden, len(hidden) // reduction))


def _heads(model: Model, rows: list[int]) -> tuple[int, int]:
    config = getattr(model.module, "config", None)
    n_heads = getattr(config, "num_attention_heads", None)
    if not isinstance(n_heads, int) or rows[0] % n_heads or rows[1] % (rows[0] // n_heads):
        raise UnsupportedModel(
            f"{type(model.module).__name__}: q has {rows[0]} rows and k {rows[1]}, expected whole heads of config."
            "num_attention_heads. Begin with init='random'"
        )
    return n_heads, rows[1] // (rows[0] // n_heads)


def _best(score: Tensor, n: int) -> Tensor:
    """Indices of the n largest, rising."""
    return score.argsort(descending=True, stable=True)[:n].sort().values

"""Linear layers inside the blocks of a transformer: which there are, what they read, and their weights as [out, in].

Both `nn.Linear` and the transposed `Conv1D` of GPT-2 count.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interneuron.core.errors import SiteNotFound, UnsupportedModel
from interneuron.model.model import Model


def block_linears(model: Model) -> dict[str, nn.Module]:
    """The linear layers inside the blocks, by module path; Raises UnsupportedModel when there are none."""
    from transformers.pytorch_utils import Conv1D

    found: dict[str, nn.Module] = {}
    for layer in range(model.n_layers):
        root = layer_path(model, layer)
        for name, module in model.module.get_submodule(root).named_modules():
            if isinstance(module, nn.Linear | Conv1D):
                found[f"{root}.{name}"] = module
    if not found:
        raise UnsupportedModel(f"{type(model.module).__name__} has no linear layers inside its blocks to make sparse")
    return found


def column_norms(layer: nn.Module) -> Float[Tensor, " D"]:
    """c_j = ||W[:, j]||_2, in float32."""
    return weight_of(layer).detach().float().norm(dim=0)


def weight_of(layer: nn.Module) -> Tensor:
    """[out in], whichever way the layer keeps it. Raises UnsupportedModel for packed (quantised) weights."""
    weight: Tensor = layer.weight  # pyrefly: ignore[bad-assignment]
    if not weight.is_floating_point() or weight.ndim != 2:
        raise UnsupportedModel(
            f"{type(layer).__name__} keeps its weights as {weight.dtype} {list(weight.shape)}, expected floating point "
            "[out in]. Load the model without quantisation"
        )
    return weight if isinstance(layer, nn.Linear) else weight.T


def set_weight(layer: Any, value: Tensor) -> None:
    """Write [out in] into the layer; under no_grad."""
    layer.weight.copy_(value if isinstance(layer, nn.Linear) else value.T)


def layer_path(model: Model, layer: int) -> str:
    """Module path of a layer."""
    return model.site(f"layers.{layer}.resid_post").path.partition(":")[0]


def site_path(model: Model, name: str) -> str | None:
    """Module path of a canonical site, or None where the model has no such site."""
    try:
        return model.site(name).path.partition(":")[0]
    except SiteNotFound:
        return None


def is_activation(module: nn.Module) -> bool:
    """Whether a module is a function without weights or parts, such as an activation; dropout is none."""
    plain = not any(True for _ in module.parameters()) and not any(True for _ in module.children())
    return plain and not isinstance(module, nn.Dropout | nn.Identity)


def activation_sites(model: Model) -> list[str]:
    """What leaves the activation function of each MLP: its module, or mlp.hidden where no gate is multiplied.

    Raises UnsupportedModel when a gated MLP has no activation module of its own.
    """
    sites = []
    for layer in range(model.n_layers):
        if site_path(model, f"layers.{layer}.mlp.gate") is None:
            sites.append(model.site(f"layers.{layer}.mlp.hidden").name)
            continue
        home = model.site(f"layers.{layer}.mlp.hidden").path.partition(":")[0].rpartition(".")[0]
        named = model.module.get_submodule(home).named_children()
        found = [name for name, module in named if is_activation(module)]
        if len(found) != 1:
            raise UnsupportedModel(
                f"{type(model.module).__name__}: {home} has {len(found)} activation modules beside its projections, "
                "expected one. Its activations cannot be told from outside"
            )
        sites.append(f"{home}.{found[0]}:out")
    return sites


def has_orthogonal_columns(weight: Tensor) -> bool:
    """Whether the columns are orthogonal up to rounding: the Gram matrix W'W is diagonal."""
    gram = weight.detach().float().T @ weight.detach().float()
    size = float(gram.diagonal().max())
    return float((gram - gram.diagonal().diag()).abs().max()) <= 1e-4 * size


@torch.no_grad()
def norm_readers(model: Model, probe: Tensor) -> dict[str, tuple[list[str], list[str]]]:
    """For each norm of a block: the linear layers that receive its output itself, and those its rotation is made of."""
    linears = list(block_linears(model))
    groups = {}
    for layer in range(model.n_layers):
        root = layer_path(model, layer)
        own = [path for path in linears if path.startswith(root + ".")]
        special = {site_path(model, f"layers.{layer}.{part}") for part in ("attn.k_proj", "mlp.gate")}
        for part in ("norm1", "norm2"):
            norm = site_path(model, f"layers.{layer}.{part}")
            if norm is None or norm in groups:
                continue
            with model.read(f"{norm}:out", *(f"{path}:in" for path in own)) as acts:
                model(probe)
            out = acts[f"{norm}:out"]
            readers = [path for path in own if acts[f"{path}:in"] is out]
            if readers:
                groups[norm] = (readers, [path for path in readers if path in special] or readers)
    return groups

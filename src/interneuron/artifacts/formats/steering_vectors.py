"""steering-vectors: an object in memory, `SteeringVector(layer_activations: {layer: [D]}, layer_type)`; it has no file.

direction = steering_vectors.from_object(their_vector)
their_vector = steering_vectors.to_object(direction)         # needs the package
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from interneuron.artifacts.direction import Direction
from interneuron.artifacts.formats.format import Format
from interneuron.artifacts.formats.gguf import as_direction
from interneuron.core.errors import InputError, MissingExtra

# layer_type -> our site inside a layer. The norm types are the outputs of the norms before attention and MLP.
TYPES = {
    "decoder_block": "resid_post",
    "self_attn": "attn.out",
    "mlp": "mlp.out",
    "input_layernorm": "norm1",
    "post_attention_layernorm": "norm2",
}


def from_object(vector: Any) -> Direction:
    """The Direction of a `SteeringVector`, or of anything with its two attributes."""
    rows, kind = getattr(vector, "layer_activations", None), getattr(vector, "layer_type", "decoder_block")
    if not isinstance(rows, dict) or not rows or kind not in TYPES:
        raise InputError(
            f"{type(vector).__name__} has no layer_activations or layer_type {kind!r} is unknown, expected a "
            "SteeringVector "
            f"with one of {', '.join(TYPES)}."
        )
    if not all(type(layer) is int and layer >= 0 and isinstance(row, torch.Tensor) for layer, row in rows.items()):
        raise InputError("layer_activations must map layer numbers >= 0 to tensors. Name layers from the front.")
    if len({tuple(row.shape) for row in rows.values()}) != 1:
        raise InputError("layer_activations differ in shape, expected one [D] per layer.")
    layers = sorted(rows)
    stacked = torch.stack([rows[layer].detach().reshape(-1) for layer in layers])
    sites = tuple(f"layers.{layer}.{TYPES[kind]}" for layer in layers)
    return Direction(
        stacked if len(layers) > 1 else stacked[0],
        site=sites if len(layers) > 1 else sites[0],
        fitted={"foreign": {"format": "steering_vectors", "layer_type": kind}},
    )


def to_object(value: Any) -> Any:
    """The `SteeringVector` of a Direction or of Adds, all at one kind of site."""
    direction = as_direction(value, "steering_vectors")
    rows = direction.vector if direction.vector.ndim == 2 else direction.vector[None]
    ours = {site: name for name, site in TYPES.items()}
    layers: dict[int, torch.Tensor] = {}
    kinds = set()
    for site, row in zip(direction.sites, rows, strict=True):
        head, layer, *rest = [*site.split(".", 2), "", ""][:3]
        if head != "layers" or not layer.isdigit() or ".".join(rest) not in ours:
            raise InputError(
                f"steering-vectors has no layer type for {site!r}, expected one of {', '.join(ours)} of a layer."
            )
        kinds.add(ours[".".join(rest)])
        layers[int(layer)] = row.detach().cpu()
    if len(kinds) != 1:
        raise InputError(f"a SteeringVector has one layer type, this direction has {sorted(kinds)}. Split it.")
    try:
        from steering_vectors import SteeringVector  # pyrefly: ignore[missing-import]
    except ImportError as error:
        raise MissingExtra(
            "this needs the package 'steering-vectors', which is not installed. Run: pip install steering-vectors"
        ) from error
    return SteeringVector(layer_activations=layers, layer_type=kinds.pop())


def _no_file(path: Path) -> bool:
    return False


FORMAT = Format(
    name="steering_vectors",
    title="steering-vectors: in memory only, through from_object and to_object",
    holds=("direction",),
    detect=_no_file,
)

"""Vision transformers: ViT, DeiT, BEiT (parts scaled by a parameter), DINOv2 (parts scaled by a module)."""

from typing import Any

from interneuron.model.family import Family, Stack

BASE = {"resid_pre": ":in", "attn.out": "attention:out", "attn.contribution": "attention:out"}
MLP = {"mlp.pre": "mlp.fc1:out", "mlp.hidden": "mlp.fc2:in", "mlp.out": "mlp:out", "mlp.contribution": "mlp:out"}
QKV = {f"attn.{x}_proj": f"attention.{x}_proj:out | heads" for x in "qkv"} | {"attn.z": "attention.o_proj:in | heads"}


def norms(first: str, second: str) -> dict[str, str]:
    """The sites at the two norms of a layer."""
    return {"norm1": f"{first}:out", "resid_mid": f"{second}:in", "norm2": f"{second}:out", "resid_post": ":out"}


VIT = {**BASE, **QKV, **MLP, **norms("layernorm_before", "layernorm_after")}
BEIT = {
    **VIT,
    "attn.contribution": ("attention:out | scale lambda_1", "attention:out"),
    "mlp.contribution": ("mlp:out | scale lambda_2", "mlp:out"),
}
DINO = {
    **VIT,
    **norms("norm1", "norm2"),
    "attn.contribution": "layer_scale1:out",
    "mlp.contribution": "layer_scale2:out",
}


def _family(name: str, base: str, layers: str, layer: dict[str, Any]) -> Family:
    root = {
        "embed": f"{base}.embeddings:out",
        "final_norm": f"{base}.layernorm:out",
        "logits": ":out.logits @ batch,class if classifier",
    }
    return Family(name, (name,), root=root, stacks=(Stack(f"{base}.{layers}", layer, {"attn": "attention"}),))


FAMILIES = [
    *(_family(x, x, "layers.*", VIT) for x in ("vit", "deit")),
    _family("beit", "beit", "layers.*", BEIT),
    _family("dinov2", "dinov2", "encoder.layer.*", DINO),
]

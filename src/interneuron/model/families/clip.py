"""CLIP and SigLIP: two towers of vision-transformer layers, each also a model of its own."""

from interneuron.model.families.vit import VIT, norms
from interneuron.model.family import Family, Part, Stack

CLIP = {
    **{name: tap.replace("attention", "self_attn").replace("o_proj", "out_proj") for name, tap in VIT.items()},
    **norms("layer_norm1", "layer_norm2"),
}


def _tower(name: str, types: tuple[str, ...], norm: str) -> Family:
    root = {"embed": "embeddings:out", "final_norm": norm}
    return Family(name, types, root=root, stacks=(Stack("encoder.layers.*", CLIP, {"attn": "self_attn"}),))


FAMILIES = [
    _tower("clip_text", ("clip_text_model", "siglip_text_model"), "final_layer_norm:out"),
    _tower("clip_vision", ("clip_vision_model",), "post_layernorm:out @ batch,d_model"),
    _tower("siglip_vision", ("siglip_vision_model",), "post_layernorm:out"),
    Family(
        "clip",
        ("clip", "siglip"),
        root={"logits": ":out.logits_per_image @ image,text"},
        parts=(Part("vision.", "vision_model"), Part("text.", "text_model")),
    ),
]

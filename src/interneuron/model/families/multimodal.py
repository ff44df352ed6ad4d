"""Vision-language models: a vision tower, a projector and a language model, each mapped by its own family.

The text keeps the stream of the whole model, which sees the token ids.
"""

from interneuron.model.family import Family, Part

FAMILIES = [
    Family(
        name="llava",
        model_types=("llava", "paligemma"),
        root={
            "projector": "model.multi_modal_projector:out",
            "logits": ":out.logits if lm_head",
        },
        parts=(Part("vision.", "model.vision_tower"), Part("text.", "model.language_model", own_stream=False)),
    ),
]

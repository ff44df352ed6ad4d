"""`vit`: a six-block Vision Transformer with 64 patches of 4x4 pixels that names the shape.

Input: 32x32 images in [0, 1] from [`shapes`](shapes.md); a class token, width 96, four heads, MLP 256, eight classes.
Trained on shape alone with pixel noise of random strength as the only augmentation, so that colour and texture are only
as readable as the task left them: methods that add knowledge about texture have room to show it. The first 400 steps
show solid, medium and large shapes on flat grey; from scratch on the full world the loss stays at chance for long. Muon
(0.01) on the block matrices, AdamW (0.0015) on the rest, cosine to zero. The patch filters start with their mean
removed and four times the usual scale, so that they see contrast and not grey level.

Chance for the linear probes of color, texture, size and position: 0.125, 0.2, 0.33, 0.11.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from interneuron.organisms import shapes as sh
from interneuron.organisms import vision_checks as checks
from interneuron.organisms.shapes import randoms
from interneuron.organisms.vision_training import Batch, VisionRecipe, logits

EASY_STEPS = 400
"""Steps of solid shapes on flat grey first: from scratch on the full world the loss stays at chance for thousands."""


def build() -> nn.Module:
    """The untrained network."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=32,
        patch_size=4,
        hidden_size=96,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=256,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label=dict(enumerate(sh.SHAPES)),
        label2id={name: i for i, name in enumerate(sh.SHAPES)},
        initializer_range=0.06,
    )
    model = ViTForImageClassification(config)
    # explicit attention runs in bf16 on the CPU twice as fast as the fused kernel; the choice is not saved
    model.set_attn_implementation("eager")
    with torch.no_grad():
        # patch filters that ignore the mean grey level and see contrast at unit scale
        filters = model.vit.embeddings.patch_embeddings.projection.weight
        filters.sub_(filters.mean(dim=(2, 3), keepdim=True)).mul_(4.0)
    return model


def batch(step: int, batch_size: int) -> Batch:
    """Scenes with light augmentation: pixel noise of random strength."""
    easy = (
        {"factors": {"texture": "solid", "size": ["medium", "large"]}} if step < EASY_STEPS else {"background": "any"}
    )
    scenes = sh.sample(batch_size, 0, start=step * batch_size, **easy)  # type: ignore[arg-type]
    address = scenes.factors["scene_key"]
    noise = randoms.field(address ^ 77, 3 * scenes.size, scenes.size).reshape(scenes.images.shape)
    strength = randoms.uniform(randoms.key(0, "vit noise"), address)[:, None, None, None] * 0.08
    return (scenes.images + (noise - 0.5) * strength).clamp(0.0, 1.0), scenes.labels("shape")


def loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy on the shape."""
    return nn.functional.cross_entropy(scores, labels)


def measure(model: nn.Module, seed: int) -> dict[str, tuple[int, float]]:
    """The capability table on held-out scenes of one sampling seed."""
    scenes = sh.sample(1000, seed, split="test", background="any")
    scores = logits(model, scenes.images)
    labels = scenes.labels("shape")
    shape = checks.accuracy(scores, labels)
    texture = checks.probe_accuracy(model, "texture", seed)
    table = {
        "shape": (1000, shape),
        "shape accuracy - texture probe": (1000, shape - texture),
        "share of confident predictions (p > 0.9)": (
            1000,
            float((torch.softmax(scores, 1).amax(1) > 0.9).float().mean()),
        ),
        "gradient on object / elsewhere (median)": (200, checks.localisation(model, scenes[:200])),
        "linear probe of texture": (1000, texture),
    }
    for factor in ("color", "size", "position"):
        table[f"linear probe of {factor}"] = (1000, checks.probe_accuracy(model, factor, seed))
    return table


RECIPE = VisionRecipe(
    name="vit",
    about="shape classifier, Vision Transformer with 64 patches, six blocks",
    minutes=9,
    steps=2200,
    batch_size=64,
    lr=1.5e-3,
    muon_lr=0.01,
    warmup=150,
    build=build,
    batch=batch,
    loss=loss,
    measure=measure,
    required={"shape": (">=", 0.95), "shape accuracy - texture probe": (">=", 0.10)},
    artefacts=("trained on one object an image; scenes of several objects are outside its world",),
)

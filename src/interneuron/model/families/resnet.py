"""ResNet. A layer is one residual block, counted over all stages."""

from interneuron.model.families.convnext import IMAGE, LOGITS
from interneuron.model.family import Family, Stack

# The sum is made in place on the branch's output, then goes through the activation.
RESIDUAL = {
    "resid_pre": f":in @ {IMAGE}",
    "conv.contribution": "layer:out | copy",
    "shortcut": "shortcut:out",
    "resid_post": f":out @ {IMAGE}",
}

FAMILIES = [
    Family(
        "resnet",
        ("resnet",),
        root={"embed": f"resnet.embedder:out @ {IMAGE}", **LOGITS},
        stacks=(
            Stack(
                "resnet.encoder.stages.*.layers.*",
                RESIDUAL,
                equations=("shortcut + conv.contribution = activation:in",),
                chained=False,
            ),
        ),
        convs=True,
    ),
]

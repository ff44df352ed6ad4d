"""`shapes`: an image world whose every factor, mask and caption is known.

    from interneuron.organisms import shapes as sh
    scenes = sh.sample(1000, seed=0, background="any")
    scenes.images, scenes.labels("shape*color"), scenes.masks, scenes.boxes, scenes.captions

Images are drawn from signed-distance fields on the CPU, about 5,500 a second on one core at 32x32. Scene i of
a seed depends on (seed, split, i) only.
"""

from __future__ import annotations

from . import vocabulary
from .anomalies import ANOMALIES, Defects, anomalies
from .captions import caption, hallucination, mentions, parse, relations
from .corrupt import CORRUPTIONS, OCCLUDERS, corrupt, occlude
from .faces import EXPRESSIONS, Faces, faces
from .glyphs import Arrows, Glyphs, arrows, glyphs
from .measure import Measurement, count_regions, measure
from .questions import Questions, questions
from .scenes import Scenes, contrast, sample
from .spirals import Spirals, grid64, spirals
from .styles import MODALITIES, modality, part
from .video import MOTIONS, Video, video
from .vocabulary import BACKGROUNDS, COLORS, POSITIONS, SHAPES, SIZES, TEXTURES

__all__ = [
    "ANOMALIES",
    "BACKGROUNDS",
    "COLORS",
    "CORRUPTIONS",
    "EXPRESSIONS",
    "MODALITIES",
    "MOTIONS",
    "OCCLUDERS",
    "POSITIONS",
    "SHAPES",
    "SIZES",
    "TEXTURES",
    "Arrows",
    "Defects",
    "Faces",
    "Glyphs",
    "Measurement",
    "Questions",
    "Scenes",
    "Spirals",
    "Video",
    "anomalies",
    "arrows",
    "caption",
    "contrast",
    "corrupt",
    "count_regions",
    "faces",
    "glyphs",
    "grid64",
    "hallucination",
    "measure",
    "mentions",
    "modality",
    "occlude",
    "parse",
    "part",
    "questions",
    "relations",
    "sample",
    "spirals",
    "video",
    "vocabulary",
]

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
from .blocks import Blocks, blocks, signals
from .captions import caption, hallucination, mentions, parse, relations
from .composite import ATOMS, NEEDS, CompositeQuestions, composite
from .corrupt import CORRUPTIONS, OCCLUDERS, corrupt, occlude
from .faces import EXPRESSIONS, Faces, faces
from .facets import FACETS, Facets, facets
from .glyphs import Arrows, Glyphs, arrows, glyphs
from .measure import Measurement, count_regions, measure
from .questions import Questions, questions
from .rooms import Rooms, rooms
from .scenes import Scenes, contrast, sample
from .shapes3d import SOLIDS, Solids, Views, cameras, shapes3d
from .spatial import DYNAMIC, STATIC, SpatialQuestions, spatial
from .spirals import Spirals, grid64, spirals
from .styles import MODALITIES, modality, part
from .video import MOTIONS, Video, video
from .views import Room, views
from .vocabulary import BACKGROUNDS, COLORS, POSITIONS, SHAPES, SIZES, TEXTURES
from .voxels import Voxels, raycast, voxels

__all__ = [
    "ANOMALIES",
    "ATOMS",
    "BACKGROUNDS",
    "COLORS",
    "CORRUPTIONS",
    "DYNAMIC",
    "EXPRESSIONS",
    "FACETS",
    "MODALITIES",
    "MOTIONS",
    "NEEDS",
    "OCCLUDERS",
    "POSITIONS",
    "SHAPES",
    "SIZES",
    "SOLIDS",
    "STATIC",
    "TEXTURES",
    "Arrows",
    "Blocks",
    "CompositeQuestions",
    "Defects",
    "Faces",
    "Facets",
    "Glyphs",
    "Measurement",
    "Questions",
    "Room",
    "Rooms",
    "Scenes",
    "Solids",
    "SpatialQuestions",
    "Spirals",
    "Video",
    "Views",
    "Voxels",
    "anomalies",
    "arrows",
    "blocks",
    "cameras",
    "caption",
    "composite",
    "contrast",
    "corrupt",
    "count_regions",
    "faces",
    "facets",
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
    "raycast",
    "relations",
    "rooms",
    "sample",
    "shapes3d",
    "signals",
    "spatial",
    "spirals",
    "video",
    "views",
    "vocabulary",
    "voxels",
]

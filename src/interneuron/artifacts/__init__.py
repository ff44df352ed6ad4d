"""Artifacts: what a method learned, as named tensors plus plain facts, saved in files that cannot run code."""

from interneuron.artifacts.base import Artifact
from interneuron.artifacts.dictionary import Dictionary
from interneuron.artifacts.direction import Direction
from interneuron.artifacts.load import kinds, load_artifact
from interneuron.artifacts.report import Report
from interneuron.artifacts.weight_delta import WeightDelta

__all__ = ["Artifact", "Dictionary", "Direction", "Report", "WeightDelta", "kinds", "load_artifact"]

"""Measure: numbers that describe activations: geometry, sparsity, similarity, dimension, and how usual they are."""

from interneuron.core.cards import lazy_family

__getattr__, __dir__ = lazy_family(__name__)

"""Layers: activations, norms and attention that take the place of the usual ones."""

from interneuron.core.cards import lazy_family

__getattr__, __dir__ = lazy_family(__name__)

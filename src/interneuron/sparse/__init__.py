"""Sparse computation: running a network with fewer of its activations."""

from interneuron.core.cards import lazy_family

__getattr__, __dir__ = lazy_family(__name__)

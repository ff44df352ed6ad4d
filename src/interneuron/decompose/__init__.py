"""Decomposition: bases, factors and sparse dictionaries of activations."""

from interneuron.core.cards import lazy_family

__getattr__, __dir__ = lazy_family(__name__)

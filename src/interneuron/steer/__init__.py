"""Steering: vectors and maps that change what a model does."""

from interneuron.core.cards import lazy_family

__getattr__, __dir__ = lazy_family(__name__)

"""Circuits: which parts of a network cause what it does."""

from interneuron.core.cards import lazy_family

__getattr__, __dir__ = lazy_family(__name__)

"""Explaining single predictions: which parts of an input carried them."""

from interneuron.core.cards import lazy_family

__getattr__, __dir__ = lazy_family(__name__)

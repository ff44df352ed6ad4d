"""Forgetting: making a trained model lose what it should not know."""

from interneuron.core.cards import lazy_family

__getattr__, __dir__ = lazy_family(__name__)

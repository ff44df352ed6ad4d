"""Adaptation: small trained additions to a frozen model."""

from interneuron.core.cards import lazy_family

__getattr__, __dir__ = lazy_family(__name__)

"""Direction: concepts as directions or subspaces, and probes that find them."""

from interneuron.core.cards import lazy_family

__getattr__, __dir__ = lazy_family(__name__)

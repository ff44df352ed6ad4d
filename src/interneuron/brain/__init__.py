"""Brain: recordings of brains, and models that predict them from the activations of networks."""

from interneuron.core.cards import lazy_family

__getattr__, __dir__ = lazy_family(__name__)

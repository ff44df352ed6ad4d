# Generated from the cards of this folder by `make stubs`; not edited by hand.
from interneuron.adapt.eva import EVA as EVA
from interneuron.adapt.eva import redistribute_ranks as redistribute_ranks

# Generated from the cards of this folder by `make stubs`; not edited by hand.
from interneuron.memory.mesa import Mesa as Mesa
from interneuron.memory.ssdtrain import ActivationOffload as ActivationOffload

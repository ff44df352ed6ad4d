# Generated from the cards of this folder by `make stubs`; not edited by hand.
from interneuron.steer.mean_difference import MeanDifference as MeanDifference

# Generated from the cards of this folder by `make stubs`; not edited by hand.
from interneuron.measure.gaussian_ad import GaussianAD as GaussianAD
from interneuron.measure.gaussian_ad import NormalGaussians as NormalGaussians

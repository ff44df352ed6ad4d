# Generated from the cards of this folder by `make stubs`; not edited by hand.
from interneuron.forget.ssd import SSD as SSD
from interneuron.forget.ssd import membership_inference as membership_inference

# Generated from the cards of this folder by `make stubs`; not edited by hand.
from interneuron.direction.gcav import GCAV as GCAV
from interneuron.direction.gcav import GlobalCAV as GlobalCAV
from interneuron.direction.gcav import tcav as tcav
from interneuron.direction.gcav import tgcav as tgcav

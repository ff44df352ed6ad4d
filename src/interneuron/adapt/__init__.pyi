# Generated from the cards of this folder by `make stubs`; not edited by hand.
from interneuron.adapt.eva import EVA as EVA
from interneuron.adapt.eva import redistribute_ranks as redistribute_ranks
from interneuron.adapt.ladder_side_tuning import LadderSideNetwork as LadderSideNetwork
from interneuron.adapt.ladder_side_tuning import SideNetwork as SideNetwork

# Generated from the cards of this folder by `make stubs`; not edited by hand.
from interneuron.layers.peri_ln import PeriLNBlock as PeriLNBlock
from interneuron.layers.peri_ln import convert_norm_placement as convert_norm_placement
from interneuron.layers.peri_ln import depth_profile as depth_profile
from interneuron.layers.peri_ln import divergence_rate as divergence_rate
from interneuron.layers.peri_ln import gradient_profile as gradient_profile
from interneuron.layers.selu import SNN as SNN
from interneuron.layers.selu import lecun_normal_ as lecun_normal_
from interneuron.layers.selu import moment_profile as moment_profile
from interneuron.layers.selu import selu_constants as selu_constants
from interneuron.layers.selu import selu_jacobian as selu_jacobian
from interneuron.layers.selu import selu_moment_map as selu_moment_map

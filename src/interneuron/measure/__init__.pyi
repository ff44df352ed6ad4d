# Generated from the cards of this folder by `make stubs`; not edited by hand.
from interneuron.measure.active_dormant_heads import extreme_token_report as extreme_token_report
from interneuron.measure.active_dormant_heads import fit_log_growth as fit_log_growth
from interneuron.measure.active_dormant_heads import head_dormancy as head_dormancy
from interneuron.measure.active_dormant_heads import park_head as park_head
from interneuron.measure.active_dormant_heads import use_relu_attention as use_relu_attention
from interneuron.measure.gaussian_ad import GaussianAD as GaussianAD
from interneuron.measure.gaussian_ad import NormalGaussians as NormalGaussians
from interneuron.measure.massive_activation_dynamics import GrowthLaw as GrowthLaw
from interneuron.measure.massive_activation_dynamics import GrowthLawPredictor as GrowthLawPredictor
from interneuron.measure.massive_activation_dynamics import fit_growth_law as fit_growth_law
from interneuron.measure.massive_activation_dynamics import massive_activations as massive_activations
from interneuron.measure.massive_activation_dynamics import massive_dynamics as massive_dynamics

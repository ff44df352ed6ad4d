# Generated from the cards of this folder by `make stubs`; not edited by hand.
from interneuron.decompose.attn_sae import AttentionSAE as AttentionSAE
from interneuron.decompose.attn_sae import ablate_features as ablate_features
from interneuron.decompose.attn_sae import direct_feature_attribution as direct_feature_attribution
from interneuron.decompose.attn_sae import head_attribution as head_attribution
from interneuron.decompose.dark_matter import ErrorSplit as ErrorSplit
from interneuron.decompose.dark_matter import dark_matter_report as dark_matter_report
from interneuron.decompose.dark_matter import error_split as error_split
from interneuron.decompose.dark_matter import gradient_pursuit as gradient_pursuit
from interneuron.decompose.dark_matter import norm_predictability as norm_predictability
from interneuron.decompose.gsae import GradientSAE as GradientSAE
from interneuron.decompose.gsae import encode_with_gradient as encode_with_gradient
from interneuron.decompose.gsae import latent_effect as latent_effect
from interneuron.decompose.snmf import SNMF as SNMF
from interneuron.decompose.snmf import NeuronGroups as NeuronGroups
from interneuron.decompose.snmf import fit_hierarchy as fit_hierarchy
from interneuron.decompose.top_afa import TopAFA as TopAFA
from interneuron.decompose.top_afa import afa_report as afa_report

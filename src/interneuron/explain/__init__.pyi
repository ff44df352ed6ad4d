# Generated from the cards of this folder by `make stubs`; not edited by hand.
from interneuron.explain.layer_masking import grid_segments as grid_segments
from interneuron.explain.layer_masking import lime as lime
from interneuron.explain.layer_masking import lime_report as lime_report
from interneuron.explain.layer_masking import masked_layers as masked_layers
from interneuron.explain.layer_masking import masked_logits as masked_logits

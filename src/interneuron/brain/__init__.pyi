# Generated from the cards of this folder by `make stubs`; not edited by hand.
from interneuron.brain.brain_transformer_encoder import BrainEncoder as BrainEncoder
from interneuron.brain.brain_transformer_encoder import LinearMapReadout as LinearMapReadout
from interneuron.brain.brain_transformer_encoder import RoiAttentionEncoder as RoiAttentionEncoder
from interneuron.brain.brain_transformer_encoder import SpatialFeatureReadout as SpatialFeatureReadout
from interneuron.brain.brain_transformer_encoder import VoxelEncoding as VoxelEncoding
from interneuron.brain.brain_transformer_encoder import feature_maps as feature_maps
from interneuron.brain.brain_transformer_encoder import sine_code as sine_code

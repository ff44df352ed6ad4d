# Generated from the cards of this folder by `make stubs`; not edited by hand.
from interneuron.bench.pavlov_attention import AssociativeMemory as AssociativeMemory
from interneuron.bench.pavlov_attention import capacity_curve as capacity_curve
from interneuron.bench.pavlov_attention import conditioning_suite as conditioning_suite
from interneuron.bench.pavlov_attention import error_propagation as error_propagation
from interneuron.bench.pavlov_attention import head_capacity as head_capacity
from interneuron.bench.pavlov_attention import redundancy as redundancy

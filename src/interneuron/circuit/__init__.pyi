# Generated from the cards of this folder by `make stubs`; not edited by hand.
from interneuron.circuit.relation_neurons import RelationNeuronFinder as RelationNeuronFinder
from interneuron.circuit.relation_neurons import RelationNeurons as RelationNeurons
from interneuron.circuit.relation_neurons import accuracy as accuracy
from interneuron.circuit.relation_neurons import average_precision as average_precision
from interneuron.circuit.relation_neurons import relation_matrix as relation_matrix
from interneuron.circuit.relp import lrp_edits as lrp_edits
from interneuron.circuit.relp import lrp_rules as lrp_rules
from interneuron.circuit.relp import relp_scores as relp_scores
from interneuron.circuit.subspace_illusion import DAS as DAS
from interneuron.circuit.subspace_illusion import SubspacePatch as SubspacePatch
from interneuron.circuit.subspace_illusion import illusion_test as illusion_test
from interneuron.circuit.subspace_illusion import rank_one_edit as rank_one_edit

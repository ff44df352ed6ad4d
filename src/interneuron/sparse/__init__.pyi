# Generated from the cards of this folder by `make stubs`; not edited by hand.
from interneuron.sparse.lazy_neurons import calibration_error as calibration_error
from interneuron.sparse.lazy_neurons import density_report as density_report
from interneuron.sparse.lazy_neurons import sparsity_gradient as sparsity_gradient
from interneuron.sparse.lazy_neurons import topk_edit as topk_edit
from interneuron.sparse.sparsing_law import cett_thresholds as cett_thresholds
from interneuron.sparse.sparsing_law import fat_sparsity as fat_sparsity
from interneuron.sparse.sparsing_law import fit_sparsing_law as fit_sparsing_law
from interneuron.sparse.sparsing_law import ppl_p_sparsity as ppl_p_sparsity
from interneuron.sparse.sparsing_law import random_sparsity as random_sparsity
from interneuron.sparse.sparsing_law import topk_sparsity as topk_sparsity
from interneuron.sparse.wina import WINA as WINA
from interneuron.sparse.wina import SparseMask as SparseMask
from interneuron.sparse.wina import orthogonalize_columns as orthogonalize_columns
from interneuron.sparse.wina import sparsity_curve as sparsity_curve
from interneuron.sparse.wina import wina_mask as wina_mask

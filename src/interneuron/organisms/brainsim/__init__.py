"""`brainsim`: recordings of simulated brains, whose every response has a known cause.

    from interneuron.organisms import brainsim
    data = brainsim.fmri.make(seed=0)
    data.responses, data.area_of_voxel, data.truth["signal"], data.truth["ceiling"]

Each module is one kind of recording. It has `make(seed, **dials)`, which returns data with `.truth`; everything is
decided by the seed.
"""

from __future__ import annotations

from . import calcium, eeg, fmri, spikes

__all__ = ["calcium", "eeg", "fmri", "spikes"]

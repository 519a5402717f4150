"""What is said of each lattice beside its model: where it is from, why it is left out, and what that was judged by."""

from __future__ import annotations

import numpy as np

from xfelproc.algorithms.merging.cycle_state import CycleState
from xfelproc.algorithms.merging.filters import Consensus, cell_deviations
from xfelproc.algorithms.merging.influence import influences
from xfelproc.algorithms.merging.lattice_block import LatticeBlock
from xfelproc.algorithms.merging.lattice_models import LatticeModels
from xfelproc.kernels.influence import Merged
from xfelproc.models.conventions import HC
from xfelproc.models.tables import ScaledLatticeTable


def described(
    table: ScaledLatticeTable,
    block: LatticeBlock,
    models: LatticeModels,
    state: CycleState,
    consensus: Consensus,
    merged: Merged | None = None,
) -> ScaledLatticeTable:
    """Return the rows of `output.output_block` with the columns that say why lattices are left out; see `influences`."""
    if state.settings.delta_cc_half:
        models = models.with_influences(influences(block, models, state, merged))
    finest = np.full(block.n_lattices, np.nan)
    some = np.diff(block.starts) > 0
    if some.any():
        finest[some] = 1.0 / np.sqrt(np.maximum.reduceat(state.unique.inverse_d2[block.group], block.starts[:-1][some]))
    return table.replace(
        unit=block.unit,
        lattice=block.number,
        group=block.lattice_group,
        reason=models.reason,
        energy=HC / block.wavelength,
        d_min=finest,
        cell_deviation=cell_deviations(block.cell, consensus.cell),
        mahalanobis=consensus.cells.distances(block.cell),
        delta_cc_half=models.delta_cc_half,
    )

"""The end of scaling: rows of the unmerged table, and the sums of the merged one, block by block."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging.cycle import CycleState, factors
from xfelproc.algorithms.merging.final import final_sums
from xfelproc.algorithms.merging.lattice_block import LatticeBlock
from xfelproc.algorithms.merging.lattice_models import LatticeModels
from xfelproc.algorithms.merging.reference import Sums
from xfelproc.kernels.error_model import observation_variances
from xfelproc.kernels.unmerged import sorted_rows
from xfelproc.models.conventions import ReflectionFlag
from xfelproc.models.tables import ScaledLatticeTable, UnmergedTable


def output_block(
    block: LatticeBlock, models: LatticeModels, state: CycleState, first_lattice: int = 0
) -> tuple[UnmergedTable, ScaledLatticeTable, Sums]:
    """Return the rows of a block's observations and lattices, and the final sums.

    ``first_lattice`` is the number in the run of the block's first. The sums are those of `final.final_sums`.
    """
    sums, merged = final_sums(block, models, state)
    full, partiality = (values.astype(np.float64) for values in factors(block, models, state))
    offered = (partiality >= state.settings.min_partiality) & models.used[block.lattice]
    quality = models.quality[block.lattice]
    rows = _rows(block, state, first_lattice, merged, full, partiality, quality)
    return rows, _lattices(block, models, state, merged, offered), sums


@dataclass(frozen=True)
class BlockEnd:
    """What is published of a block in the end: ``rows`` (m, 15) as the unmerged MTZ has them, sorted by unique reflection and
    lattice; ``bounds`` (n_unique + 1,) of the reflections in them; what became of the lattices; the final sums.
    """

    rows: NDArray[np.float32]
    bounds: NDArray[np.int64]
    lattices: ScaledLatticeTable
    sums: Sums


def end_of_block(block: LatticeBlock, models: LatticeModels, state: CycleState, first_lattice: int = 0) -> BlockEnd:
    """Return the same as `output_block`, but of the observations only those that are merged; none if no unmerged file is wanted."""
    sums, merged = final_sums(block, models, state)
    full, partiality = factors(block, models, state)
    scale, b = _gauge(state)
    rows, bounds = sorted_rows(
        block.starts,
        merged if state.settings.unmerged else np.zeros_like(merged),
        block.group,
        block.isym,
        block.intensity,
        block.variance_fixed,
        block.variance_gain,
        full,
        partiality,
        (block.fast, block.slow, block.polarization, block.excitation),
        block.panel,
        block.flags,
        state.unique.hkl.astype(np.int32),
        state.reference.expected,
        scale * np.exp(-0.5 * b * state.unique.inverse_d2),
        models.quality,
        state.errors.terms,
        first_lattice,
    )
    offered = (partiality >= state.settings.min_partiality) & np.repeat(models.used, np.diff(block.starts))
    return BlockEnd(rows, bounds, _lattices(block, models, state, merged, offered), sums)


def _gauge(state: CycleState) -> tuple[float, float]:
    return float(np.exp(state.gauge[0])), float(state.gauge[1])


def _rows(
    block: LatticeBlock,
    state: CycleState,
    first_lattice: int,
    merged: NDArray[np.bool_],
    full: NDArray[np.float64],
    partiality: NDArray[np.float64],
    quality: NDArray[np.float64],
) -> UnmergedTable:
    settings, scale_gauge = state.settings, _gauge(state)
    keep = partiality >= settings.min_partiality
    expected = state.reference.expected[block.group]
    fixed, gain = block.variance_fixed.astype(np.float64), block.variance_gain.astype(np.float64)
    variance = observation_variances(fixed, gain, full, partiality, expected, quality, state.errors.terms)
    # on the scale on which the mean lattice has the scale 1 and no B
    own = full / (scale_gauge[0] * np.exp(-0.5 * scale_gauge[1] * state.unique.inverse_d2[block.group]))
    k = own * partiality
    outlier = np.where(merged, 0, int(ReflectionFlag.OUTLIER)).astype(np.uint16)
    lattice = block.lattice
    with np.errstate(divide="ignore", invalid="ignore"):
        table = UnmergedTable(
            None,
            lattice=first_lattice + lattice,
            hkl=block.hkl.astype(np.int32),
            hkl_asu=state.unique.hkl[block.group],
            isym=block.isym.astype(np.int32),
            panel=block.panel.astype(np.int32),
            fast=block.fast,
            slow=block.slow,
            intensity=block.intensity / k,
            sigma=np.sqrt(variance) / k,
            scale=own,
            partiality=partiality,
            polarization=block.polarization,
            excitation=block.excitation,
            half=block.half[lattice],
            flags=block.flags | outlier,
        )
    return table.select(keep)


def _lattices(
    block: LatticeBlock,
    models: LatticeModels,
    state: CycleState,
    merged: NDArray[np.bool_],
    offered: NDArray[np.bool_],
) -> ScaledLatticeTable:
    m = block.n_lattices
    scale, b = _gauge(state)
    n_merged = block.counts(merged)
    width = models.width if state.settings.fits_width else np.full((m, 2), np.nan)
    return ScaledLatticeTable(
        m,
        scale=models.scale / scale,
        b_factor=models.b_factor - b,
        width=width[:, 0],
        width_slope=width[:, 1],
        n_observations=n_merged,
        n_rejected=block.counts(offered) - n_merged,
        correlation=models.cc,
        half=block.half,
        used=models.used & (n_merged > 0),
    )

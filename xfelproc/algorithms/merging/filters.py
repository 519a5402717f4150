"""Lattices that are left out before merging: too few observations, or the cell of another crystal."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging.lattice_block import LatticeBlock
from xfelproc.algorithms.merging.lattice_models import LatticeModels, Reason
from xfelproc.algorithms.merging.reference import Floats
from xfelproc.algorithms.merging.settings import Merge

SAID = {
    Reason.FEW: "have fewer observations than merge.min_observations",
    Reason.CORRELATION: "do not correlate to the others (merge.min_lattice_cc)",
    Reason.CELL: "have another cell (merge.max_cell_deviation)",
}


def filtered(block: LatticeBlock, models: LatticeModels, cell: Floats, settings: Merge) -> LatticeModels:
    """Return the models of a block's lattices, some left out; ``cell`` (6,) is the median one, Å and degrees."""
    models = models.without(np.diff(block.starts) < settings.min_observations, Reason.FEW)
    if settings.max_cell_deviation is None:
        return models
    return models.without(cell_deviations(block.cell, cell) > settings.max_cell_deviation, Reason.CELL)


def cell_deviations(cells: Floats, cell: Floats) -> Floats:
    """Return the largest relative difference of a length, or difference of an angle in radians, of cells (n, 6) from one (6,)."""
    lengths, angles = np.abs(cells[:, :3] / cell[:3] - 1.0), np.radians(np.abs(cells[:, 3:] - cell[3:]))
    largest: Floats = np.concatenate([lengths, angles], axis=1).max(axis=1, initial=0.0)
    return largest


def counts_by_reason(reason: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the number of lattices of each `Reason`, (n_reasons,)."""
    return np.bincount(reason, minlength=len(Reason))


def filter_record(counts: NDArray[np.int64]) -> dict[str, int]:
    """Return for ``merge.json`` how many lattices were left out for which reason."""
    return {reason.name.lower(): int(counts[reason]) for reason in SAID}


def filter_warnings(counts: NDArray[np.int64]) -> list[str]:
    """Return a word for each reason for which lattices were left out."""
    return [f"{counts[reason]} lattices {words}: left out" for reason, words in SAID.items() if counts[reason]]

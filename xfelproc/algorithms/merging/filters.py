"""Lattices and observations that are left out of merging: why, how many, and what to set where nothing is left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging.cell_spread import NORMAL, CellSpread
from xfelproc.algorithms.merging.lattice_block import LatticeBlock
from xfelproc.algorithms.merging.lattice_models import LatticeModels, Reason
from xfelproc.algorithms.merging.reference import Floats
from xfelproc.algorithms.merging.settings import Merge
from xfelproc.models.conventions import HC

SAID = {
    Reason.FEW: "have fewer observations than merge.min_observations",
    Reason.CORRELATION: "do not correlate to the others (merge.min_lattice_cc)",
    Reason.CELL: "have another cell (merge.max_cell_deviation)",
    Reason.MAHALANOBIS: "have a cell unlike the others' (merge.max_cell_mahalanobis)",
    Reason.ENERGY: "have another photon energy (merge.energy_range, merge.max_energy_deviation)",
    Reason.DELTA_CC: "lower CC1/2 (merge.delta_cc_half_cut)",
    Reason.STRETCH: "are of stretches of the run that lower CC1/2 (merge.stretch_cut)",
}

CAUSES = {
    "flagged": "flagged by integration, or beyond the resolution limits (merge.exclude, merge.d_min, merge.d_max)",
    "panel": "on panels left out (merge.exclude_panels)",
    "edge": "near an edge of their panel (merge.panel_edge)",
    "significance": "beyond the resolution to which their lattice has signal (merge.significance)",
}
"""Why an observation is not merged, in the order in which they are tested."""

LEAST_ENERGY_SPREAD = 1e-6
"""Relative: photon energies are not told apart that are nearer."""


@dataclass(frozen=True)
class Consensus:
    """What a lattice is compared to: the median ``cell`` (6,), Å and degrees, the scatter of all, the median photon energy, eV,
    and its robust standard deviation.
    """

    cell: Floats
    cells: CellSpread
    energy: float
    energy_spread: float

    @classmethod
    def of(cls, cells: Floats, wavelengths: Floats, space_group: str) -> Self:
        """Return that of lattices with these cells (n, 6), Å and degrees, and wavelengths (n,), Å, n > 0."""
        energies = HC / wavelengths
        energy = float(np.median(energies))
        spread = max(NORMAL * float(np.median(np.abs(energies - energy))), LEAST_ENERGY_SPREAD * energy)
        return cls(np.median(cells, axis=0), CellSpread.of(cells, space_group), energy, spread)


def filtered(block: LatticeBlock, models: LatticeModels, consensus: Consensus | None, settings: Merge) -> LatticeModels:
    """Return the models of a block's lattices, some left out for what is known of them before they are scaled."""
    models = models.without(np.diff(block.starts) < settings.min_observations, Reason.FEW)
    if consensus is None:
        return models
    if settings.max_cell_deviation is not None:
        models = models.without(cell_deviations(block.cell, consensus.cell) > settings.max_cell_deviation, Reason.CELL)
    if settings.max_cell_mahalanobis is not None:
        distances = consensus.cells.distances(block.cell)
        models = models.without(distances > settings.max_cell_mahalanobis, Reason.MAHALANOBIS)
    if settings.energy_range is not None:
        energy, (low, high) = HC / block.wavelength, settings.energy_range
        models = models.without((energy < low) | (energy > high), Reason.ENERGY)
    if settings.max_energy_deviation is not None:
        deviations = np.abs(HC / block.wavelength - consensus.energy) / consensus.energy_spread
        models = models.without(deviations > settings.max_energy_deviation, Reason.ENERGY)
    return models


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


def lost_record(lost: NDArray[np.int64]) -> dict[str, int]:
    """Return how many observations were left out for which of the `CAUSES`."""
    return {cause: int(n) for cause, n in zip(CAUSES, lost, strict=True)}


def nothing_left(n_lattices: int, counts: NDArray[np.int64], lost: NDArray[np.int64]) -> str:
    """Return which filters took what, where nothing is left: lattices by `Reason` (or none), observations by `CAUSES`."""
    text = f"nothing to merge: none of {n_lattices} lattices is left"
    lattices = [f"{counts[reason]} {words}" for reason, words in SAID.items() if reason < len(counts) and counts[reason]]
    observations = [f"{n:,} are {CAUSES[cause]}" for cause, n in lost_record(lost).items() if n]
    text += f"; of the lattices, {'; '.join(lattices)}" if lattices else ""
    text += f"; of the observations, {'; '.join(observations)}" if observations else ""
    return text + ". Loosen what took most, and run the same command again"

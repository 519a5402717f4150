"""Indexing of sweeps: the lattice of the spots of one or several sweeps of a crystal, brought to one angle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from xfelproc.algorithms.indexing.fft1d import Fft1d
from xfelproc.algorithms.indexing.solution import conventional_basis
from xfelproc.errors import DataError
from xfelproc.geometry.cells import Floats
from xfelproc.geometry.lattice_characters import BravaisFit, bravais_fits
from xfelproc.geometry.reduction import cell_of
from xfelproc.kernels.lattice_search import lattice_distances
from xfelproc.models.parameters import Parameters

_MOST = 999.0


@dataclass(frozen=True, eq=False)
class SweepLattice:
    """A lattice of a sweep: A (3, 3) in its conventional setting, indices (n, 3) of all points and which it explains.

    ``fits`` are the 44 lattice characters with their penalties (0-999), the smallest first.
    """

    a_matrix: Floats
    space_group: str
    hkl: NDArray[np.int32]
    explained: NDArray[np.bool_]
    fits: tuple[BravaisFit, ...]


class IndexSweep(Parameters):
    """One-dimensional Fourier transforms of the strongest spots; the lattice that explains most of all is taken."""

    search: Annotated[Fft1d, Field(description="search for the primitive lattice")] = Fft1d(max_spots=500, step=1.0)
    tolerance: Annotated[
        float, Field(gt=0, le=0.5, description="a spot is explained if each component of its index is this near to a whole number")
    ] = 0.3
    max_distance: Annotated[
        float, Field(gt=0, description="distance of spots from lattice points in the search, of the longest reciprocal axis")
    ] = 0.1
    max_penalty: Annotated[float, Field(gt=0, le=_MOST, description="largest penalty of a lattice that is proposed")] = 150.0

    def index(self, q: Floats, strength: Floats, space_group: str | None = None) -> SweepLattice:
        """Return the lattice of points q (n, 3; 1/Å, crystal at angle 0) of given strength (n,).

        Parameters
        ----------
        space_group
            Known symmetry; None: the highest that the metric shows within ``max_penalty``.

        Raises
        ------
        DataError
            If no lattice is found, or none of the space group's.
        """
        order = np.argsort(-strength, kind="stable")
        ordered = np.ascontiguousarray(q[order])
        weight = np.ones(len(q))
        best: Floats | None = None
        most = 0
        for candidate in self.search.search(ordered, weight, self.max_distance / self.search.min_axis * 0.1):
            fitted = self._fitted(candidate, q)
            count = int(np.count_nonzero(self._explained(fitted, q)[1]))
            if count > 1.02 * most:
                best, most = fitted, count
        if best is None:
            raise DataError(
                f"no lattice in {len(q)} spots of the sweep: are beam centre, distance, wavelength and spindle right? Give "
                "more spots (spots.min_snr) or longer axes (index.search.max_axis)"
            )
        fits = bravais_fits(best, _MOST)
        conventional, group, complaint = conventional_basis(best, space_group, self.max_penalty if space_group is None else _MOST)
        if complaint:
            raise DataError(f"{complaint}; index.space_group may be wrong")
        hkl, explained = self._explained(conventional, q)
        return SweepLattice(np.linalg.inv(conventional).astype(np.float64), group, hkl, explained, fits)

    def _explained(self, basis: Floats, q: Floats) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        hkl, fraction, _ = lattice_distances(np.ascontiguousarray(basis), np.ascontiguousarray(q))
        return hkl.astype(np.int32), (fraction < self.tolerance) & np.any(hkl != 0, axis=1)

    def _fitted(self, basis: Floats, q: Floats) -> Floats:
        """Return the basis fitted by least squares to the points that it explains, the nearest first."""
        fitted = basis
        for tolerance in (0.15, 0.2, self.tolerance):
            hkl, fraction, _ = lattice_distances(np.ascontiguousarray(fitted), np.ascontiguousarray(q))
            rows = (fraction < tolerance) & np.any(hkl != 0, axis=1)
            if np.count_nonzero(rows) < 9:
                return fitted
            reciprocal, *_ = np.linalg.lstsq(hkl[rows].astype(np.float64), q[rows], rcond=None)
            if abs(np.linalg.det(reciprocal)) < 1e-12:
                return fitted
            fitted = np.ascontiguousarray(np.linalg.inv(reciprocal).T)
        return fitted if np.linalg.det(fitted) > 0 else -fitted


def lattice_words(lattice: SweepLattice) -> list[str]:
    """Return the table of the 44 lattices as lines: number, Bravais type, penalty and regularised cell."""
    lines = [" No.  type  penalty      a        b        c      alpha   beta    gamma"]
    for fit in lattice.fits:
        cell = " ".join(f"{v:8.2f}" for v in fit.cell)
        lines.append(f"{fit.character:4d}   {fit.bravais}   {fit.penalty:7.1f}  {cell}")
    return lines


def cell_of_a(a_matrix: Floats) -> tuple[float, float, float, float, float, float]:
    """Return the cell (Å, degrees) of A."""
    return cell_of(np.linalg.inv(a_matrix))

"""Refinement of one lattice of a still against all spots of the frame."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from xfelproc.algorithms.refinement.mosaicity import Mosaicity
from xfelproc.geometry.constraints import metric_basis
from xfelproc.geometry.prediction import pack_detector, predict_indices, spread_of
from xfelproc.kernels.refinement import refine_still
from xfelproc.models.experiment import Beam, Crystal, Detector, as_matrix, as_vector
from xfelproc.models.frames import IndexedLattice, RefinedLattice
from xfelproc.models.parameters import Parameters
from xfelproc.models.tables import IndexedTable, SpotTable

_TRANSLATIONS = {"none": 0, "xy": 2, "xyz": 3}


class Refine(Parameters):
    """Orientation, cell and detector shift of stills by robust least squares on positions and on the excitation error.

    Every cycle offers all spots of the frame anew: those within ``tolerance`` of an index count as indexed. Positions are
    weighted by counting statistics (σ = a/SNR, larger along the radius) plus what the residuals show beyond them; the excitation
    error of an indexed spot is expected to be 0 within the spread of the crystal's. Both carry Tukey's biweight.
    """

    detector: Annotated[
        Literal["none", "xy", "xyz"], Field(description="refine a shift of the detector on each frame: none, across, or all")
    ] = "none"
    tolerance: Annotated[
        float, Field(gt=0, le=0.5, description="a spot is indexed if each component of its index is this near to a whole number")
    ] = 0.3
    sigma_tangential: Annotated[float, Field(gt=0, description="σ·S/N of a spot's position across the radius, px")] = 1.0
    sigma_radial: Annotated[float, Field(gt=0, description="σ·S/N of a spot's position along the radius, px")] = 1.5
    sigma_floor: Annotated[float, Field(gt=0, description="least systematic σ of a position, px")] = 0.02
    sigma_excitation: Annotated[float, Field(ge=0, description="σ of the excitation error, 1/Å; 0 takes it from the spots")] = 0.0
    cell_restraint: Annotated[float, Field(gt=0, description="relative standard deviation of the cell about the one indexed")] = (
        0.02
    )
    shift_restraint: Annotated[float, Field(gt=0, description="standard deviation of the detector's shift about 0, mm")] = 0.05
    outlier_limit: Annotated[
        float, Field(gt=1, description="residuals beyond this many standard deviations have no weight (Tukey)")
    ] = 5.0
    max_cycles: Annotated[int, Field(gt=0, le=100, description="most cycles of assignment and least squares")] = 12
    min_spots: Annotated[int, Field(ge=3, description="a lattice with fewer indexed spots is rejected")] = 6
    max_rmsd: Annotated[float, Field(gt=0, description="a lattice of larger root mean square residual is rejected, px")] = 4.0
    max_cell_change: Annotated[
        float, Field(gt=0, lt=1, description="a lattice is rejected if a cell edge changes by more than this fraction")
    ] = 0.05
    mosaicity: Annotated[Mosaicity, Field(description="fit of domain size and mosaic spread")] = Mosaicity()

    def refine(self, lattice: IndexedLattice, spots: SpotTable, detector: Detector, beam: Beam) -> RefinedLattice:
        """Return ``lattice`` refined against all ``spots`` of the frame, rejected with a reason where it does not stand.

        Root mean square deviations are over all indexed spots, outliers included.
        """
        start = lattice.crystal
        n_shift = _TRANSLATIONS[self.detector]
        a, shift, hkl, inside, keep, out, _ = refine_still(
            np.ascontiguousarray(start.a_matrix),
            metric_basis(start.space_group),
            pack_detector(detector),
            spots["panel"],
            spots["fast"],
            spots["slow"],
            np.maximum(spots["snr"].astype(np.float64), 1.0),
            beam.s0,
            spread_of(start, beam),
            n_shift,
            self._settings(),
        )
        rows = np.flatnonzero(inside)
        crystal = self._with_mosaicity(a, hkl[keep], out[keep, 3], start, beam)
        moved = detector.shifted(as_vector(shift)) if n_shift else detector
        predicted = predict_indices(crystal, moved, beam, hkl[rows], spots["panel"][rows])
        indexed = IndexedTable(
            len(rows),
            spot=rows,
            hkl=hkl[rows],
            fast_calc=predicted[:, 0],
            slow_calc=predicted[:, 1],
            delta_psi=predicted[:, 3],
            used=keep[rows],
        )
        residual2 = (spots["fast"][rows] - predicted[:, 0]) ** 2 + (spots["slow"][rows] - predicted[:, 1]) ** 2
        rmsd = float(np.sqrt(residual2.mean())) if len(rows) else float("nan")
        rmsd_psi = float(np.sqrt(np.mean(predicted[:, 3] ** 2))) if len(rows) else float("nan")
        reason = self._judge(len(rows), rmsd, start, a)
        return RefinedLattice(crystal, moved, as_vector(shift), indexed, rmsd, rmsd_psi, not reason, reason, lattice.log10_p)

    def _settings(self) -> NDArray[np.float64]:
        return np.array(
            [
                self.tolerance,
                self.sigma_tangential,
                self.sigma_radial,
                self.sigma_floor,
                self.sigma_excitation,
                self.cell_restraint,
                self.shift_restraint,
                self.outlier_limit,
                self.max_cycles,
            ]
        )

    def _with_mosaicity(
        self, a: NDArray[np.float64], hkl: NDArray[np.int32], psi: NDArray[np.float64], start: Crystal, beam: Beam
    ) -> Crystal:
        """Return the crystal of matrix ``a`` with the mosaicity that the ΔΨ (radians) of its spots show."""
        crystal = replace(start, A=as_matrix(a))
        if len(hkl) == 0:
            return crystal
        d = 1.0 / np.linalg.norm(hkl @ a.T, axis=1)
        size, half = self.mosaicity.fit(np.degrees(psi), d, beam.wavelength, beam.bandwidth)
        return replace(crystal, domain_size=size, half_mosaicity=half)

    def _judge(self, n_indexed: int, rmsd: float, start: Crystal, a: NDArray[np.float64]) -> str:
        """Return why a refined lattice is rejected; empty if it stands."""
        if n_indexed < self.min_spots:
            return f"only {n_indexed} spots indexed after refinement (refine.min_spots {self.min_spots})"
        if not rmsd <= self.max_rmsd:
            return f"residuals of {rmsd:.2f} px after refinement (refine.max_rmsd {self.max_rmsd:g})"
        before = np.linalg.norm(start.real_space, axis=1)
        change = float(np.max(np.abs(np.linalg.norm(np.linalg.inv(a), axis=1) / before - 1.0)))
        if not change <= self.max_cell_change:
            return f"a cell edge changed by {100 * change:.1f} % in refinement (refine.max_cell_change {self.max_cell_change:g})"
        return ""

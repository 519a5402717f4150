"""Refinement of one lattice of a still against all spots of the frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from xfelproc.algorithms.refinement.mosaicity import Mosaicity
from xfelproc.geometry.cells import lattice_rotations, misorientation
from xfelproc.geometry.constraints import metric_basis
from xfelproc.geometry.prediction import pack_detector, predict_indices, spread_of
from xfelproc.kernels.geometry import spots_to_q
from xfelproc.kernels.mosaicity import fit_turns
from xfelproc.kernels.refinement import refine_still
from xfelproc.models.experiment import Beam, Crystal, Detector, as_matrix, as_vector
from xfelproc.models.frames import IndexedLattice, RefinedLattice
from xfelproc.models.parameters import Parameters
from xfelproc.models.tables import IndexedTable, SpotTable

_TRANSLATIONS = {"none": 0, "xy": 2, "xyz": 3}
_TURN_PASSES = 2  # fits of the turns, each followed by least squares
_TURN_SCATTER = 0.2  # px of scatter beyond counting statistics at which the turns are fitted
_TURN_SPOTS = 20
_TURN_CYCLES = 25
_TURN_START = np.radians(0.1)
_DILATION_START = 1e-3
_TURN_FREEDOM = 4.0  # degrees of freedom of the residuals' distribution
_SQUARE_DEGREES = np.degrees(1.0) ** 2


@dataclass(frozen=True)
class _Fit:
    """What least squares leaves: translation (mm), indices, spots within tolerance and kept, ΔΨ (radians), σ of positions (px)."""

    crystal: Crystal
    shift: NDArray[np.float64]
    hkl: NDArray[np.int32]
    inside: NDArray[np.bool_]
    keep: NDArray[np.bool_]
    psi: NDArray[np.float64]
    scatter: float


class Refine(Parameters):
    """Orientation, cell and detector shift of stills by robust least squares on positions and on the excitation error.

    Every cycle offers all spots of the frame anew: those within ``tolerance`` of an index count as indexed. Positions are
    weighted by counting statistics (σ = a/SNR, larger along the radius) plus what the residuals show beyond them; the excitation
    error of an indexed spot is expected to be 0 within the spread of the crystal's. Both carry Tukey's biweight. Where positions
    scatter beyond counting statistics, the blocks of the crystal are let turn about preferred axes: a spot then shows what its
    excitation error says about the block that diffracts.
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
    outlier_sigma: Annotated[
        float, Field(gt=1, description="indexed spots beyond this many standard deviations are marked as not used")
    ] = 2.5
    turns: Annotated[
        bool,
        Field(description="fit the covariance of the blocks' turns where positions scatter more than counting statistics explain"),
    ] = True
    max_cycles: Annotated[int, Field(gt=0, le=100, description="most cycles of assignment and least squares")] = 12
    min_spots: Annotated[int, Field(ge=3, description="a lattice that fewer spots fit is rejected")] = 6
    max_rmsd: Annotated[float, Field(gt=0, description="a lattice of larger RMSD over the spots that fit is rejected, px")] = 4.0
    max_cell_change: Annotated[
        float, Field(gt=0, lt=1, description="a lattice is rejected if a cell edge changes by more than this fraction")
    ] = 0.05
    min_misorientation: Annotated[
        float, Field(ge=0, le=10, description="lattices of a frame nearer to each other than this are one, degrees")
    ] = 0.7
    mosaicity: Annotated[Mosaicity, Field(description="fit of domain size and mosaic spread")] = Mosaicity()

    def refine(self, lattice: IndexedLattice, spots: SpotTable, detector: Detector, beam: Beam) -> RefinedLattice:
        """Return ``lattice`` refined against all ``spots`` of the frame, rejected with a reason where it does not stand.

        ``rmsd`` is over all indexed spots, outliers included; the lattice is judged by ``rmsd_used``, over those that fit.
        """
        start = lattice.crystal
        shifted = detector.shifted(lattice.shift) if any(lattice.shift) else detector
        fit = self._fit(start, lattice.spots, spots, shifted, beam)
        inside, keep, hkl = fit.inside, fit.keep, fit.hkl
        rows = np.flatnonzero(inside)
        crystal = self._with_mosaicity(fit.crystal, hkl[keep], fit.psi[keep], beam)
        shift = as_vector(np.asarray(lattice.shift) + fit.shift)
        moved = detector.shifted(shift) if any(shift) else detector
        predicted = predict_indices(crystal, moved, beam, hkl[rows], spots["panel"][rows])
        residual2 = (spots["fast"][rows] - predicted[:, 0]) ** 2 + (spots["slow"][rows] - predicted[:, 1]) ** 2
        counted = 0.5 * (self.sigma_tangential**2 + self.sigma_radial**2) / np.maximum(spots["snr"][rows], 1.0) ** 2
        used = keep[rows] & (residual2 <= self.outlier_sigma**2 * (fit.scatter**2 + counted))
        indexed = IndexedTable(
            len(rows),
            spot=rows,
            hkl=hkl[rows],
            fast_calc=predicted[:, 0],
            slow_calc=predicted[:, 1],
            delta_psi=predicted[:, 3],
            used=used,
        )
        rmsd = float(np.sqrt(residual2.mean())) if len(rows) else float("nan")
        rmsd_used = float(np.sqrt(residual2[used].mean())) if used.any() else float("nan")
        rmsd_psi = float(np.sqrt(np.mean(predicted[:, 3] ** 2))) if len(rows) else float("nan")
        reason = self._judge(int(np.count_nonzero(used)), rmsd_used, start, crystal)
        return RefinedLattice(crystal, moved, shift, indexed, rmsd, rmsd_psi, not reason, reason, lattice.log10_p, rmsd_used)

    def separate(
        self, lattices: Sequence[RefinedLattice], spots: SpotTable, detector: Detector, beam: Beam
    ) -> tuple[RefinedLattice, ...]:
        """Return the lattices of one frame, refined again, each against the spots that none of the others explains better.

        A spot belongs to the lattice that predicts it nearest. A lattice that refinement brought to within ``min_misorientation``
        of an earlier one is that one, and is left out; its spots are offered to the others again.
        """
        distinct: list[RefinedLattice] = []
        for lattice in lattices:
            a = lattice.crystal.a_matrix
            rotations = lattice_rotations(lattice.crystal.cell)
            if all(misorientation(a, other.crystal.a_matrix, rotations) >= self.min_misorientation for other in distinct):
                distinct.append(lattice)
        if len(distinct) < 2:
            return tuple(distinct)
        distance = np.full((len(distinct), len(spots)), np.inf)
        for number, lattice in enumerate(distinct):
            rows = lattice.indexed["spot"]
            off_fast = spots["fast"][rows] - lattice.indexed["fast_calc"]
            off_slow = spots["slow"][rows] - lattice.indexed["slow_calc"]
            distance[number, rows] = off_fast**2 + off_slow**2
        owner = np.where(np.isfinite(distance.min(axis=0)), distance.argmin(axis=0), -1)
        return tuple(
            self._refine_on(lattice, np.flatnonzero((owner == number) | (owner < 0)), spots, detector, beam)
            for number, lattice in enumerate(distinct)
        )

    def _refine_on(
        self, lattice: RefinedLattice, rows: NDArray[np.int64], spots: SpotTable, detector: Detector, beam: Beam
    ) -> RefinedLattice:
        """Return a lattice refined again against some rows of ``spots``."""
        used = lattice.indexed.select(lattice.indexed["used"])
        mine = np.isin(used["spot"], rows)
        core = np.searchsorted(rows, used["spot"][mine])
        start = IndexedLattice(lattice.crystal, core, used["hkl"][mine], lattice.log10_p, lattice.shift)
        again = self.refine(start, spots.select(rows), detector, beam)
        return replace(again, indexed=again.indexed.replace(spot=rows[again.indexed["spot"]]))

    def _fit(self, start: Crystal, core: NDArray[np.int64], spots: SpotTable, detector: Detector, beam: Beam) -> _Fit:
        """Return the least-squares solution; where positions call for it, with the covariance of the blocks' turns.

        The first fit of the turns is on the ``core``, the spots that indexing (or an earlier refinement) is sure of.
        """
        sure = np.zeros(len(spots), dtype=np.bool_)
        sure[core] = True
        packed = pack_detector(detector)
        crystal = replace(start, mosaic_covariance=None, dilation_variance=0.0)
        s0 = beam.s0
        for pass_ in range(1 + _TURN_PASSES):
            a, shift, hkl, inside, keep, out, summary = refine_still(
                np.ascontiguousarray(crystal.a_matrix),
                metric_basis(start.space_group),
                packed,
                spots["panel"],
                spots["fast"],
                spots["slow"],
                np.maximum(spots["snr"].astype(np.float64), 1.0),
                s0,
                spread_of(crystal, beam),
                _TRANSLATIONS[self.detector],
                self._settings(),
            )
            scatter = float(summary[0])
            crystal = replace(crystal, A=as_matrix(a))
            if pass_ == _TURN_PASSES or not self.turns or scatter < _TURN_SCATTER or np.count_nonzero(keep) < _TURN_SPOTS:
                break
            moved = pack_detector(detector, shift)
            q = np.empty((len(spots), 3))
            spots_to_q(moved, spots["panel"], spots["fast"], spots["slow"], s0, q)
            chosen = keep & sure if pass_ == 0 and np.count_nonzero(keep & sure) >= _TURN_SPOTS else keep
            calculated = hkl[chosen] @ a.T
            pixel = float(np.median(detector.pixel_sizes)) / float(np.median(np.linalg.norm(packed[:, 9:12], axis=1)))
            noise = (scatter * pixel / beam.wavelength) ** 2
            s, dilation, left = fit_turns(
                calculated, q[chosen] - calculated, _TURN_START**2, _DILATION_START**2, noise, _TURN_FREEDOM, _TURN_CYCLES
            )
            xx, xy, xz, yy, yz, zz = (float(v) * _SQUARE_DEGREES for v in s[np.triu_indices(3)])
            crystal = replace(crystal, mosaic_covariance=(xx, xy, xz, yy, yz, zz), dilation_variance=dilation, point_variance=left)
        return _Fit(crystal, shift, hkl, inside, keep, out[:, 3], scatter)

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

    def _with_mosaicity(self, crystal: Crystal, hkl: NDArray[np.int32], psi: NDArray[np.float64], beam: Beam) -> Crystal:
        """Return the crystal with the mosaicity that the ΔΨ (radians) of its spots show."""
        if len(hkl) == 0:
            return crystal
        d = 1.0 / np.linalg.norm(hkl @ crystal.a_matrix.T, axis=1)
        size, half = self.mosaicity.fit(np.degrees(psi), d, beam.wavelength, beam.bandwidth)
        return replace(crystal, domain_size=size, half_mosaicity=half)

    def _judge(self, n_used: int, rmsd: float, start: Crystal, crystal: Crystal) -> str:
        """Return why a refined lattice is rejected; empty if it stands."""
        if n_used < self.min_spots:
            return f"only {n_used} spots fit after refinement (refine.min_spots {self.min_spots})"
        if not rmsd <= self.max_rmsd:
            return f"residuals of {rmsd:.2f} px after refinement (refine.max_rmsd {self.max_rmsd:g})"
        before = np.linalg.norm(start.real_space, axis=1)
        change = float(np.max(np.abs(np.linalg.norm(crystal.real_space, axis=1) / before - 1.0)))
        if not change <= self.max_cell_change:
            return f"a cell edge changed by {100 * change:.1f} % in refinement (refine.max_cell_change {self.max_cell_change:g})"
        return ""

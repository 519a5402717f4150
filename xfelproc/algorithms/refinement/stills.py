"""Refinement of one lattice of a still against all spots of the frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from xfelproc.algorithms.refinement.mosaicity import Mosaicity
from xfelproc.algorithms.refinement.satellites import find_satellite
from xfelproc.geometry.cells import lattice_rotations, misorientation
from xfelproc.geometry.constraints import metric_basis
from xfelproc.geometry.prediction import pack_detector, predict_indices, spread_of
from xfelproc.kernels.geometry import move_panels, spots_to_q
from xfelproc.kernels.mosaicity import fit_turns
from xfelproc.kernels.refinement import refine_still
from xfelproc.models.experiment import Beam, Crystal, Detector, Vector3, as_matrix, as_vector
from xfelproc.models.frames import IndexedLattice, RefinedLattice
from xfelproc.models.parameters import Parameters
from xfelproc.models.tables import IndexedTable, SpotTable

_MOVEMENTS = {"none": 0, "xy": 2, "xyz": 3, "tilt": 5}
_TURN_PASSES = 2  # fits of the turns, each followed by least squares
_TURN_SCATTER = 0.2  # px of scatter beyond counting statistics at which the turns are fitted
_TURN_SPOTS = 20
_TURN_CYCLES = 25
_TURN_START = np.radians(0.1)
_DILATION_START = 1e-3
_TURN_FREEDOM = 4.0  # degrees of freedom of the residuals' distribution
_SATELLITE_SPOTS, _SATELLITE_SHARE = 20, 0.05  # fewest spots of a satellite, and as part of its lattice's
_SATELLITE_RMSD, _SATELLITE_LEAST_RMSD = 2.5, 0.5  # largest RMSD, of its lattice's; px that are always good enough
_SATELLITE_CELL = 0.003  # restraint of its cell about its lattice's
_SATELLITE_CYCLES = 2  # of sharing out the spots
_IDENTITY = np.eye(3, dtype=np.int64)[None]
_SQUARE_DEGREES = np.degrees(1.0) ** 2


@dataclass(frozen=True)
class _Fit:
    """What least squares leaves: translation (mm) and tilt (degrees), indices, spots within tolerance and kept, ΔΨ (radians), σ of
    positions (px).
    """

    crystal: Crystal
    shift: Vector3
    tilt: tuple[float, float]
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
        Literal["none", "xy", "xyz", "tilt"],
        Field(description="refine the detector's place on each frame: not, across the beam, all ways, or all ways and its tilt"),
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
    tilt_restraint: Annotated[
        float, Field(gt=0, le=10, description="standard deviation of the detector's tilt about 0, degrees")
    ] = 0.5
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
    max_satellites: Annotated[
        int,
        Field(ge=0, le=10, description="lattices close to a refined one (split or bent crystals) looked for; 0: none"),
    ] = 4
    mosaicity: Annotated[Mosaicity, Field(description="fit of domain size and mosaic spread")] = Mosaicity()

    def refine(self, lattice: IndexedLattice, spots: SpotTable, detector: Detector, beam: Beam) -> RefinedLattice:
        """Return ``lattice`` refined against all ``spots`` of the frame, rejected with a reason where it does not stand.

        ``rmsd`` is over all indexed spots, outliers included; the lattice is judged by ``rmsd_used``, over those that fit.
        """
        start = lattice.crystal
        fit = self._fit(lattice, spots, detector, beam)
        inside, keep, hkl = fit.inside, fit.keep, fit.hkl
        rows = np.flatnonzero(inside)
        crystal = self._with_mosaicity(fit.crystal, hkl[keep], fit.psi[keep], beam)
        moved = detector.moved(fit.shift, fit.tilt)
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
        return RefinedLattice(
            crystal, moved, fit.shift, indexed, rmsd, rmsd_psi, not reason, reason, lattice.log10_p, rmsd_used, fit.tilt
        )

    def separate(
        self, lattices: Sequence[RefinedLattice], spots: SpotTable, detector: Detector, beam: Beam
    ) -> tuple[RefinedLattice, ...]:
        """Return the lattices of one frame, refined again, each against the spots that none of the others explains better, and
        those close to them that the spots left over show (``max_satellites``).

        A spot belongs to the lattice that predicts it nearest. A lattice that refinement brought to within ``min_misorientation``
        of an earlier one is that one, and is left out; its spots are offered to the others again.
        """
        distinct: list[RefinedLattice] = []
        for lattice in lattices:
            a = lattice.crystal.a_matrix
            rotations = lattice_rotations(lattice.crystal.cell) if distinct else _IDENTITY
            if all(misorientation(a, other.crystal.a_matrix, rotations) >= self.min_misorientation for other in distinct):
                distinct.append(lattice)
        shared = self._share(distinct, len(distinct), spots, detector, beam)
        return self._with_satellites(shared, spots, detector, beam) if self.max_satellites else shared

    def _share(
        self, lattices: Sequence[RefinedLattice], n_free: int, spots: SpotTable, detector: Detector, beam: Beam
    ) -> tuple[RefinedLattice, ...]:
        """Return the lattices refined again, each against the spots that none of the others predicts nearer.

        From the one numbered ``n_free`` on, they are close to an earlier one: its detector is theirs, and its cell nearly.
        """
        if len(lattices) < 2:
            return tuple(lattices)
        distance = np.full((len(lattices), len(spots)), np.inf)
        for number, lattice in enumerate(lattices):
            rows = lattice.indexed["spot"]
            off_fast = spots["fast"][rows] - lattice.indexed["fast_calc"]
            off_slow = spots["slow"][rows] - lattice.indexed["slow_calc"]
            distance[number, rows] = off_fast**2 + off_slow**2
        owner = np.where(np.isfinite(distance.min(axis=0)), distance.argmin(axis=0), -1)
        rigid = self._rigid()
        return tuple(
            (self if number < n_free else rigid)._refine_on(
                lattice, np.flatnonzero((owner == number) | (owner < 0)), spots, detector, beam
            )
            for number, lattice in enumerate(lattices)
        )

    def _with_satellites(
        self, lattices: tuple[RefinedLattice, ...], spots: SpotTable, detector: Detector, beam: Beam
    ) -> tuple[RefinedLattice, ...]:
        """Return the lattices with those close to them that the spots left over show."""
        n_free = len(lattices)
        for parent in range(n_free):
            for _ in range(self.max_satellites):
                explained = np.zeros(len(spots), dtype=np.bool_)
                for lattice in lattices:
                    explained[lattice.indexed["spot"][lattice.indexed["used"]]] = True
                trial = self._add_satellite(lattices, parent, n_free, np.flatnonzero(~explained), spots, detector, beam)
                if trial is None:
                    break
                lattices = trial
        return lattices

    def _add_satellite(
        self,
        lattices: tuple[RefinedLattice, ...],
        parent: int,
        n_free: int,
        left: NDArray[np.int64],
        spots: SpotTable,
        detector: Detector,
        beam: Beam,
    ) -> tuple[RefinedLattice, ...] | None:
        """Return the lattices and one more close to ``parent``, all refined against their spots; None if none stands."""
        main = lattices[parent]
        least = max(_SATELLITE_SPOTS, round(_SATELLITE_SHARE * np.count_nonzero(main.indexed["used"])))
        found = find_satellite(main, left, spots, beam, least)
        if found is None:
            return None
        rigid = self._rigid()
        start = replace(found, spots=np.searchsorted(left, found.spots))
        satellite = rigid.refine(start, spots.select(left), detector, beam)
        if not satellite.accepted:
            return None
        trial = (*lattices, replace(satellite, indexed=satellite.indexed.replace(spot=left[satellite.indexed["spot"]])))
        for _ in range(_SATELLITE_CYCLES):
            trial = self._share(trial, n_free, spots, detector, beam)
        satellite, limit = trial[-1], max(_SATELLITE_RMSD * trial[parent].rmsd_used, _SATELLITE_LEAST_RMSD)
        if not satellite.accepted or np.count_nonzero(satellite.indexed["used"]) < least or satellite.rmsd_used > limit:
            return None
        apart = misorientation(satellite.crystal.a_matrix, trial[parent].crystal.a_matrix, _IDENTITY)
        return (*trial[:-1], replace(satellite, satellite=bool(apart < self.min_misorientation)))

    def _rigid(self) -> Refine:
        """Return the refinement of a satellite: the detector's place is that of its lattice, and nearly the cell."""
        return self.model_copy(update={"detector": "none", "cell_restraint": min(self.cell_restraint, _SATELLITE_CELL)})

    def _refine_on(
        self, lattice: RefinedLattice, rows: NDArray[np.int64], spots: SpotTable, detector: Detector, beam: Beam
    ) -> RefinedLattice:
        """Return a lattice refined again against some rows of ``spots``."""
        used = lattice.indexed.select(lattice.indexed["used"])
        mine = np.isin(used["spot"], rows)
        core = np.searchsorted(rows, used["spot"][mine])
        start = IndexedLattice(lattice.crystal, core, used["hkl"][mine], lattice.log10_p, lattice.shift, lattice.tilt)
        again = self.refine(start, spots.select(rows), detector, beam)
        return replace(again, indexed=again.indexed.replace(spot=rows[again.indexed["spot"]]), satellite=lattice.satellite)

    def _fit(self, start: IndexedLattice, spots: SpotTable, detector: Detector, beam: Beam) -> _Fit:
        """Return the least-squares solution; where positions call for it, with the covariance of the blocks' turns.

        The first fit of the turns is on the spots that indexing (or an earlier refinement) is sure of.
        """
        sure = np.zeros(len(spots), dtype=np.bool_)
        sure[start.spots] = True
        packed = pack_detector(detector)
        crystal = replace(start.crystal, mosaic_covariance=None, dilation_variance=0.0)
        place = np.tile(np.array([*start.shift, *np.radians(start.tilt)]), (2, 1))
        for pass_ in range(1 + _TURN_PASSES):
            a, place[1], hkl, inside, keep, out, summary = refine_still(
                np.ascontiguousarray(crystal.a_matrix),
                metric_basis(start.crystal.space_group),
                packed,
                spots["panel"],
                spots["fast"],
                spots["slow"],
                np.maximum(spots["snr"].astype(np.float64), 1.0),
                beam.s0,
                spread_of(crystal, beam),
                _MOVEMENTS[self.detector],
                detector.centre,
                place,
                self._settings(),
            )
            crystal, scatter = replace(crystal, A=as_matrix(a)), float(summary[0])
            if pass_ == _TURN_PASSES or not self.turns or scatter < _TURN_SCATTER or np.count_nonzero(keep) < _TURN_SPOTS:
                break
            chosen = keep & sure if pass_ == 0 and np.count_nonzero(keep & sure) >= _TURN_SPOTS else keep
            moved = np.empty_like(packed)
            move_panels(packed, place[1], detector.centre, moved)
            crystal = _with_turns(crystal, hkl[chosen], spots.select(chosen), moved, beam, scatter)
        tilt = np.degrees(place[1, 3:])
        return _Fit(crystal, as_vector(place[1, :3]), (float(tilt[0]), float(tilt[1])), hkl, inside, keep, out[:, 3], scatter)

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
                np.radians(self.tilt_restraint),
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


def _with_turns(
    crystal: Crystal, hkl: NDArray[np.int32], spots: SpotTable, packed: NDArray[np.float64], beam: Beam, scatter: float
) -> Crystal:
    """Return the crystal with the covariance of its blocks' turns that indexed spots show; ``scatter`` (px) is theirs."""
    s0 = beam.s0
    q = np.empty((len(spots), 3))
    spots_to_q(packed, spots["panel"], spots["fast"], spots["slow"], s0, q)
    calculated = hkl @ crystal.a_matrix.T
    pixel = float(np.median(packed[:, 13:15])) / float(np.median(np.linalg.norm(packed[:, 9:12], axis=1)))
    noise = (scatter * pixel / beam.wavelength) ** 2
    s, dilation, left = fit_turns(
        calculated, q - calculated, _TURN_START**2, _DILATION_START**2, noise, _TURN_FREEDOM, _TURN_CYCLES
    )
    xx, xy, xz, yy, yz, zz = (float(v) * _SQUARE_DEGREES for v in s[np.triu_indices(3)])
    return replace(crystal, mosaic_covariance=(xx, xy, xz, yy, yz, zz), dilation_variance=dilation, point_variance=left)

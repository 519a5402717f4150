"""Refinement of one crystal and the detector against the spots of one or several sweeps.

Gauss-Newton on positions (fast, slow) and angles with analytic derivatives (`xfelproc.kernels.rotation_derivatives`). The angle
of the beam to the axis is kept: to turn beam, detector and crystal together about the axis changes nothing that is observed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from xfelproc.errors import DataError
from xfelproc.geometry.cells import rotation_matrix
from xfelproc.geometry.constraints import constrain, metric_basis
from xfelproc.geometry.prediction import pack_detector
from xfelproc.geometry.rotation import Sweep, fixed_rotation, frame_to_angle, setting_rotation
from xfelproc.kernels.rotation_derivatives import POINT, SHIFT, responses
from xfelproc.models.experiment import Detector, as_vector, carried, carried_tree
from xfelproc.models.parameters import Parameters

Floats = NDArray[np.float64]

_LEAST_SIGMA = (0.02, 0.02, 1e-5)  # px, px, radians
_GAUSSIAN = 1.4826  # of the median absolute deviation to σ


@dataclass(frozen=True)
class SweepObservations:
    """Indexed spots of a sweep: hkl (n, 3), panel, fast, slow (px), z (frames) and the variances (n, 3) of the last three."""

    hkl: NDArray[np.int32]
    panel: NDArray[np.int32]
    fast: Floats
    slow: Floats
    z: Floats
    variance: Floats

    def __len__(self) -> int:
        return len(self.hkl)


@dataclass(frozen=True)
class RefinedSweeps:
    """Sweeps after refinement of their common crystal.

    ``residuals`` are observed less calculated (px, px, frames) of each sweep, NaN where an index does not cross; ``used`` says
    which were no outliers; ``rmsd`` (3) is over these. ``turn_sigma`` (3) are the standard uncertainties of the orientation
    (degrees), ``strain_sigma`` those along the directions of `metric_basis` (1/Å²).
    """

    sweeps: tuple[Sweep, ...]
    residuals: tuple[Floats, ...]
    used: tuple[NDArray[np.bool_], ...]
    rmsd: tuple[float, float, float]
    turn_sigma: Floats
    strain_sigma: Floats
    cycles: int
    converged: bool


class RefineSweep(Parameters):
    """Least squares of a crystal and the detector against positions and angles of all spots, robust by rejection."""

    detector: Annotated[
        Literal["none", "shift", "all"],
        Field(description="move the detector: not, without turning it, or all six ways"),
    ] = "all"
    cell: Annotated[bool, Field(description="refine the cell")] = True
    knots: Annotated[
        float, Field(ge=0, le=360, description="degrees between knots of a scan-varying orientation; 0: one orientation")
    ] = 0.0
    settings: Annotated[
        float,
        Field(ge=0, le=10, description="σ of the error of a goniometer's setting, of sweeps after the first, degrees; 0: none"),
    ] = 0.0
    stiffness: Annotated[
        float, Field(gt=0, description="σ of the bend of the orientation from knot to knot, degrees (scan-varying)")
    ] = 0.05
    outlier_sigma: Annotated[float, Field(gt=1, description="spots further off than so many σ are left out")] = 5.0
    max_cycles: Annotated[int, Field(ge=1, le=100, description="most cycles")] = 20
    tolerance: Annotated[float, Field(gt=0, description="converged where all shifts are below so many σ")] = 0.05

    def refine(self, observations: Sequence[SweepObservations], sweeps: Sequence[Sweep], space_group: str) -> RefinedSweeps:
        """Return the sweeps refined together: one crystal (``space_group`` constrains its cell), detectors shared as they are.

        Raises
        ------
        DataError
            If there are fewer observations than three times the parameters.
        """
        problem = _Problem(self, tuple(observations), space_group)
        state = problem.begin(tuple(sweeps))
        if problem.n_observed < 3 * problem.n_parameters:
            raise DataError(
                f"{problem.n_observed} indexed spots are too few to refine {problem.n_parameters} parameters: fix some "
                '(refine.detector = "none") or find more spots'
            )
        covariance = np.zeros((problem.n_parameters, problem.n_parameters))
        converged, cycle = False, 0
        for cycle in range(1, self.max_cycles + 1):
            residuals, rows = problem.evaluate(state)
            sigma, used = problem.scales(residuals, self.outlier_sigma if cycle > 2 else 2 * self.outlier_sigma)
            step, covariance = problem.step(residuals, rows, sigma, used, state)
            state = problem.moved(state, step)
            if cycle > 3 and np.all(np.abs(step) <= self.tolerance * np.sqrt(np.diag(covariance))):
                converged = True
                break
        residuals, _ = problem.evaluate(state)
        _, used = problem.scales(residuals, self.outlier_sigma)
        return problem.result(state, residuals, used, covariance, cycle, converged)


@dataclass(frozen=True)
class _State:
    sweeps: tuple[Sweep, ...]
    bend: tuple[Floats, ...]  # of each sweep, (knots, 3) turns (radians) since the static orientation


def _moved_detector(detector: Detector, shift: Floats, turn: Floats) -> Detector:
    rotation = rotation_matrix(turn)
    move = detector.centre + shift - rotation @ detector.centre
    panels = tuple(carried(panel, rotation, move) for panel in detector.panels)
    tree = None if detector.hierarchy is None else carried_tree(detector.hierarchy, rotation, move)
    return Detector(panels, tree)


class _Problem:
    """What stays the same during a refinement: observations and the order of the parameters.

    Parameters: orientation (3, radians, crystal's frame), strains of the cell, then six or three for each distinct detector, then
    turns at the knots of each sweep (3 each).
    """

    def __init__(self, settings: RefineSweep, observations: tuple[SweepObservations, ...], space_group: str) -> None:
        self.settings = settings
        self.observations = observations
        self.space_group = space_group
        self.basis = metric_basis(space_group) if settings.cell else np.empty((0, 3, 3))
        self.n_observed = 3 * sum(map(len, observations))
        self.n_moves = {"none": 0, "shift": 3, "all": 6}[settings.detector]
        self.detectors: list[int] = []
        self.knots: list[int] = []
        self.n_parameters = 0

    def begin(self, sweeps: tuple[Sweep, ...]) -> _State:
        """Return the state that refinement starts from, and learn which detectors are one."""
        known: list[Detector] = []
        for sweep in sweeps:
            if not any(sweep.detector is other or sweep.detector == other for other in known):
                known.append(sweep.detector)
            self.detectors.append(next(i for i, other in enumerate(known) if sweep.detector is other or sweep.detector == other))
            spread = abs(sweep.scan.oscillation[1]) * sweep.n_frames
            alone = int(self.settings.settings > 0 and len(self.knots) > 0)
            self.knots.append(max(2, round(spread / self.settings.knots) + 1) if self.settings.knots > 0 else alone)
        self.n_parameters = 3 + len(self.basis) + self.n_moves * len(known) + 3 * sum(self.knots)
        first = constrain(sweeps[0].matrices.mean(axis=0), self.space_group)
        return self._placed(sweeps, first, tuple(np.zeros((max(1, k), 3)) for k in self.knots))

    def _placed(self, sweeps: tuple[Sweep, ...], a: Floats, bend: tuple[Floats, ...]) -> _State:
        placed = []
        for sweep, turns in zip(sweeps, bend, strict=True):
            matrices = np.array([rotation_matrix(turn) @ a for turn in turns])
            placed.append(replace(sweep, matrices=matrices, space_group=self.space_group))
        return _State(tuple(placed), bend)

    def evaluate(self, state: _State) -> tuple[list[Floats], list[Floats]]:
        """Return residuals (n, 3; px, px, radians; NaN: none) and responses (n, 3, 15) of each sweep."""
        residuals, rows = [], []
        for sweep, seen in zip(state.sweeps, self.observations, strict=True):
            angle = np.radians(frame_to_angle(sweep.scan, seen.z))
            calculated, response = np.empty((len(seen), 3)), np.empty((len(seen), 3, 15))
            responses(
                sweep.laboratory,
                *sweep.steps,
                sweep.beam.s0,
                sweep.axis,
                sweep.detector.centre,
                seen.hkl,
                angle,
                seen.panel,
                pack_detector(sweep.detector),
                calculated,
                response,
            )
            residuals.append(np.column_stack([seen.fast, seen.slow, angle]) - calculated)
            rows.append(response)
        return residuals, rows

    def scales(self, residuals: list[Floats], limit: float) -> tuple[list[Floats], list[NDArray[np.bool_]]]:
        """Return σ (n, 3) of the observations of each sweep and which are within ``limit`` σ."""
        sigma, used = [], []
        for sweep_residuals, seen in zip(residuals, self.observations, strict=True):
            good = ~np.isnan(sweep_residuals).any(axis=1)
            middle = np.median(sweep_residuals[good], axis=0) if good.any() else np.zeros(3)
            spread = np.median(np.abs(sweep_residuals[good] - middle), axis=0) if good.any() else np.ones(3)
            scale = np.maximum(_GAUSSIAN * spread, _LEAST_SIGMA)
            typical = np.median(seen.variance, axis=0)
            relative = np.where(typical > 0, seen.variance / np.where(typical > 0, typical, 1.0), 1.0)
            own = scale * np.sqrt(0.5 + 0.5 * relative)
            sigma.append(own)
            used.append(good & (np.nan_to_num(np.abs(sweep_residuals / own), nan=np.inf).max(axis=1) < limit))
        return sigma, used

    def step(
        self, residuals: list[Floats], rows: list[Floats], sigma: list[Floats], used: list[NDArray[np.bool_]], state: _State
    ) -> tuple[Floats, Floats]:
        """Return the Gauss-Newton step and the covariance of the parameters."""
        normal = np.zeros((self.n_parameters, self.n_parameters))
        right = np.zeros(self.n_parameters)
        for k, sweep in enumerate(state.sweeps):
            rows_used = used[k]
            design = self._design(k, sweep, rows[k][rows_used], rows_used) / sigma[k][rows_used][:, :, None]
            flat = design.reshape(-1, self.n_parameters)
            normal += flat.T @ flat
            right += flat.T @ (residuals[k][rows_used] / sigma[k][rows_used]).ravel()
        self._restrain(normal, right, state)
        covariance: Floats = np.linalg.pinv(normal, rcond=1e-13, hermitian=True).astype(np.float64)
        return covariance @ right, covariance

    def _design(self, k: int, sweep: Sweep, rows: Floats, used: NDArray[np.bool_]) -> Floats:
        """Return (n, 3, parameters) derivatives of the calculated positions."""
        seen = self.observations[k]
        hkl = seen.hkl[used].astype(np.float64)
        design = np.zeros((len(rows), 3, self.n_parameters))
        to_laboratory = setting_rotation(sweep.goniometer) @ fixed_rotation(sweep.goniometer)
        point = rows[:, :, POINT : POINT + 3] @ to_laboratory
        a = sweep.matrices[len(sweep.matrices) // 2]
        q = hkl @ a.T
        turn = np.stack([np.cross(unit, q) for unit in np.eye(3)], axis=-1)  # (n, 3, parameter)
        turning = point @ turn
        design[:, :, :3] = turning
        inverse = np.linalg.inv(a.T @ a)
        for j, unit in enumerate(self.basis):
            design[:, :, 3 + j] = np.einsum("nij,nj->ni", point, hkl @ (a @ (0.5 * inverse @ unit)).T)
        first = 3 + len(self.basis) + self.n_moves * self.detectors[k]
        design[:, :, first : first + self.n_moves] = rows[:, :, SHIFT : SHIFT + self.n_moves]
        if self.knots[k] == 1:
            design[:, :, self._first_knot(k) : self._first_knot(k) + 3] = turning
        elif self.knots[k]:
            place = np.clip(seen.z[used] / sweep.n_frames * (self.knots[k] - 1), 0, self.knots[k] - 1)
            low = np.minimum(place.astype(int), self.knots[k] - 2)
            part = place - low
            start = self._first_knot(k)
            index = np.arange(len(rows))
            for axis in range(3):
                design[index, :, start + 3 * low + axis] += (1 - part)[:, None] * turning[:, :, axis]
                design[index, :, start + 3 * (low + 1) + axis] += part[:, None] * turning[:, :, axis]
        return design

    def _first_knot(self, k: int) -> int:
        return self.n_parameters - 3 * sum(self.knots) + 3 * sum(self.knots[:k])

    def _restrain(self, normal: Floats, right: Floats, state: _State) -> None:
        """Add what holds knots together: their bend is small, and their mean is 0 (the static orientation has it) or small."""
        for k, count in enumerate(self.knots):
            if count == 0:
                continue
            start = self._first_knot(k)
            bend = np.zeros((max(0, count - 2), count))
            for i in range(count - 2):
                bend[i, i : i + 3] = (1.0, -2.0, 1.0)
            mean = 1.0 / np.radians(self.settings.settings) if k > 0 and self.settings.settings > 0 else 1e6
            constraint = np.vstack([bend / np.radians(self.settings.stiffness), np.full((1, count), mean / count)])
            square = constraint.T @ constraint
            for axis in range(3):
                columns = start + 3 * np.arange(count) + axis
                normal[np.ix_(columns, columns)] += square
                right[columns] -= square @ state.bend[k][:, axis]

    def moved(self, state: _State, step: Floats) -> _State:
        """Return the state after a step."""
        base = np.linalg.inv(rotation_matrix(state.bend[0][0])) @ state.sweeps[0].matrices[0]
        strain = np.einsum("k,kij->ij", step[3 : 3 + len(self.basis)], self.basis)
        a = rotation_matrix(step[:3]) @ base @ (np.eye(3) + 0.5 * np.linalg.inv(base.T @ base) @ strain)
        sweeps, bend = [], []
        for k, sweep in enumerate(state.sweeps):
            first = 3 + len(self.basis) + self.n_moves * self.detectors[k]
            move = np.zeros(6)
            move[: self.n_moves] = step[first : first + self.n_moves]
            sweeps.append(replace(sweep, detector=_moved_detector(sweep.detector, move[:3], move[3:])) if move.any() else sweep)
            start = self._first_knot(k)
            turns = step[start : start + 3 * self.knots[k]].reshape(-1, 3) if self.knots[k] else 0.0
            bend.append(state.bend[k] + turns)
        return self._placed(tuple(sweeps), constrain(a, self.space_group) if self.settings.cell else a, tuple(bend))

    def result(
        self,
        state: _State,
        residuals: list[Floats],
        used: list[NDArray[np.bool_]],
        covariance: Floats,
        cycles: int,
        converged: bool,
    ) -> RefinedSweeps:
        """Return what refinement leaves, angles in frames."""
        widths = [np.radians(abs(sweep.scan.oscillation[1])) for sweep in state.sweeps]
        told = tuple(found / [1.0, 1.0, width] for found, width in zip(residuals, widths, strict=True))
        kept = np.concatenate([found[rows] for found, rows in zip(told, used, strict=True)])
        rmsd = np.sqrt(np.mean(kept**2, axis=0))
        deviations = np.sqrt(np.diag(covariance))
        return RefinedSweeps(
            state.sweeps,
            told,
            tuple(used),
            as_vector(rmsd),
            np.degrees(deviations[:3]),
            deviations[3 : 3 + len(self.basis)],
            cycles,
            converged,
        )

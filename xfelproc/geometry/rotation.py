"""Goniometers, and the prediction of sweeps: when each reflection crosses the Ewald sphere, and where.

A goniometer's axes are listed from the crystal outwards. Those inside of the scan axis make the fixed rotation F, those
outside the setting rotation S: at the scan angle φ the crystal's matrix in the laboratory is ``S R(φ) F A``, as in DIALS, and with
``m = S e`` that is ``R_m(φ) (S F A)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xfelproc.geometry.cells import rotation_matrix
from xfelproc.geometry.constraints import centring_vectors
from xfelproc.geometry.detector import pixel_to_q
from xfelproc.geometry.prediction import pack_detector, polarization_axes
from xfelproc.kernels import geometry as kernel_geometry
from xfelproc.kernels import rotation as kernel
from xfelproc.models.experiment import Beam, Crystal, Detector, Goniometer, Scan
from xfelproc.models.tables import PredictionTable

Floats = NDArray[np.float64]


def fixed_rotation(goniometer: Goniometer) -> Floats:
    """Return F (3, 3), the rotation of the axes between the crystal and the scan axis at their angles."""
    return _product(goniometer, range(goniometer.scan_axis))


def setting_rotation(goniometer: Goniometer) -> Floats:
    """Return S (3, 3), the rotation of the axes outside of the scan axis at their angles."""
    return _product(goniometer, range(goniometer.scan_axis + 1, len(goniometer.axes)))


def _product(goniometer: Goniometer, axes: range) -> Floats:
    total = np.eye(3)
    for i in axes:
        axis = np.asarray(goniometer.axes[i], dtype=np.float64)
        total = rotation_matrix(axis / np.linalg.norm(axis) * np.radians(goniometer.angles[i])) @ total
    return total


def scan_axis(goniometer: Goniometer) -> Floats:
    """Return m (3,), the unit vector about which the scan turns the crystal, in the laboratory."""
    axis = np.asarray(goniometer.axes[goniometer.scan_axis], dtype=np.float64)
    turned: Floats = setting_rotation(goniometer) @ (axis / np.linalg.norm(axis))
    return turned


def frame_to_angle(scan: Scan, z: ArrayLike) -> Floats:
    """Return the scan angle in degrees of frame coordinates; the first frame's exposure is from 0 to 1."""
    angles: Floats = scan.oscillation[0] + scan.oscillation[1] * np.asarray(z, dtype=np.float64)
    return angles


def angle_to_frame(scan: Scan, angle: ArrayLike) -> Floats:
    """Return the frame coordinates of scan angles in degrees."""
    frames: Floats = (np.asarray(angle, dtype=np.float64) - scan.oscillation[0]) / scan.oscillation[1]
    return frames


def points_at_zero(
    beam: Beam, detector: Detector, goniometer: Goniometer, panel: ArrayLike, fast: ArrayLike, slow: ArrayLike, angle: ArrayLike
) -> Floats:
    """Return the reciprocal-lattice points (n, 3; 1/Å) of pixel positions seen at scan angles (degrees), in the crystal's frame.

    That is q at angle 0 with the setting and the fixed rotation taken away, so that ``q = A h`` for all sweeps of a crystal.
    """
    q = pixel_to_q(detector, beam, panel, fast, slow)
    axis, phi = scan_axis(goniometer), np.radians(np.asarray(angle, dtype=np.float64))[:, None]
    along = (q @ axis)[:, None] * axis
    back: Floats = along + np.cos(phi) * (q - along) - np.sin(phi) * np.cross(axis, q)
    return np.ascontiguousarray(back @ (setting_rotation(goniometer) @ fixed_rotation(goniometer)))


@dataclass(frozen=True)
class Sweep:
    """What predicts a sweep: models, and the crystal's matrices (n, 3, 3) at equal steps from the begin to the end of the scan.

    ``matrices`` are ``A`` itself, at angle 0; one alone is a crystal that keeps its orientation and cell.
    """

    beam: Beam
    detector: Detector
    goniometer: Goniometer
    scan: Scan
    matrices: Floats
    space_group: str = "P 1"

    @classmethod
    def of(cls, crystal: Crystal, beam: Beam, detector: Detector, goniometer: Goniometer, scan: Scan) -> Sweep:
        """Return the sweep of a crystal that keeps its orientation."""
        return cls(beam, detector, goniometer, scan, crystal.a_matrix[None], crystal.space_group)

    @property
    def n_frames(self) -> int:
        """Number of frames of the scan."""
        return self.scan.image_range[1] - self.scan.image_range[0] + 1

    @cached_property
    def axis(self) -> Floats:
        """(3,) unit vector of the scan axis in the laboratory."""
        return scan_axis(self.goniometer)

    @cached_property
    def laboratory(self) -> Floats:
        """(n, 3, 3) crystal matrices in the laboratory at scan angle 0, ``S F A``."""
        rotation = setting_rotation(self.goniometer) @ fixed_rotation(self.goniometer)
        return np.ascontiguousarray(rotation @ self.matrices)

    @cached_property
    def steps(self) -> tuple[float, float]:
        """Angle of the first of the matrices, and the step between them, radians (a reversed scan has a negative one)."""
        first = float(np.radians(self.scan.oscillation[0]))
        width = float(np.radians(self.scan.oscillation[1])) * self.n_frames
        return first, width / max(1, len(self.matrices) - 1)

    def predict(self, d_min: float, d_max: float = 0.0, frames: tuple[float, float] | None = None) -> PredictionTable:
        """Return all reflections to ``d_min`` Å that cross the sphere onto a panel during the scan.

        Parameters
        ----------
        frames
            First and last frame coordinate; by default those of the scan.
        """
        low, high = frames if frames is not None else (0.0, float(self.n_frames))
        ends = np.sort(np.radians(frame_to_angle(self.scan, [low, high])))
        packed = pack_detector(self.detector)
        grid = kernel_geometry.panel_grid(packed, self.beam.s0)
        limits = np.array([d_min, d_max, *ends, self._drift()])
        capacity = 1000 + self._expected(d_min, float(ends[1] - ends[0]))
        arguments = (self.laboratory, *self.steps, self.beam.s0, self.axis, limits, centring_vectors(self.space_group))
        while True:
            count, hkl, panel, columns = kernel.predict_sweep(*arguments, polarization_axes(self.beam), packed, *grid, capacity)
            if count <= capacity:
                break
            capacity = count
        columns = columns[:count]
        return PredictionTable(
            hkl=hkl[:count],
            panel=panel[:count],
            fast=columns[:, 0],
            slow=columns[:, 1],
            z=angle_to_frame(self.scan, np.degrees(columns[:, 2])),
            phi=np.degrees(columns[:, 2]),
            d=columns[:, 3],
            zeta=columns[:, 4],
            lorentz=columns[:, 5],
            polarization=columns[:, 6],
            entering=columns[:, 7] > 0,
        )

    def predict_indices(self, hkl: ArrayLike, z: ArrayLike, panel: ArrayLike) -> Floats:
        """Return (n, 3): fast, slow (px) and frame coordinate of given indices at their crossings nearest to ``z``, on given
        panels.

        NaN where an index does not cross the sphere or its ray misses the panel's plane.
        """
        indices = np.ascontiguousarray(np.asarray(hkl, dtype=np.int32).reshape(-1, 3))
        near = np.radians(frame_to_angle(self.scan, np.broadcast_to(np.asarray(z, dtype=np.float64), len(indices))))
        panels = np.ascontiguousarray(np.broadcast_to(np.asarray(panel, dtype=np.int32), len(indices)))
        out = np.empty((len(indices), 3))
        packed = pack_detector(self.detector)
        kernel.predict_sweep_indices(self.laboratory, *self.steps, self.beam.s0, self.axis, indices, near, panels, packed, out)
        out[:, 2] = angle_to_frame(self.scan, np.degrees(out[:, 2]))
        return out

    def _drift(self) -> float:
        """Return by how much (radians) a crossing may be away from that of the matrix in the middle.

        A point that only touches the sphere moves with the square root of the strain.
        """
        if len(self.matrices) == 1:
            return 0.0
        middle = self.matrices[len(self.matrices) // 2]
        strain = self.matrices @ np.linalg.inv(middle) - np.eye(3)
        return float(min(np.pi, 3.0 * np.sqrt(np.abs(strain).max()) + 1e-3))

    def _expected(self, d_min: float, width: float) -> int:
        volume = 1.0 / abs(np.linalg.det(self.matrices[0]))
        swept = 4.0 / 3.0 * np.pi / d_min**3 * min(2.0, width / np.pi * 1.5)
        return int(volume * swept)

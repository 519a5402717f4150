"""Spots of a frame as scattering vectors."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from xfelproc.geometry.cells import Floats
from xfelproc.kernels.indexing import spots_to_q
from xfelproc.models.experiment import Beam, Detector, Vector3, as_vector
from xfelproc.models.tables import SpotTable

_STEP = 0.01  # mm


@dataclass(frozen=True, eq=False)
class SpotVectors:
    """Spots, strongest first: q (n, 3) in 1/Å, weights (n,) of at most 1, rows in the table.

    ``shift`` (mm) translates the detector along ``plane`` (2, 3), the unit vectors normal to the beam that are searched.
    """

    spots: SpotTable
    detector: Detector
    beam: Beam
    rows: NDArray[np.int64]
    weight: Floats
    plane: Floats
    shift: tuple[float, float] = (0.0, 0.0)
    q: Floats = field(default_factory=lambda: np.empty((0, 3)))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def translation(self) -> Vector3:
        """Translation of the detector in mm, laboratory frame."""
        return as_vector(np.asarray(self.shift) @ self.plane)

    def shifted(self, shift: tuple[float, float]) -> SpotVectors:
        """Return the spots under another translation of the detector."""
        return replace(self, shift=shift, q=self._q(shift))

    def slope(self) -> Floats:
        """Return the derivative (n, 3, 2) of q by the translation, 1/Å a mm."""
        x, y = self.shift
        return np.ascontiguousarray(np.stack([self._q((x + _STEP, y)) - self.q, self._q((x, y + _STEP)) - self.q], axis=2) / _STEP)

    def without(self, found: NDArray[np.bool_]) -> SpotVectors:
        """Return the spots that are not ``found``."""
        return replace(
            self, rows=self.rows[~found], weight=np.ascontiguousarray(self.weight[~found]), q=np.ascontiguousarray(self.q[~found])
        )

    def _q(self, shift: tuple[float, float]) -> Floats:
        d = self.detector.d_matrices
        if shift != (0.0, 0.0):
            d = d.copy()
            d[:, :, 2] += np.asarray(shift) @ self.plane
        return np.asarray(
            spots_to_q(
                self.spots["panel"][self.rows],
                self.spots["fast"][self.rows],
                self.spots["slow"][self.rows],
                d,
                self.detector.pixel_sizes,
                self.detector.sensors,
                self.beam.s0,
            )
        )


def spot_vectors(spots: SpotTable, detector: Detector, beam: Beam) -> SpotVectors:
    """Return the spots as scattering vectors, strongest first.

    The weight grows as the logarithm of the signal to noise: strong spots are surer, but an ice spot must not decide.
    """
    snr = spots["snr"].astype(np.float64)
    if not np.any(snr > 0):
        snr = np.maximum(spots["intensity"].astype(np.float64), 0.0)
        scale = float(np.median(snr)) if len(snr) else 0.0
        snr = 5.0 * snr / scale if scale > 0 else np.ones(len(snr))
    snr = np.nan_to_num(np.maximum(snr, 0.0))
    rows = np.argsort(-snr, kind="stable")
    weight = np.log1p(np.clip(snr[rows], 1.0, 50.0))
    vectors = SpotVectors(spots, detector, beam, rows, weight / weight[0], _plane(beam))
    return vectors.shifted((0.0, 0.0))


def _plane(beam: Beam) -> Floats:
    """Return two unit vectors normal to the beam."""
    along = np.asarray(beam.direction) / np.linalg.norm(beam.direction)
    first = np.cross((0.0, 1.0, 0.0) if abs(along[1]) < 0.9 else (1.0, 0.0, 0.0), along)
    first = first / np.linalg.norm(first)
    return np.array([first, np.cross(along, first)])

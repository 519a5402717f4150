"""Derivatives of calculated positions against finite differences of the prediction itself."""

from __future__ import annotations

import numpy as np
import pytest

from tests.geometry.test_rotation import KAPPA, sweep_of
from xfelproc.geometry.cells import rotation_matrix
from xfelproc.geometry.prediction import pack_detector
from xfelproc.kernels.rotation import predict_sweep_indices
from xfelproc.kernels.rotation_derivatives import AXIS, BEAM, POINT, SHIFT, TURN, responses
from xfelproc.models.experiment import Detector

STEP = 1e-7


@pytest.fixture(scope="module")
def case():
    sweep = sweep_of(KAPPA, (0.0, 0.5))
    found = sweep.predict(4.0)
    return sweep, found.select(np.abs(found["zeta"]) > 0.2)


def calculated(sweep, found, matrix, s0, axis, detector: Detector):
    out = np.empty((len(found), 3))
    near = np.radians(found["phi"])
    predict_sweep_indices(matrix[None], *sweep.steps, s0, axis, found["hkl"], near, found["panel"], pack_detector(detector), out)
    return out


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("kind", [POINT, BEAM, AXIS, SHIFT, TURN])
def test_finite_differences(case, kind: int, axis: int) -> None:
    sweep, found = case
    matrix, s0, spindle, detector = sweep.laboratory[0], sweep.beam.s0, sweep.axis, sweep.detector
    base, rows = np.empty((len(found), 3)), np.empty((len(found), 3, 15))
    near, packed = np.radians(found["phi"]), pack_detector(detector)
    responses(matrix[None], *sweep.steps, s0, spindle, detector.centre, found["hkl"], near, found["panel"], packed, base, rows)
    unit = np.eye(3)[axis]
    if kind == TURN and axis == 2:
        pytest.skip("Detector.moved tilts about x and y alone; a turn about z is tested by the refinement")
    if kind == POINT:  # turn all points by a matrix that moves each by a known amount
        turn = rotation_matrix(STEP * unit)
        moved = calculated(sweep, found, turn @ matrix, s0, spindle, detector)
        points = found["hkl"] @ matrix.T
        expected = np.einsum("nij,nj->ni", rows[:, :, :3], np.cross(unit, points))
    else:
        shift = tuple(STEP * unit) if kind == SHIFT else (0.0, 0.0, 0.0)
        tilt = tuple(np.degrees(STEP * unit[:2])) if kind == TURN else (0.0, 0.0)
        moved = calculated(
            sweep,
            found,
            matrix,
            s0 + STEP * unit * (kind == BEAM),
            rotation_matrix(STEP * unit * (kind == AXIS)) @ spindle,
            detector.moved(shift, tilt),
        )
        expected = rows[:, :, kind + axis]
    np.testing.assert_allclose((moved - base) / STEP, expected, rtol=1e-4, atol=2e-2)

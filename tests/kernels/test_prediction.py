from __future__ import annotations

import numpy as np
import pytest

from xfelproc.geometry.cells import b_matrix, rotation_matrix
from xfelproc.geometry.constraints import metric_basis
from xfelproc.geometry.prediction import pack_detector
from xfelproc.kernels.prediction import predict_indices, still_jacobian
from xfelproc.models.experiment import Beam, Detector, Panel, as_vector


def detector() -> Detector:
    turn = rotation_matrix([0.1, -0.2, 0.05])
    return Detector(
        (Panel("p", as_vector(turn[0]), as_vector(-turn[1]), (-40.0, 45.0, -80.0), (0.1, 0.12), (900, 900), thickness=0.5, mu=3.9),)
    )


@pytest.mark.parametrize(("symbol", "turns"), [("P 1", False), ("P 61 2 2", False), ("P 61 2 2", True)])
def test_gradients_by_differences(symbol: str, turns: bool) -> None:
    cell = (40, 51, 62, 83, 97, 102) if symbol == "P 1" else (93, 93, 130, 90, 90, 120)
    a = rotation_matrix([0.3, 0.8, -0.5]) @ b_matrix(cell)
    s0 = Beam(1.2).s0
    basis = metric_basis(symbol)
    strain = np.array([0.5 * np.linalg.inv(a).T @ e for e in basis])
    spread = np.array([1e-7, 0, 2e-6, 3e-7, 0, 4e-7, 1e-7, 1e-6]) if turns else np.array([1e-6, 0, 0, 0, 0, 0, 0, 0.0])
    h = np.array([[5, -4, 7]], dtype=np.int32)
    q = a @ h[0]
    turn = np.cross(s0, q)  # bring it near the sphere in front of the panel
    a = min(
        (rotation_matrix(t * turn / np.linalg.norm(turn)) @ a for t in np.linspace(-1.5, 1.5, 3001)),
        key=lambda m: abs(np.linalg.norm(s0 + m @ h[0]) - 1 / 1.2),
    )
    strain = np.array([0.5 * np.linalg.inv(a).T @ e for e in basis])

    def predict(matrix: np.ndarray, move: np.ndarray) -> np.ndarray:
        out = np.empty((1, 4))
        placed = detector().moved(as_vector(move[:3]), (float(np.degrees(move[3])), float(np.degrees(move[4]))))
        predict_indices(matrix, h, np.ones(1, bool), np.zeros(1, np.int32), pack_detector(placed), s0, spread, out)
        return out[0, :3]

    def moved(step: np.ndarray) -> np.ndarray:
        k = len(basis)
        matrix = rotation_matrix(step[:3]) @ (a + np.tensordot(step[3 : 3 + k], strain, 1))
        return predict(matrix, step[3 + k :])

    n = 8 + len(basis)
    analytic = np.empty((3, n))
    still_jacobian(a, strain, h[0], pack_detector(detector())[0], s0, spread, 5, detector().centre, np.empty((5, 3)), analytic)
    for j in range(n):
        size = 1e-8 if 3 <= j < 3 + len(basis) else 1e-5
        step = np.zeros(n)
        step[j] = size
        numeric = (moved(step) - moved(-step)) / (2 * size)
        close = 1e-2 if turns else 1e-4  # the turn of the displacement vector is left out
        assert analytic[:, j] == pytest.approx(numeric, rel=close, abs=close * np.abs(numeric).max())

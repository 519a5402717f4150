from __future__ import annotations

import numpy as np
import pytest

from xfelproc.geometry.cells import b_matrix, rotation_matrix
from xfelproc.geometry.constraints import metric_basis
from xfelproc.geometry.prediction import pack_detector
from xfelproc.kernels.refinement import (
    assign_indices,
    fit_mosaicity,
    fit_turns,
    keep_nearest,
    predict_indices,
    solve_spd,
    still_jacobian,
)
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

    def predict(matrix: np.ndarray, shift: np.ndarray) -> np.ndarray:
        out = np.empty((1, 4))
        predict_indices(matrix, h, np.ones(1, bool), np.zeros(1, np.int32), pack_detector(detector(), shift), s0, spread, out)
        return out[0, :3]

    def moved(step: np.ndarray) -> np.ndarray:
        k = len(basis)
        matrix = rotation_matrix(step[:3]) @ (a + np.tensordot(step[3 : 3 + k], strain, 1))
        return predict(matrix, step[3 + k :])

    n = 6 + len(basis)
    analytic = np.empty((3, n))
    still_jacobian(a, strain, h[0], pack_detector(detector())[0], s0, spread, 3, np.empty((5, 3)), analytic)
    for j in range(n):
        size = 1e-8 if 3 <= j < 3 + len(basis) else 1e-5
        step = np.zeros(n)
        step[j] = size
        numeric = (moved(step) - moved(-step)) / (2 * size)
        close = 1e-2 if turns else 1e-4  # the turn of the displacement vector is left out
        assert analytic[:, j] == pytest.approx(numeric, rel=close, abs=close * np.abs(numeric).max())


def test_assignment_and_duplicates() -> None:
    a = b_matrix((50, 60, 70, 90, 90, 90))
    exact = np.array([[1, 2, 3], [1, 2, 3], [4, 0, -2], [0, 0, 0]])
    q = (exact + np.array([[0.1, 0, 0], [0, -0.2, 0], [0, 0, 0.35], [0.1, 0.1, 0.1]])) @ a.T
    hkl = np.zeros((4, 3), dtype=np.int32)
    inside = np.zeros(4, dtype=bool)
    assert assign_indices(a, q, 0.3, hkl, inside) == 2
    assert inside.tolist() == [True, True, False, False]
    assert np.array_equal(hkl[:3], exact[:3])
    keep = np.zeros(4, dtype=bool)
    keep_nearest(hkl, np.array([2.0, 1.0, 0.0, 0.0]), inside, keep)
    assert keep.tolist() == [False, True, False, False]


def test_solver() -> None:
    rng = np.random.default_rng(1)
    j = rng.normal(size=(30, 7)) * 10.0 ** np.arange(-6, 8, 2)
    matrix, vector = j.T @ j, j.T @ rng.normal(size=30)
    solution = vector.copy()
    assert solve_spd(matrix.copy(), solution)
    scale = 1 / np.sqrt(np.diag(matrix))
    expected = scale * np.linalg.solve(matrix * np.outer(scale, scale), vector * scale)
    assert solution == pytest.approx(expected, rel=1e-6)
    assert not solve_spd(np.zeros((2, 2)), np.ones(2))


def test_mosaicity_is_the_maximum_of_the_likelihood() -> None:
    rng = np.random.default_rng(2)
    d = 1 / np.sqrt(rng.uniform(1 / 20**2, 1 / 1.8**2, 400))
    psi = rng.uniform(-1, 1, 400) * (d / 1200 + np.radians(0.08))
    bounds = np.array([[1e-5, 1e-2], [1e-5, 0.1]])
    start = np.array([1 / 2000, np.radians(0.05)])
    best = fit_mosaicity(psi, d, np.zeros(400), start, bounds, 2.0, 100.0, 60)

    def cost(shape: float, mosaic: float) -> float:
        alpha = shape * d + mosaic
        return float(np.sum(np.log(alpha) + np.log(np.cosh(4.0) + np.cosh(4.0 * psi / alpha))))

    reference = cost(*best)
    for u in (0.93, 1.0, 1.07):
        for v in (0.93, 1.0, 1.07):
            assert cost(best[0] * u, best[1] * v) >= reference - 1e-3


def test_turns_and_dilation_are_recovered() -> None:
    rng = np.random.default_rng(3)
    q = rng.normal(size=(600, 3))
    q *= (rng.uniform(0.05, 0.5, 600) / np.linalg.norm(q, axis=1))[:, None]
    axis = np.array([0.6, 0.0, 0.8])
    truth = np.radians(0.02) ** 2 * np.eye(3) + np.radians(0.3) ** 2 * np.outer(axis, axis)
    turns = rng.multivariate_normal(np.zeros(3), truth, 600)
    miss = np.cross(turns, q) + 3e-3 * rng.normal(size=(600, 1)) * q + 2e-4 * rng.normal(size=(600, 3))
    miss[:30] += 0.01 * rng.normal(size=(30, 3))
    covariance, dilation, rest = fit_turns(q, miss, np.radians(0.1) ** 2, 1e-6, 1e-7, 4.0, 60)
    values, vectors = np.linalg.eigh(covariance)
    assert abs(vectors[:, 2] @ axis) > 0.99
    assert np.degrees(np.sqrt(values[2])) == pytest.approx(0.3, rel=0.15)
    assert np.degrees(np.sqrt(values[:2].max())) < 0.06
    assert np.sqrt(dilation) == pytest.approx(3e-3, rel=0.15)
    assert np.sqrt(rest) == pytest.approx(2e-4, rel=0.3)

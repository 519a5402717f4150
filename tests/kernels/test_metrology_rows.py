"""Positions and derivatives of metrology's rows against the pixel path of `xfelproc.geometry` and finite differences of it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from tests.algorithms.metrology.simulated import BEAM, cspad, turned_onto_sphere
from xfelproc.geometry.constraints import constrain, metric_basis
from xfelproc.geometry.detector import mm_to_pixel
from xfelproc.geometry.hierarchy import apply_moves, groups_of
from xfelproc.geometry.prediction import pack_detector
from xfelproc.kernels import metrology_rows as kernel
from xfelproc.models.experiment import Detector

RADIUS = 1.0 / BEAM.wavelength
FORWARD = -np.asarray(BEAM.direction)
A = Rotation.from_euler("xyz", [20, -50, 130], degrees=True).as_matrix() / np.array([58.0, 58.0, 150.0])


def near_sphere(n: int) -> np.ndarray:
    """Indices whose points are 0.5° to 2° off the sphere and whose rays are at 10° to 35°."""
    rng = np.random.default_rng(3)
    hkl = rng.integers(-40, 41, size=(20000, 3)).astype(np.int32)
    q = hkl @ A.T
    length, off = np.linalg.norm(q, axis=1), np.linalg.norm(q + BEAM.s0, axis=1) - RADIUS
    psi = np.degrees(np.abs(off) / np.maximum(length, 1e-9))
    return hkl[(psi > 0.5) & (psi < 2.0) & (length > 0.15) & (length < 0.45)][:n]


HKL = near_sphere(4)


def tilted() -> Detector:
    detector = cspad()
    rng = np.random.default_rng(5)
    return apply_moves(detector, groups_of(detector, 3), rng.normal(size=(64, 6)) * [0.1, 0.1, 0.1, 0.05, 0.05, 0.05])


def positions(detector: Detector, panel: int, a: np.ndarray, hkl: np.ndarray, turn: bool = True) -> np.ndarray:
    """Pixels (fast, slow) and ΔΨ by the geometry's own path."""
    q = np.atleast_2d(hkl) @ a.T
    met, angle = turned_onto_sphere(q, BEAM.s0)
    s1 = BEAM.s0 + (met if turn else q)
    v = s1 @ detector.inverse_d_matrices[panel].T
    xy = v[:, :2] / v[:, 2:]
    outside = np.sign(np.linalg.norm(BEAM.s0 + q, axis=1) - RADIUS)
    return np.column_stack([mm_to_pixel(detector, panel, xy), outside * np.abs(angle)])[0]


def panel_of(detector: Detector, hkl: np.ndarray) -> int:
    """The panel whose plane is met nearest to its middle."""
    away = [np.linalg.norm(positions(detector, p, A, hkl)[:2] - [97, 92]) for p in range(len(detector))]
    return int(np.argmin(away))


def evaluate(
    detector: Detector, panel: int, a: np.ndarray, hkl: np.ndarray, turn: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    q, ray, spot = a @ hkl, np.empty(17), np.empty(8)
    psi = kernel.onto_sphere(q, FORWARD, RADIUS, np.inf if turn else 0.0, ray)
    assert kernel.onto_panel(pack_detector(detector)[panel], ray, spot)
    return np.array([spot[0], spot[1], psi]), ray, spot


@pytest.mark.parametrize("turn", [True, False])
@pytest.mark.parametrize("hkl", list(HKL))
def test_positions(hkl: np.ndarray, turn: bool) -> None:
    detector = tilted()
    panel = panel_of(detector, hkl)
    found, _, _ = evaluate(detector, panel, A, hkl, turn)
    assert found == pytest.approx(positions(detector, panel, A, hkl, turn), abs=1e-8)


@pytest.mark.parametrize(("tau", "nu"), [(3.0, 0.0), (0.0, 5.0)])
@pytest.mark.parametrize("hkl", list(HKL))
def test_a_blend_is_the_mean_of_turns_wavelengths_and_extent(hkl: np.ndarray, tau: float, nu: float) -> None:
    q, rng = A @ hkl, np.random.default_rng(1)
    extent = 0.002
    axis = np.cross(q, BEAM.s0) / np.linalg.norm(np.cross(q, BEAM.s0))
    turns, waves = (extent * np.sqrt(v) * rng.normal(size=400_000) for v in (tau, nu))
    q_true = q + turns[:, None] * np.cross(axis, q)
    s0 = BEAM.s0 * (1.0 + waves)[:, None]
    off = np.linalg.norm(s0 + q_true, axis=1) - np.linalg.norm(s0, axis=1)
    chance = np.exp(-0.5 * (off / extent) ** 2)
    u = (s0 + q_true) / np.linalg.norm(s0 + q_true, axis=1)[:, None]
    mean = (chance[:, None] * u).sum(axis=0) / chance.sum()
    rays = [np.empty(17) for _ in range(3)]
    for ray, blend in zip(rays, (0.0, np.inf, tau - nu), strict=True):
        kernel.onto_sphere(q, FORWARD, RADIUS, blend, ray)
    across = rays[0][6:9]
    point, turn, blended = (ray[:3] @ across for ray in rays)
    # only near the sphere are the displacements linear in how far the point is off it
    assert abs(blended - mean @ across) < 0.1 * abs(mean @ across - point) + 0.02 * abs(turn - point)


@pytest.mark.parametrize("turn", [True, False])
@pytest.mark.parametrize("hkl", list(HKL))
def test_local_derivatives(hkl: np.ndarray, turn: bool) -> None:
    detector, basis = tilted(), metric_basis("P 1")
    panel = panel_of(detector, hkl)
    a = constrain(A, "P 1")
    strain = np.array([0.5 * np.linalg.inv(a).T @ e for e in basis])
    _, ray, spot = evaluate(detector, panel, a, hkl, turn)
    rows = np.empty((3, 9))
    kernel.local_rows(a @ hkl, hkl, strain, 6, FORWARD, RADIUS, ray, spot, np.empty(3), rows)
    for j in range(9):
        delta = 1e-6 if j < 3 else 1e-8
        ends = []
        for sign in (1, -1):
            turn_by = Rotation.from_rotvec(sign * delta * np.eye(3)[j % 3]).as_matrix()
            moved = turn_by @ a if j < 3 else a + sign * delta * strain[j - 3]
            ends.append(positions(detector, panel, moved, hkl, turn))
        assert rows[:, j] == pytest.approx((ends[0] - ends[1]) / (2 * delta), rel=2e-5, abs=2e-5 * np.abs(rows).max())


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_group_derivatives(level: int) -> None:
    detector = tilted()
    groups = groups_of(detector, level)
    for hkl in HKL:
        panel = panel_of(detector, hkl)
        number = next(i for i, g in enumerate(groups) if panel in g.panels)
        frame = np.concatenate([groups[number].axes.ravel(), groups[number].centre])
        _, ray, _ = evaluate(detector, panel, A, hkl, True)
        rows = np.zeros((2, 6))
        kernel.group_rows(frame, pack_detector(detector)[panel], ray, rows, 0)
        for j in range(6):
            moves = np.zeros((len(groups), 6))
            ends = []
            for sign in (1, -1):
                moves[number, j] = sign * 1e-5
                ends.append(positions(apply_moves(detector, groups, moves), panel, A, hkl)[:2])
            assert rows[:, j] == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5, abs=1e-5 * np.abs(rows).max())

"""Kernels of indexing against plain numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from tests.algorithms.indexing.generator import basis_of, random_rotation
from xfelproc.geometry.detector import pixel_to_q
from xfelproc.kernels.fft_search import project_spots, refine_free_vectors, spectrum_peaks
from xfelproc.kernels.indexing import count_inliers, log10_poisson_tail, spots_off_lattice, spots_to_q
from xfelproc.kernels.lattice_search import (
    fit_lattice,
    fit_lattice_and_shift,
    lattice_distances,
    refine_vector,
    score_directions,
    score_lattice,
)
from xfelproc.kernels.small_matrices import determinant3, invert3, polar3, solve3
from xfelproc.models.experiment import Beam, Detector, Panel

CELL = (50.0, 60.0, 70.0, 85.0, 95.0, 100.0)


@pytest.fixture
def rng():
    return np.random.default_rng(8)


@pytest.fixture
def basis(rng):
    return basis_of(CELL) @ random_rotation(rng).T


def points(basis, rng, n, noise=0.0):
    hkl = rng.integers(-9, 10, (n, 3))
    return hkl @ np.linalg.inv(basis).T + noise * rng.normal(size=(n, 3)), hkl


def test_small_matrices(rng):
    m = rng.normal(size=(3, 3))
    out, x = np.empty((3, 3)), np.empty(3)
    assert invert3(m, out) == pytest.approx(np.linalg.det(m))
    assert determinant3(m) == pytest.approx(np.linalg.det(m))
    assert np.allclose(out, np.linalg.inv(m))
    solve3(m, m @ np.array([1.0, 2.0, 3.0]), x)
    assert np.allclose(x, [1, 2, 3])
    solve3(np.zeros((3, 3)), np.ones(3), x)
    assert np.allclose(x, [1, 2, 3])
    u, _, vt = np.linalg.svd(m)
    polar3(m, out)
    assert np.allclose(out, u @ vt)


def test_score_of_directions(rng):
    q = (0.2 * rng.normal(size=(3, 32))).astype(np.float32)
    weight = rng.uniform(size=32).astype(np.float32)
    directions = rng.normal(size=(50, 3)).astype(np.float32)
    score = np.empty(50, dtype=np.float32)
    score_directions(directions, 40.0, q, weight, score)
    x = 40.0 * directions @ q
    assert np.allclose(score, np.maximum(0, 1 - 16 * (x - np.rint(x)) ** 2) @ weight, atol=1e-3)


def test_a_vector_near_a_lattice_vector_is_drawn_to_it(basis, rng):
    q, _ = points(basis, rng, 60, 1e-4)
    v = basis[0] * 1.004
    score = refine_vector(v, np.ascontiguousarray(q.T), np.ones(60), 50.0, 1e-4, 6)
    assert np.linalg.norm(v - basis[0]) < 0.1
    assert 55 < score <= 60


def test_fit_recovers_the_lattice_and_shift(basis, rng):
    q, hkl = points(basis, rng, 80, 5e-5)
    fitted = basis @ (np.eye(3) + 0.002 * rng.normal(size=(3, 3)))
    fit_lattice(fitted, basis_of(CELL), q, np.ones(80), np.array([0.004, 0.002, 0.001, 0.001]), 0.02)
    assert np.allclose(fitted, basis, atol=0.05)
    slope = np.zeros((80, 3, 2))
    slope[:, 0, 0] = slope[:, 1, 1] = 0.01
    slope += 0.001 * rng.normal(size=slope.shape)
    truth = np.array([0.11, -0.07])
    moved = q - slope @ truth
    fitted, shift = basis.copy(), np.zeros(2)
    fit_lattice_and_shift(fitted, moved, slope, np.ones(80), np.array([0.004, 0.004, 0.002, 0.001, 0.001, 0.001]), shift)
    design = np.zeros((240, 11))
    for k in range(3):
        design[k::3, 3 * k : 3 * k + 3] = hkl
        design[k::3, 9:] = -slope[:, k]
    expected = np.linalg.lstsq(design, moved.ravel(), rcond=None)[0]
    assert np.allclose(np.linalg.inv(fitted).ravel(), expected[:9], atol=2e-5)
    assert np.allclose(shift, expected[9:], atol=0.01)
    assert np.allclose(shift, truth, atol=0.02)


def test_distances_and_scores(basis, rng):
    q, _ = points(basis, rng, 40, 1e-3)
    s0 = np.array([0, 0, -0.8])
    a = np.linalg.inv(basis)
    x = q @ basis.T
    d = q - np.rint(x) @ a.T
    hkl, fraction, distance = lattice_distances(basis, q)
    again, same, radial, tangential = spots_off_lattice(basis, q, s0)
    assert np.array_equal(hkl, np.rint(x).astype(int))
    assert np.array_equal(hkl, again)
    assert np.allclose(fraction, np.max(np.abs(x - np.rint(x)), axis=1))
    assert np.allclose(fraction, same)
    assert np.allclose(distance, np.linalg.norm(d, axis=1))
    ray = (q + s0) / np.linalg.norm(q + s0, axis=1, keepdims=True)
    assert np.allclose(radial, np.abs(np.sum(d * ray, axis=1)))
    assert np.allclose(radial**2 + tangential**2, distance**2)
    assert score_lattice(basis, q, np.ones(40), 0.002) == pytest.approx(np.sum(np.maximum(0, 1 - (distance / 0.002) ** 2)))
    counts = count_inliers(fraction, radial, tangential, 0.3, np.array([0.002, 0.001]))
    inside = (fraction <= 0.3) & ((radial / 0.002) ** 2 + (tangential / 0.001) ** 2 < 1)
    assert counts[0, 1] == np.count_nonzero(inside)


def test_poisson_tail():
    for count, mean in ((1, 0.1), (5, 0.3), (12, 2.0), (3, 5.0), (40, 1.5)):
        assert log10_poisson_tail(count, mean) == pytest.approx(math.log10(stats.poisson.sf(count - 1, mean)), rel=1e-6)
    assert log10_poisson_tail(0, 1.0) == 0.0
    assert log10_poisson_tail(3, 0.0) < -300


def test_scattering_vectors_are_those_of_the_geometry(rng):
    panels = (
        Panel("a", (1, 0, 0), (0, -1, 0), (-80, 80, -100), (0.1, 0.1), (800, 1600), thickness=0.45, mu=3.8),
        Panel("b", (1, 0, 0), (0, -0.96, 0.28), (5, 80, -100), (0.1, 0.12), (800, 1600)),
    )
    detector, beam = Detector(panels), Beam(1.1, (0.01, 0.0, 0.99995))
    panel = rng.integers(0, 2, 30).astype(np.int32)
    fast, slow = rng.uniform(0, 800, 30), rng.uniform(0, 1600, 30)
    q = spots_to_q(panel, fast, slow, detector.d_matrices, detector.pixel_sizes, detector.sensors, beam.s0)
    assert np.allclose(q, pixel_to_q(detector, beam, panel, fast, slow), atol=2e-6)


def test_spectrum_of_projections(rng):
    """Spots spaced by 1/60 along x give a peak at 60 Å."""
    q = np.zeros((3, 64), dtype=np.float32)
    q[0] = np.rint(rng.uniform(-18, 18, 64)) / 60
    histogram = np.empty((1, 256), dtype=np.float32)
    project_spots(np.array([[1, 0, 0]], dtype=np.float32), q, np.ones(64, dtype=np.float32), 0.32, histogram)
    assert histogram.sum() == 64
    spectrum = np.fft.rfft(histogram, axis=1).astype(np.complex64)
    peak, power = np.empty((1, 2), dtype=np.int64), np.empty((1, 2), dtype=np.float32)
    spectrum_peaks(spectrum.view(np.float32), 10, 60, peak, power)
    assert peak[0, 0] / 0.64 == pytest.approx(60, abs=1.6)
    assert power[0, 0] == pytest.approx(np.max(np.abs(spectrum[0, 10:60]) ** 2), rel=1e-3)


def test_free_vectors_are_refined_and_repeats_dropped(basis, rng):
    q, _ = points(basis, rng, 100, 1e-4)
    start = np.array([basis[0] * 1.01, -basis[0], basis[1], [1.0, 0, 0]])
    kept, score = refine_free_vectors(start, q, np.ones(100), 0.05, 6, 4.0, 10)
    assert len(kept) == 2
    assert np.all(np.diff(score) <= 0)
    assert (
        min(np.linalg.norm(kept[0] - basis[0]), np.linalg.norm(kept[0] + basis[0])) < 0.2
        or np.linalg.norm(kept[0] - basis[1]) < 0.2
    )

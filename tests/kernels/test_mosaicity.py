from __future__ import annotations

import numpy as np
import pytest

from xfelproc.kernels.mosaicity import fit_mosaicity, fit_turns


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

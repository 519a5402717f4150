"""Kernels of Wilson's likelihood against plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import erfc, log_ndtr

from xfelproc.kernels.scaling import log_erfc, wilson_log_likelihood, wilson_scales


def test_log_erfc() -> None:
    x = np.concatenate([np.linspace(-5, 7.99, 40), np.linspace(8, 26, 30)])
    assert [log_erfc(v) for v in x] == pytest.approx(np.log(erfc(x)), rel=1e-7)
    assert log_erfc(1e4) == pytest.approx(log_ndtr(-1e4 * np.sqrt(2)) + np.log(2), rel=1e-9)


@pytest.mark.parametrize(("intensity", "sigma", "mu"), [(3.0, 1.0, 2.0), (-2.0, 1.5, 0.3), (0.1, 10.0, 0.05), (40.0, 2.0, 20.0)])
def test_wilson_likelihood_is_the_convolution(intensity: float, sigma: float, mu: float) -> None:
    def integrand(j: float) -> float:
        return float(np.exp(-j / mu - 0.5 * ((intensity - j) / sigma) ** 2) / (mu * sigma * np.sqrt(2 * np.pi)))

    peak = max(0.0, intensity - sigma**2 / mu)
    expected = quad(integrand, 0, peak + 12 * sigma, points=[peak], limit=200)[0]
    got = wilson_log_likelihood(np.array([intensity]), np.array([sigma]), np.array([mu]))
    assert got == pytest.approx(np.log(expected), abs=1e-6)


def test_wilson_scales_find_scales_and_means() -> None:
    rng = np.random.default_rng(2)
    lattice, shell = rng.integers(0, 20, 20000), rng.integers(0, 5, 20000)
    scale, mean = np.exp(rng.normal(0, 1, 20)), np.array([100.0, 50, 30, 20, 10])
    partiality = rng.uniform(0.05, 1, 20000)
    intensity = scale[lattice] * mean[shell] * partiality * rng.exponential(size=20000) + rng.normal(0, 2, 20000)
    intensity[:20] = 1e7
    got = wilson_scales(intensity, np.full(20000, 4.0), partiality, lattice, shell, 20, 5, 8)
    ratio = np.log(got[0] / scale)
    assert np.std(ratio) < 0.06
    assert np.log(got[1] / mean) == pytest.approx(-np.mean(ratio), abs=0.12)

from __future__ import annotations

import numpy as np
import pytest

from tests.algorithms.downstream.wilson_data import simulated
from xfelproc.algorithms.downstream.truncate import french_wilson, unit_moments
from xfelproc.geometry.miller import inverse_d2


def brute_force(h: float, centric: bool, n: int = 200_000) -> list[float]:
    """Moments by the midpoint rule in extended precision."""
    wide = np.longdouble(h)
    upper = np.sqrt(wide + 14) if h > 0 else np.sqrt(196 / (abs(wide) + np.sqrt(wide * wide + 196)))
    lower = np.sqrt(max(wide - 14, np.longdouble(0)))
    x = lower + (upper - lower) * (np.arange(n, dtype=np.longdouble) + np.longdouble(0.5)) / n
    square = x * x
    weight = np.exp(square * (wide - square / 2) if h < 0 else -((square - wide) ** 2) / 2) * (1 if centric else x)
    weight /= weight.sum()
    found = []
    for values in (x, square):
        mean = (weight * values).sum()
        found += [float(mean), float(np.sqrt((weight * (values - mean) ** 2).sum()))]
    return found


@pytest.mark.parametrize("centric", [True, False])
@pytest.mark.parametrize("h", [-1e4, -50.0, -4.0, 0.0, 0.5, 3.0, 8.9, 9.1, 29.9, 30.1, 1e4])
def test_moments_are_those_of_brute_force_quadrature(h: float, centric: bool) -> None:
    found = [float(v[0]) for v in unit_moments(np.array([h]), np.array([centric]))]
    assert found == pytest.approx(brute_force(h, centric), rel=1e-9)


def test_strong_measurements_keep_their_root() -> None:
    found = french_wilson(np.array([1e6, 1e12]), np.array([1e2, 1e3]), np.array([1e6, 1e12]), np.array([False, True]))
    np.testing.assert_allclose(found.amplitude, [1e3, 1e6], rtol=1e-6)
    np.testing.assert_allclose(found.amplitude_sigma, [0.05, 5e-4], rtol=1e-4)
    np.testing.assert_allclose(found.intensity_sigma, [1e2, 1e3], rtol=1e-4)


def test_noise_gives_the_prior() -> None:
    acentric, centric = 0.5 * np.sqrt(np.pi), np.sqrt(2.0 / np.pi)  # Wilson's means of |E|
    found = french_wilson(np.array([3.0, -5.0]), np.array([1e4, 1e4]), np.array([1.0, 1.0]), np.array([False, True]))
    np.testing.assert_allclose(found.amplitude, [acentric, centric], rtol=1e-3)
    np.testing.assert_allclose(found.intensity, [1.0, 1.0], rtol=1e-3)


def test_what_cannot_be_has_no_amplitude() -> None:
    intensity, sigma = np.array([np.nan, 1.0, -5.0, -3.9, 1.0, 1.0]), np.array([1.0, 0.0, 1.0, 1.0, 1.0, np.inf])
    found = french_wilson(intensity, sigma, np.array([1.0, 1.0, 1.0, 1.0, 0.0, 1.0]), np.zeros(6, dtype=bool))
    assert np.isfinite(found.amplitude).tolist() == [False, False, False, True, False, False]


def test_many_are_done_in_parts() -> None:
    n = 40_000
    found = french_wilson(np.linspace(-3, 9, n), np.ones(n), np.ones(n), np.zeros(n, dtype=bool))
    assert np.all(np.diff(found.amplitude) > 0)


def test_amplitudes_are_the_true_ones_within_their_errors() -> None:
    data = simulated((60, 70, 80, 90, 90, 90), "P 21 21 21", d_min=2.8, noise=0.4)
    merged = data.merged
    s2 = inverse_d2(merged["hkl"], data.cell)
    epsilon = data.group.operations().epsilon_factor_without_centering_array(merged["hkl"])
    shell = np.digitize(s2, np.quantile(s2, np.linspace(0, 1, 31)[1:-1]))
    mean = np.bincount(shell, data.truth / epsilon)[shell] / np.bincount(shell)[shell] * epsilon
    found = french_wilson(merged["intensity"], merged["sigma"], mean, merged["centric"])
    error = (found.amplitude - np.sqrt(data.truth)) / found.amplitude_sigma
    assert np.nanmean(error) == pytest.approx(0.0, abs=0.04)
    assert np.nanmean(error**2) == pytest.approx(1.0, abs=0.06)
    weak = merged["intensity"] < 0
    assert np.count_nonzero(weak) > 200
    assert np.nanmean(error[weak]) == pytest.approx(0.0, abs=0.1)
    assert np.nanmean(((found.intensity - data.truth) / found.intensity_sigma) ** 2) == pytest.approx(1.0, abs=0.08)

"""Kernels of merging and scaling against plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import erfc, log_ndtr

from xfelproc.kernels.merging import absolute_residuals, group_means, observation_variances, reject_outliers, spread_of_groups
from xfelproc.kernels.scaling import lattice_equations, log_erfc, wilson_log_likelihood, wilson_scales


@pytest.fixture
def rows():
    rng = np.random.default_rng(4)
    sizes = rng.integers(1, 6, 50)
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    n = int(starts[-1])
    return {
        "starts": starts,
        "group": np.repeat(np.arange(50), sizes),
        "intensity": rng.normal(10, 5, n),
        "variance": rng.uniform(1, 4, n),
        "scale": rng.uniform(0.2, 2, n),
        "active": rng.random(n) > 0.2,
        "lattice": rng.integers(0, 7, n),
        "inverse_d2": rng.uniform(0, 0.2, n),
    }


def test_group_means(rows) -> None:
    w = rows["active"] / rows["variance"]
    numerator = np.bincount(rows["group"], w * rows["scale"] * rows["intensity"], 50)
    denominator = np.bincount(rows["group"], w * rows["scale"] ** 2, 50)
    got = group_means(rows["starts"], rows["intensity"], rows["variance"], rows["scale"], rows["active"])
    assert got[0] == pytest.approx(numerator)
    assert got[1] == pytest.approx(denominator)
    assert np.array_equal(got[2], np.bincount(rows["group"], rows["active"], 50))
    mean = np.random.default_rng(0).normal(8, 2, 50)
    residual = rows["intensity"] - rows["scale"] * mean[rows["group"]]
    chi2 = spread_of_groups(rows["starts"], rows["intensity"], rows["variance"], rows["scale"], rows["active"], mean)
    assert chi2 == pytest.approx(np.bincount(rows["group"], w * residual**2, 50))
    sums = absolute_residuals(rows["starts"], rows["intensity"], rows["scale"], rows["active"], mean)
    assert sums[0] == pytest.approx(np.bincount(rows["group"], rows["active"] * np.abs(residual), 50))
    assert sums[1] == pytest.approx(np.bincount(rows["group"], rows["active"] * rows["intensity"], 50))


def test_variances(rows) -> None:
    rng = np.random.default_rng(1)
    mean, fixed, gain = rng.normal(5, 5, 50), rng.uniform(1, 2, len(rows["scale"])), rng.uniform(0, 1, len(rows["scale"]))
    full = rows["scale"] / 0.5
    j = np.maximum(mean, 0)[rows["group"]]
    x = rows["scale"] * j
    expected = fixed + gain * x + (0.05 * x) ** 2 + (0.03 * full * j) ** 2
    assert observation_variances(rows["starts"], mean, rows["scale"], full, fixed, gain, 0.05, 0.03) == pytest.approx(expected)


def test_lattice_equations(rows) -> None:
    means = group_means(rows["starts"], rows["intensity"], rows["variance"], rows["scale"], rows["active"])
    got = lattice_equations(
        rows["starts"], rows["intensity"], rows["variance"], rows["scale"], rows["active"], rows["lattice"],
        rows["inverse_d2"], means[0], means[1], 3.0, 7,
    )  # fmt: skip
    g = rows["group"]
    w = rows["scale"] / rows["variance"]
    rest = means[1][g] - w * rows["scale"]
    ok = rows["active"] & (rest > 1e-9 * means[1][g])
    rest = np.where(ok, rest, 1.0)
    x = rows["scale"] * (means[0][g] - w * rows["intensity"]) / rest
    v = rows["variance"] + rows["scale"] ** 2 / rest
    y = rows["intensity"] - x
    weight = ok / (v * (1 + y**2 / (9 * v)))
    b = -0.5 * rows["inverse_d2"] * x
    terms = [weight * t for t in (x * x, x * b, b * b, x * y, b * y)] + [ok.astype(float)]
    assert got == pytest.approx(np.array([np.bincount(rows["lattice"], t, 7) for t in terms]).T)


def test_outliers_go_one_by_one() -> None:
    starts = np.array([0, 4, 6, 9])
    intensity = np.array([10.0, 11, 9, 100, 5, 50, 1, 1, 1])
    n = len(intensity)
    ones, zeros, active = np.ones(n), np.zeros(n), np.ones(n, dtype=bool)
    keep = reject_outliers(starts, intensity, ones, ones, ones, ones, zeros, active, np.ones(3), 0.0, 0.0, 5.0, 2)
    assert keep.tolist() == [True, True, True, False, True, True, True, True, True], (
        "of two that differ neither is known to be wrong"
    )


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

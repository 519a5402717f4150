"""What is expected of intensities beside the lattices: Wilson's law, and given ones as far as they agree."""

import numpy as np
import pytest

from xfelproc.algorithms.merging.prior import Prior

N = 3000


def merged(error, seed=2):
    """Return given intensities on a scale and B of their own, off by a relative error, and merged ones with their weights."""
    rng = np.random.default_rng(seed)
    s2 = np.sort(rng.uniform(0.001, 0.25, N))
    typical = 900.0 * np.exp(-10.0 * s2)
    true = typical * rng.exponential(size=N)
    given = 0.02 * np.exp(6.0 * s2) * true + 0.02 * np.exp(6.0 * s2) * error * (true + typical) * rng.normal(size=N)
    sigma = 0.2 * typical
    return given, true + sigma * rng.normal(size=N), sigma**-2.0, typical, s2, true


@pytest.mark.parametrize("error", [0.1, 0.4])
def test_given_intensities_come_to_the_scale_and_are_as_sure_as_they_agree(error):
    given, mean, weight, typical, s2, true = merged(error)
    prior = Prior.of_given(given, mean, weight, typical, s2)
    assert prior.given.all()
    away = (prior.mean - true) * np.sqrt(prior.weight)
    assert np.mean(away**2) == pytest.approx(1.0, abs=0.3)
    assert prior.mean.sum() == pytest.approx(true.sum(), rel=0.05)


def test_what_is_not_given_or_agrees_with_nothing_is_wilsons():
    given, mean, weight, typical, s2, _ = merged(0.1)
    given[::2] = np.nan
    prior, wilson = Prior.of_given(given, mean, weight, typical, s2), Prior.wilson(typical)
    np.testing.assert_array_equal(prior.given, np.isfinite(given))
    np.testing.assert_array_equal(prior.mean[::2], typical[::2])
    np.testing.assert_array_equal(prior.weight[::2], wilson.weight[::2])
    nothing = Prior.of_given(np.full(N, np.nan), mean, weight, typical, s2)
    assert not nothing.given.any()
    shuffled = Prior.of_given(np.random.default_rng(1).permutation(given), mean, weight, typical, s2)
    assert np.median((shuffled.weight * typical**2)[shuffled.given]) < 1.0


def test_arrays_and_back():
    prior = Prior.wilson(np.array([0.0, 2.0]))
    np.testing.assert_array_equal(prior.weight, [0.0, 0.25])
    np.testing.assert_array_equal(Prior.from_arrays(prior.arrays()).mean, prior.mean)

"""Sums over sorted observations against loops."""

import numpy as np

from xfelproc.kernels.observed import bounds_of_groups, sums_of_groups


def test_sums_are_those_of_loops():
    rng = np.random.default_rng(4)
    hkl = np.repeat(np.array([[-2, 0, 1], [-2, 0, 3], [1, 1, 3], [1, 2, 3]], dtype=np.float32), [1, 5, 2, 7], axis=0)
    column = rng.integers(0, 4, len(hkl)).astype(np.uint8)
    value, sigma = rng.normal(50.0, 20.0, len(hkl)).astype(np.float32), rng.uniform(1.0, 9.0, len(hkl)).astype(np.float32)
    bounds = bounds_of_groups(hkl)
    assert bounds.tolist() == [0, 1, 6, 8, 15]
    sums, deviations = sums_of_groups(bounds, column, value, sigma)
    for g, (first, last) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)):
        y, w, c = (x[first:last].astype(np.float64) for x in (value, sigma, column))
        w = w**-2.0
        for n in range(4):
            own = c == n
            expected = [own.sum(), y[own].sum(), w[own].sum(), (w * y)[own].sum(), (w * y * y)[own].sum()]
            np.testing.assert_allclose(sums[g, n], expected, rtol=1e-12)
        for n, own in enumerate((c >= 0, c < 2, c >= 2)):
            expected = np.abs(y[own] - np.average(y[own], weights=w[own])).sum() if own.any() else 0.0
            np.testing.assert_allclose(deviations[g, n], expected, rtol=1e-12)
    assert bounds_of_groups(hkl[:0]).tolist() == [0]

"""Outliers, and the spread of observations that they are judged by."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging.lattice_scales import Columns, LatticeScales, Means
from xfelproc.algorithms.merging.partiality import resolution_bins
from xfelproc.algorithms.merging.settings import Merge
from xfelproc.kernels.merging import reject_outliers, spread_of_groups

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

SPREAD_PRIOR = 4.0
"""Degrees of freedom that the mean χ² of the resolution counts for beside a reflection's own."""
SPREAD_SHELLS = 20
OUTLIER_ROUNDS = 2
KEEP_AT_LEAST = 2
IMPOSSIBLE = 40.0
"""Times the mean of its resolution no intensity can be: by Wilson's law a chance of e^-40, for a centric one of 1e-9 or so."""


def possible(columns: Columns, scales: LatticeScales, typical: Floats, settings: Merge) -> Bools:
    """Return which observations could be true at all, whatever the others of their reflection say (Read 1999, Acta D55, 1759).

    ``typical`` is the mean intensity (n_groups,) at the resolution of each group.
    """
    if settings.outlier_cut == 0:
        return np.ones(len(columns.lattice), dtype=bool)
    expected = scales.full(columns) * columns.partiality * typical[columns.group]
    sigma = np.sqrt(columns.fixed + columns.gain * expected)
    true: Bools = columns.intensity <= IMPOSSIBLE * expected + settings.outlier_cut * sigma
    return true


def without_outliers(columns: Columns, means: Means, allowed: Bools, inflation: Floats, settings: Merge) -> Bools:
    """Return which of the ``allowed`` observations are no outliers; earlier outliers get another chance.

    ``inflation`` is the factor (n_groups,) on the variances by which they are judged.
    """
    if settings.outlier_cut == 0:
        return allowed
    keep: Bools = reject_outliers(
        columns.starts,
        columns.intensity,
        means.variance,
        means.scale,
        means.full,
        columns.fixed,
        columns.gain,
        allowed,
        inflation,
        *settings.first_errors,
        settings.outlier_cut,
        KEEP_AT_LEAST,
    )
    return keep


def chi_squared(columns: Columns, means: Means) -> Floats:
    """Return χ² of each group, (n_groups,)."""
    chi2: Floats = spread_of_groups(columns.starts, columns.intensity, means.variance, means.scale, columns.active, means.value)
    return chi2


def spread_by_bin(chi2: Floats, count: NDArray[np.int64], inverse_d2: Floats, limits: tuple[float, float]) -> tuple[Floats, Floats]:
    """Return two factors on the variances in each bin of resolution, (SPREAD_SHELLS,).

    The first is the mean χ² a degree of freedom, towards which that of a group is shrunk (`spread_of_means`). The second is
    for judging outliers: the median one, which they do not move; the median of χ² of ν degrees is ν (1 - 2/9ν)³ (Wilson &
    Hilferty 1931, PNAS 17, 684). It is not below 1.
    """
    freedom = np.maximum(count - 1, 0).astype(np.float64)
    bins = resolution_bins(inverse_d2, SPREAD_SHELLS, limits)
    typical, median = np.ones(SPREAD_SHELLS), np.ones(SPREAD_SHELLS)
    for b in range(SPREAD_SHELLS):
        rows = np.flatnonzero(bins == b)
        judged = rows[freedom[rows] > 0]
        if len(judged):
            nu = freedom[judged]
            typical[b] = chi2[judged].sum() / nu.sum()
            median[b] = np.median(chi2[judged] / (nu * (1.0 - 2.0 / (9.0 * nu)) ** 3))
    return typical, np.maximum(median, 1.0)


def spread_of_means(columns: Columns, means: Means, typical: Floats) -> Floats:
    """Return the factor on the variance of each mean, (n_groups,): χ² a degree of freedom shrunk to the typical one; at least 1."""
    freedom = np.maximum(means.count - 1, 0).astype(np.float64)
    own: Floats = (chi_squared(columns, means) + SPREAD_PRIOR * typical) / (freedom + SPREAD_PRIOR)
    return np.maximum(own, 1.0)

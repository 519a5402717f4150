"""Scaling of all observations: starting scales, cycles, outliers, and what merging is made from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging.lattice_scales import Columns, LatticeScales, Means, correlations, form_means, refine_scales
from xfelproc.algorithms.merging.observations import Observations
from xfelproc.algorithms.merging.partiality import resolution_bins, starting_scales
from xfelproc.algorithms.merging.reduction import Reduced
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


@dataclass(frozen=True)
class Scaled:
    """Observations on a common scale.

    ``columns`` has the outliers and the lattices left out inactive; ``spread`` (n_groups,) is the factor on the variance of each
    mean, ``used`` and ``correlation`` are (n_lattices,).
    """

    columns: Columns
    scales: LatticeScales
    means: Means
    spread: Floats
    used: Bools
    correlation: Floats


def _sorted_columns(observations: Observations, partiality: Floats, reduced: Reduced) -> Columns:
    order = reduced.order
    return Columns(
        starts=reduced.starts,
        group=reduced.group,
        lattice=observations.lattice[order],
        intensity=observations.intensity[order],
        fixed=observations.variance_fixed[order],
        gain=observations.variance_gain[order],
        partiality=partiality[order],
        inverse_d2=observations.inverse_d2[order],
        active=np.ones(len(order), dtype=bool),
        n_lattices=observations.n_lattices,
    )


def scale_observations(observations: Observations, partiality: Floats, reduced: Reduced, settings: Merge) -> Scaled:
    """Return observations scaled to each other, outliers set apart.

    Scaling, then outliers, then scaling without them, twice; lattices that do not correlate leave after the first scaling.

    Parameters
    ----------
    observations, partiality
        Rows and their partialities.
    reduced
        The reduction of their indices.
    settings
        Cycles, error terms, cuts.
    """
    columns = _sorted_columns(observations, partiality, reduced)
    scales, first = _start(columns, observations, partiality, reduced, settings)
    possible = _possible(columns, scales, first, settings)
    columns = columns.without(possible)
    values = form_means(columns, scales, first, settings).value
    used = np.ones(columns.n_lattices, dtype=bool)
    for round_ in range(1 + OUTLIER_ROUNDS):
        if settings.scale:
            scales, values = refine_scales(columns, scales, values, settings)
        means = form_means(columns, scales, values, settings)
        if round_ == 0 and settings.min_lattice_cc is not None:
            used = ~(correlations(columns, means) < settings.min_lattice_cc)
        if round_ == OUTLIER_ROUNDS:
            break
        before = columns.active
        columns = _without_outliers(columns, means, possible & used[columns.lattice], settings)
        if np.array_equal(before, columns.active):
            break
    values = form_means(columns, scales, values, settings).value
    means = form_means(columns, scales, values, settings)
    return Scaled(columns, scales, means, _spread(columns, means)[0], used, correlations(columns, means))


def _start(
    columns: Columns, observations: Observations, partiality: Floats, reduced: Reduced, settings: Merge
) -> tuple[LatticeScales, Floats]:
    """Return the scales to begin with, and the expected intensity of each group."""
    scale, shell_means, bins = starting_scales(observations, partiality)
    counts = np.bincount(columns.lattice, minlength=columns.n_lattices)
    norm = float(np.exp(np.average(np.log(scale), weights=counts))) if counts.sum() else 1.0
    scale = np.where(counts > 0, scale / norm, 1.0) if settings.scale else np.ones(columns.n_lattices)
    first = norm * shell_means[bins[reduced.order[reduced.starts[:-1]]]]
    return LatticeScales(scale, np.zeros(columns.n_lattices)), first


def _possible(columns: Columns, scales: LatticeScales, typical: Floats, settings: Merge) -> Bools:
    """Return which observations could be true at all, whatever the others of their reflection say (Read 1999, Acta D55, 1759)."""
    if settings.outlier_cut == 0:
        return np.ones(len(columns.lattice), dtype=bool)
    expected = scales.full(columns) * columns.partiality * typical[columns.group]
    sigma = np.sqrt(columns.fixed + columns.gain * expected)
    possible: Bools = columns.intensity <= IMPOSSIBLE * expected + settings.outlier_cut * sigma
    return possible


def _without_outliers(columns: Columns, means: Means, allowed: Bools, settings: Merge) -> Columns:
    """Return the columns with outliers and what is not ``allowed`` inactive; earlier outliers get another chance."""
    if settings.outlier_cut == 0:
        return replace(columns, active=allowed)
    inflation = _spread(columns, means)[1]
    keep = reject_outliers(
        columns.starts,
        columns.intensity,
        means.variance,
        means.scale,
        means.full,
        columns.fixed,
        columns.gain,
        allowed,
        inflation,
        settings.error_intensity,
        settings.error_partiality,
        settings.outlier_cut,
        KEEP_AT_LEAST,
    )
    return replace(columns, active=keep)


def _spread(columns: Columns, means: Means) -> tuple[Floats, Floats]:
    """Return two factors on the variances of each group, (n_groups,): for the mean, and for judging outliers.

    The first is χ² a degree of freedom of the group, shrunk towards the mean one of its resolution. The second is the median
    one of its resolution, which outliers do not move; the median of χ² of ν degrees is ν (1 - 2/9ν)³ (Wilson & Hilferty 1931,
    PNAS 17, 684). Neither is below 1.
    """
    chi2 = spread_of_groups(columns.starts, columns.intensity, means.variance, means.scale, columns.active, means.value)
    freedom = np.maximum(means.count - 1, 0).astype(np.float64)
    bins = resolution_bins(columns.inverse_d2[columns.starts[:-1]], SPREAD_SHELLS)
    typical, median = np.ones(columns.n_groups), np.ones(columns.n_groups)
    for b in range(SPREAD_SHELLS):
        rows = np.flatnonzero(bins == b)
        judged = rows[freedom[rows] > 0]
        if len(judged):
            nu = freedom[judged]
            typical[rows] = chi2[judged].sum() / nu.sum()
            median[rows] = np.median(chi2[judged] / (nu * (1.0 - 2.0 / (9.0 * nu)) ** 3))
    own: Floats = (chi2 + SPREAD_PRIOR * typical) / (freedom + SPREAD_PRIOR)
    return np.maximum(own, 1.0), np.maximum(median, 1.0)

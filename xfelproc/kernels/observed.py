"""Kernels of statistics over scaled observations that come sorted by unique reflection."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Ints = NDArray[np.int64]

SUMS = 5
"""Sums by unique reflection and column: number, ΣI, Σw, ΣwI, ΣwI², with w = 1/σ²."""
MEANS = 3
"""Means that deviations are taken from: of all observations, of I(+), of I(-)."""


@njit(cache=True, nogil=True)
def bounds_of_groups(hkl: Singles) -> Ints:
    """Return where each run of equal indices (n, 3) begins, and the end, (n_groups + 1,)."""
    n = hkl.shape[0]
    bounds = np.empty(n + 1, np.int64)
    groups = 0
    for i in range(n):
        if i == 0 or hkl[i, 2] != hkl[i - 1, 2] or hkl[i, 1] != hkl[i - 1, 1] or hkl[i, 0] != hkl[i - 1, 0]:
            bounds[groups] = i
            groups += 1
    bounds[groups] = n
    return bounds[: groups + 1].copy()


@njit(cache=True, nogil=True)
def sums_of_groups(bounds: Ints, column: NDArray[np.uint8], value: Singles, sigma: Singles) -> tuple[Floats, Floats]:
    """Return sums (n_groups, 4, SUMS) by column, and Σ|I - mean| (n_groups, MEANS).

    Parameters
    ----------
    bounds
        (n_groups + 1,) from `bounds_of_groups`.
    column
        (n,) 2 · minus + half-set.
    value, sigma
        (n,) scaled intensity, positive standard deviation.
    """
    n_groups = bounds.shape[0] - 1
    sums = np.zeros((n_groups, 4, SUMS))
    deviations = np.zeros((n_groups, MEANS))
    for g in range(n_groups):
        own = sums[g]
        for i in range(bounds[g], bounds[g + 1]):
            s, y = np.float64(sigma[i]), np.float64(value[i])
            w, c = 1.0 / (s * s), column[i]
            own[c, 0] += 1.0
            own[c, 1] += y
            own[c, 2] += w
            own[c, 3] += w * y
            own[c, 4] += w * y * y
        plus, minus = own[0, 2] + own[1, 2], own[2, 2] + own[3, 2]
        total_plus, total_minus = own[0, 3] + own[1, 3], own[2, 3] + own[3, 3]
        mean = (total_plus + total_minus) / (plus + minus)
        mean_plus = total_plus / plus if plus > 0.0 else 0.0
        mean_minus = total_minus / minus if minus > 0.0 else 0.0
        for i in range(bounds[g], bounds[g + 1]):
            y = np.float64(value[i])
            deviations[g, 0] += abs(y - mean)
            if column[i] < 2:
                deviations[g, 1] += abs(y - mean_plus)
            else:
                deviations[g, 2] += abs(y - mean_minus)
    return sums, deviations


@njit(cache=True, nogil=True)
def match_observations(
    hkl: Singles,
    isym: Singles,
    batch: Singles,
    sigma: Singles,
    factor: Singles,
    wanted: NDArray[np.int32],
    wanted_isym: NDArray[np.int32],
    wanted_batch: Ints,
    first: int,
    found: Floats,
) -> int:
    """Find scaled observations, each by reflection, symmetry and batch; return the first one that rows to come may hold.

    Parameters
    ----------
    hkl, isym, batch, sigma, factor
        Rows (n,) sorted by index (n, 3); the factor is what the recorded intensity was divided by.
    wanted, wanted_isym, wanted_batch
        (m,) sorted by index (m, 3).
    first
        The first one wanted that is not before these rows.
    found
        (m, 2) gets weight 1/σ² and factor of each that is found.
    """
    n, m = hkl.shape[0], wanted.shape[0]
    i, j, unfinished = 0, first, -1
    while i < n and j < m:
        step = 0
        for axis in range(3):
            if step == 0:
                step = int(np.sign(wanted[j, axis] - np.int64(hkl[i, axis])))
        if step > 0:
            i += 1
        elif step < 0:
            j += 1
        else:
            k = i
            while k < n and hkl[k, 0] == hkl[i, 0] and hkl[k, 1] == hkl[i, 1] and hkl[k, 2] == hkl[i, 2]:
                if batch[k] == wanted_batch[j] and isym[k] == wanted_isym[j]:
                    found[j, 0] = 1.0 / (np.float64(sigma[k]) * sigma[k])
                    found[j, 1] = factor[k]
                k += 1
            if k == n and unfinished < 0:  # the reflection may go on
                unfinished = j
            j += 1
    return j if unfinished < 0 else unfinished

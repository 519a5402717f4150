"""Kernels of merging: reduction to the asymmetric unit, means of groups, outliers.

Observations come sorted by group (unique reflection); ``starts`` (n_groups + 1,) bounds the groups. Sums run in the order of
the rows, so that the result depends on nothing else. The variance of observation i of a group with full intensity J is
``fixed_i + gain_i x + (error_intensity x)² + (error_partiality f J)²`` with ``x = k J``; ``k`` is scale times partiality, ``f``
the scale alone: counting of background, counting of the reflection itself (of its expectation, since weights from observed
counts favour low observations), errors proportional to the intensity, and errors of the partiality.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@njit(cache=True, nogil=True)
def in_asu(h: int, k: int, l: int, case: int) -> bool:  # noqa: E741  (the index's own name)
    """Return whether (h, k, l) is in the reciprocal asymmetric unit of CCP4 for a Laue class (0: -1 ... 11: m-3m)."""
    if case == 0:
        return l > 0 or (l == 0 and (h > 0 or (h == 0 and k >= 0)))
    if case == 1:
        return k >= 0 and (l > 0 or (l == 0 and h >= 0))
    if case == 2:
        return h >= 0 and k >= 0 and l >= 0
    if case == 3 or case == 8:
        return l >= 0 and ((h >= 0 and k > 0) or (h == 0 and k == 0))
    if case == 4 or case == 9:
        return h >= k and k >= 0 and l >= 0
    if case == 5:
        return (h >= 0 and k > 0) or (h == 0 and k == 0 and l >= 0)
    if case == 6:
        return h >= k and k >= 0 and (k > 0 or l >= 0)
    if case == 7:
        return h >= k and k >= 0 and (h > k or l >= 0)
    if case == 10:
        return h >= 0 and ((l >= h and k > h) or (l == h and k == h))
    return k >= l and l >= h and h >= 0


@njit(cache=True, nogil=True)
def map_to_asu(hkl: NDArray[np.int32], operators: NDArray[np.int32], case: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return the equivalents (n, 3) in the asymmetric unit, and isym: 2 i + 1 by operator i, 2 i + 2 by operator i and inversion.

    ``operators`` (m, 3, 3) are the rotations of the space group; an index maps as the row vector ``h R``. isym is 0 where no
    operator leads to the asymmetric unit (it cannot happen for a group and its own unit).
    """
    n = hkl.shape[0]
    out = np.zeros((n, 3), np.int32)
    isym = np.zeros(n, np.int32)
    for i in range(n):
        for m in range(operators.shape[0]):
            r = operators[m]
            h = hkl[i, 0] * r[0, 0] + hkl[i, 1] * r[1, 0] + hkl[i, 2] * r[2, 0]
            k = hkl[i, 0] * r[0, 1] + hkl[i, 1] * r[1, 1] + hkl[i, 2] * r[2, 1]
            l = hkl[i, 0] * r[0, 2] + hkl[i, 1] * r[1, 2] + hkl[i, 2] * r[2, 2]  # noqa: E741
            if in_asu(h, k, l, case):
                out[i, 0], out[i, 1], out[i, 2] = h, k, l
                isym[i] = 2 * m + 1
                break
            if in_asu(-h, -k, -l, case):
                out[i, 0], out[i, 1], out[i, 2] = -h, -k, -l
                isym[i] = 2 * m + 2
                break
    return out, isym


@njit(cache=True, nogil=True)
def observation_variances(
    starts: Ints,
    mean: Floats,
    scale: Floats,
    full: Floats,
    fixed: Floats,
    gain: Floats,
    error_intensity: float,
    error_partiality: float,
) -> Floats:
    """Return the variance of each observation by the formula of this module; ``mean`` holds J of each group."""
    out = np.empty(scale.shape[0])
    for g in range(starts.shape[0] - 1):
        j = max(mean[g], 0.0)
        for i in range(starts[g], starts[g + 1]):
            x = scale[i] * j
            out[i] = fixed[i] + gain[i] * x + (error_intensity * x) ** 2 + (error_partiality * full[i] * j) ** 2
    return out


@njit(cache=True, nogil=True)
def group_means(
    starts: Ints, intensity: Floats, variance: Floats, scale: Floats, active: NDArray[np.bool_]
) -> tuple[Floats, Floats, Ints]:
    """Return numerators ΣkI/σ², denominators Σk²/σ² and the number of active observations of each group."""
    n = starts.shape[0] - 1
    numerator = np.zeros(n)
    denominator = np.zeros(n)
    count = np.zeros(n, np.int64)
    for g in range(n):
        for i in range(starts[g], starts[g + 1]):
            if active[i]:
                w = scale[i] / variance[i]
                numerator[g] += w * intensity[i]
                denominator[g] += w * scale[i]
                count[g] += 1
    return numerator, denominator, count


@njit(cache=True, nogil=True)
def spread_of_groups(
    starts: Ints, intensity: Floats, variance: Floats, scale: Floats, active: NDArray[np.bool_], mean: Floats
) -> Floats:
    """Return χ² = Σ (I - k J)² / σ² of each group over its active observations."""
    n = starts.shape[0] - 1
    out = np.zeros(n)
    for g in range(n):
        for i in range(starts[g], starts[g + 1]):
            if active[i]:
                out[g] += (intensity[i] - scale[i] * mean[g]) ** 2 / variance[i]
    return out


@njit(cache=True, nogil=True)
def reject_outliers(
    starts: Ints,
    intensity: Floats,
    variance: Floats,
    scale: Floats,
    full: Floats,
    fixed: Floats,
    gain: Floats,
    active: NDArray[np.bool_],
    inflation: Floats,
    error_intensity: float,
    error_partiality: float,
    cut: float,
    minimum: int,
) -> NDArray[np.bool_]:
    """Return ``active`` without outliers: one by one the worst of a group, while more than ``minimum`` are left in it.

    What counts is the deviation from the mean of the others, in units of the standard deviation of observation and mean
    together, times √``inflation`` of the group (its resolution's χ² a degree of freedom); above ``cut`` it is an outlier. The
    observation's own variance is that expected from the others, lest an outlier excuse itself.
    """
    keep = active.copy()
    for g in range(starts.shape[0] - 1):
        while True:
            numerator, denominator, count = 0.0, 0.0, 0
            for i in range(starts[g], starts[g + 1]):
                if keep[i]:
                    w = scale[i] / variance[i]
                    numerator += w * intensity[i]
                    denominator += w * scale[i]
                    count += 1
            if count <= minimum:
                break
            worst, largest = -1, cut * cut * inflation[g]
            for i in range(starts[g], starts[g + 1]):
                if keep[i]:
                    w = scale[i] / variance[i]
                    rest = denominator - w * scale[i]
                    if rest <= 0.0:
                        continue
                    others = (numerator - w * intensity[i]) / rest
                    x = scale[i] * others
                    j = max(others, 0.0)
                    own = fixed[i] + (gain[i] + error_intensity * error_intensity * scale[i] * j) * scale[i] * j
                    own += (error_partiality * full[i] * j) ** 2
                    deviation = (intensity[i] - x) ** 2 / (own + scale[i] * scale[i] / rest)
                    if deviation > largest:
                        worst, largest = i, deviation
            if worst < 0:
                break
            keep[worst] = False
    return keep


@njit(cache=True, nogil=True)
def absolute_residuals(
    starts: Ints, intensity: Floats, scale: Floats, active: NDArray[np.bool_], mean: Floats
) -> tuple[Floats, Floats]:
    """Return Σ|I - k J| and Σ I of each group over its active observations."""
    n = starts.shape[0] - 1
    residual = np.zeros(n)
    total = np.zeros(n)
    for g in range(n):
        for i in range(starts[g], starts[g + 1]):
            if active[i]:
                residual[g] += abs(intensity[i] - scale[i] * mean[g])
                total[g] += intensity[i]
    return residual, total

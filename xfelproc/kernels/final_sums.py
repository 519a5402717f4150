"""Kernel of the last pass of merging: all sums over a block's observations that merged intensities and statistics are made of."""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from xfelproc.kernels.error_model import mixed
from xfelproc.kernels.reference_sums import own_variance

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

MOMENTS = 3
"""Columns by unique reflection: ΣwJ², Σ|I - kJ'|, ΣI, with J' the reference."""
SQUARES = 3
"""Columns by unique reflection and Friedel sign: Σw², Σw²J, Σw²J²."""
Z_BINS, Z_WIDTH = 160, 0.1
"""Deviations over their σ are counted in bins of this width about 0; the first and the last take what is beyond."""
WINDOW = 16
"""Observations of similar resolution among which the control is shuffled."""


@njit(cache=True, nogil=True)
def add_final(
    starts: Ints,
    identity: Ints,
    group: NDArray[np.int32],
    intensity: Singles,
    fixed: Singles,
    gain: Singles,
    full: Singles,
    partiality: Singles,
    inverse_d2: Floats,
    mean: Floats,
    mean_weight: Floats,
    expected: Floats,
    limit: Floats,
    column: NDArray[np.uint8],
    used: Bools,
    quality: Floats,
    terms: Floats,
    min_partiality: float,
    weight: Floats,
    weighted: Floats,
    count: Ints,
    moments: Floats,
    squares: Floats,
    rejected: Ints,
    deviations: Ints,
    control_weight: Floats,
    control_weighted: Floats,
    merged: Bools,
) -> None:
    """Add the observations of used lattices.

    Parameters
    ----------
    starts, group, intensity, fixed, gain, full, partiality
        A block's observations; full and partiality under the final models.
    identity
        (m,) number of each lattice in the run: the control is shuffled by a hash of it.
    inverse_d2, mean, mean_weight, expected, limit
        Of the unique reflections: 1/d², the reference and its weight, and what the variances are formed of.
    column
        (n,) 2 · minus + half-set.
    used, quality, terms, min_partiality
        Lattices that are merged, their quality, terms of the error model, least partiality.
    weight, weighted, count
        (n_unique, 4) Σw, ΣwJ and number by column; J = I/k, w = k²/σ².
    moments, squares
        (n_unique, MOMENTS), (n_unique, 2, SQUARES).
    rejected
        (n_unique,) outliers.
    deviations
        (Z_BINS,) counts of (I - kJ')/σ, where σ² is the variance of that: J' holds the observation itself.
    control_weight, control_weighted
        (n_unique, 2) by half-set, each observation given to the reflection of another one of its lattice.
    merged
        (n,) becomes true where an observation was added.
    """
    weights, products = np.empty(group.shape[0]), np.empty(group.shape[0])
    for j in range(starts.shape[0] - 1):
        if not used[j]:
            continue
        for i in range(starts[j], starts[j + 1]):
            if not partiality[i] >= min_partiality:
                continue
            g, c = group[i], column[i]
            # in double precision: the rows of the unmerged table give the same means
            y, f, p = np.float64(intensity[i]), np.float64(full[i]), np.float64(partiality[i])
            v = own_variance(y, np.float64(fixed[i]), np.float64(gain[i]), f, p, expected[g], limit[g], quality[j], terms)
            if math.isinf(v):
                rejected[g] += 1
                continue
            merged[i] = True
            k = f * p
            w, value = k * k / v, y / k
            weights[i], products[i] = w, w * value
            weight[g, c] += w
            weighted[g, c] += w * value
            count[g, c] += 1
            moments[g, 0] += w * value * value
            squares[g, c // 2, 0] += w * w
            squares[g, c // 2, 1] += w * w * value
            squares[g, c // 2, 2] += w * w * value * value
            residual = y - k * mean[g]
            moments[g, 1] += abs(residual)
            moments[g, 2] += y
            left = v - k * k / mean_weight[g] if mean_weight[g] > 0.0 else 0.0
            if left > 1e-6 * v:
                place = math.floor(residual / math.sqrt(left) / Z_WIDTH) + Z_BINS // 2
                deviations[min(max(place, 0), Z_BINS - 1)] += 1
        _add_control(
            starts[j],
            starts[j + 1],
            identity[j],
            group,
            inverse_d2,
            column,
            weights,
            products,
            merged,
            control_weight,
            control_weighted,
        )


@njit(cache=True, nogil=True)
def _add_control(
    first: int,
    last: int,
    identity: int,
    group: NDArray[np.int32],
    inverse_d2: Floats,
    column: NDArray[np.uint8],
    weights: Floats,
    products: Floats,
    merged: Bools,
    weight: Floats,
    weighted: Floats,
) -> None:
    """Add one lattice's merged observations, shuffled among those of similar resolution; see `add_final`.

    ``weights`` and ``products`` (n,) are their w and wJ.
    """
    n = 0
    for i in range(first, last):
        if merged[i]:
            n += 1
    rows = np.empty(n, dtype=np.int64)
    level = np.empty(n)
    n = 0
    for i in range(first, last):
        if merged[i]:
            rows[n], level[n] = i, inverse_d2[group[i]]
            n += 1
    rows = rows[np.argsort(level)]
    bits = mixed(np.uint64(identity))
    # windows begin at another place in each lattice, lest the same reflections always meet
    start = -int(np.int64(bits % np.uint64(WINDOW)))
    while start < n:
        low, high = max(start, 0), min(start + WINDOW, n)
        source = rows[low:high].copy()
        for a in range(high - low - 1, 0, -1):
            bits = mixed(bits)
            b = int(np.int64(bits % np.uint64(a + 1)))
            source[a], source[b] = source[b], source[a]
        for a in range(high - low):
            i, g = source[a], group[rows[low + a]]
            if group[i] == g:
                continue
            half = column[i] % 2
            weight[g, half] += weights[i]
            weighted[g, half] += products[i]
        start += WINDOW

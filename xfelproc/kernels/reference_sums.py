"""A reference of merging: the sums over unique reflections that make it, and what it is without one lattice's observations.

``starts`` (m + 1,) bounds the lattices of a block.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from xfelproc.kernels.error_model import observation_variance
from xfelproc.kernels.partiality import Observed

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

IMPOSSIBLE = 40.0
"""Times the mean of its resolution that no intensity can be."""


class Means(NamedTuple):
    """A reference by unique reflection: mean, weight, the factor to its scale, what the weights were formed with, 1/d², the
    resolution's mean, and what is expected beside the lattices: mean, weight, and whether that was given.
    """

    mean: Floats
    weight: Floats
    factor: Floats
    expected: Floats
    limit: Floats
    inverse_d2: Floats
    typical: Floats
    prior: Floats
    prior_weight: Floats
    given: Bools


class Compared(NamedTuple):
    """A lattice's observations beside the others': 1/d², mean and weight of the others, variance of I - k J (inf: none)."""

    inverse_d2: Singles
    mean: Floats
    weight: Floats
    variance: Floats


@njit(cache=True, nogil=True)
def own_variance(
    intensity: float,
    fixed: float,
    gain: float,
    full: float,
    partiality: float,
    expected: float,
    limit: float,
    quality: float,
    errors: Floats,
) -> float:
    """Return the variance of an observation by which it is merged, infinite for one that cannot be true.

    ``quality`` is that of the lattice, ``errors`` are the terms of `xfelproc.kernels.error_model`. ``expected`` is the full
    intensity expected. ``limit`` is the square of the number of standard deviations beyond which one is an outlier; where it is
    negative the intensity was never measured, and an outlier is what Wilson's law makes impossible.
    """
    mean = full * partiality * max(expected, 0.0)
    variance = observation_variance(fixed, gain, full, partiality, expected, quality, errors)
    if not variance > 0.0:
        return math.inf
    if limit >= 0.0:
        return math.inf if (intensity - mean) ** 2 > limit * variance else variance
    return math.inf if intensity > IMPOSSIBLE * mean + math.sqrt(-limit * variance) else variance


@njit(cache=True, nogil=True)
def add_block(
    starts: Ints,
    group: NDArray[np.int32],
    intensity: Singles,
    fixed: Singles,
    gain: Singles,
    full: Singles,
    partiality: Singles,
    expected: Floats,
    limit: Floats,
    used: Bools,
    quality: Floats,
    errors: Floats,
    min_partiality: float,
    weight: Floats,
    weighted: Floats,
    squared: Floats,
    count: Ints,
    merged: Bools,
) -> None:
    """Add Σw, ΣwJ, ΣwJ² and the number by unique reflection; J = I/k, w = k²/σ².

    ``merged`` (n,) becomes true for the observations that were added.
    """
    for j in range(starts.shape[0] - 1):
        if not used[j]:
            continue
        for i in range(starts[j], starts[j + 1]):
            if partiality[i] < min_partiality:
                continue
            g, y = group[i], np.float64(intensity[i])
            v = own_variance(y, fixed[i], gain[i], full[i], partiality[i], expected[g], limit[g], quality[j], errors)
            if math.isinf(v):
                continue
            k = np.float64(full[i]) * partiality[i]
            weight[g] += k * k / v
            weighted[g] += k * y / v
            squared[g] += y * y / v
            count[g] += 1
            merged[i] = True


@njit(cache=True, nogil=True)
def others(
    observed: Observed,
    full: Singles,
    partiality: Singles,
    means: Means,
    errors: Floats,
    quality: float,
    min_partiality: float,
    used: bool,
    compared: Compared,
) -> float:
    """Write mean and weight of each reflection without the lattice's own observation; return the lattice's share of the weights.

    All observations are of one lattice; one that sees a reflection twice takes one observation out at a time. The share is the
    mean over the observations that the reference holds (0: it holds none).
    """
    share, n = 0.0, 0
    for i in range(full.shape[0]):
        g = observed.group[i]
        w, wj = means.weight[g], means.weight[g] * means.mean[g]
        if used and partiality[i] >= min_partiality:
            v = own_variance(
                observed.intensity[i],
                observed.fixed[i],
                observed.gain[i],
                full[i],
                partiality[i],
                means.expected[g],
                means.limit[g],
                quality,
                errors,
            )
            if not math.isinf(v):
                k = np.float64(full[i]) * partiality[i]
                share, n = share + min(1.0, k * k / (v * w)), n + 1
                w -= k * k / v
                wj -= k * observed.intensity[i] / v
        # what rounding leaves of a reflection's only observation is nothing
        known = w > 1e-9 * means.weight[g]
        f, more = means.factor[g], means.prior_weight[g]
        w, wj = (w / (f * f), wj / f) if known else (0.0, 0.0)
        compared.weight[i], compared.mean[i] = 0.0, 0.0
        if known or means.given[g]:
            # means as noisy as they are, without what is expected, would let all scales shrink
            compared.weight[i] = w + more
            compared.mean[i] = (wj + more * means.prior[g]) / (w + more)
    return share / n if n else 0.0


@njit(cache=True, nogil=True)
def lattice_variances(
    observed: Observed,
    full: Singles | Floats,
    partiality: Singles | Floats,
    quality: float,
    errors: Floats,
    compared: Compared,
) -> None:
    """Write the variance of I - k J of each observation, infinite where nothing is there to compare to."""
    for i in range(full.shape[0]):
        if compared.weight[i] <= 0.0:
            compared.variance[i] = math.inf
            continue
        k = np.float64(full[i]) * partiality[i]
        own = observation_variance(observed.fixed[i], observed.gain[i], full[i], partiality[i], compared.mean[i], quality, errors)
        compared.variance[i] = own + k * k / compared.weight[i]

"""Median and mode of the pixels without a photon, from a histogram in which the peak of one photon may overlap with theirs."""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from xfelproc.kernels.zero_peak import ambiguous

Counts = NDArray[np.uint32]
Floats = NDArray[np.float64]


@njit(cache=True, nogil=True)
def normal_tail(z: float) -> float:
    """Return the fraction of a normal distribution beyond z σ."""
    return 0.5 * math.erfc(z * math.sqrt(0.5))


@njit(cache=True, nogil=True)
def count_below(cumulative: Floats, bound: float) -> float:
    """Return the pixels below a bound (bins; the centre of bin b is b), a bin that it cuts counted in part.

    ``cumulative`` (bin + 1,) are the pixels before each bin.
    """
    edge = min(max(bound + 0.5, 0.0), len(cumulative) - 1.0)
    whole = min(int(edge), len(cumulative) - 2)
    return float(cumulative[whole] + (edge - whole) * (cumulative[whole + 1] - cumulative[whole]))


@njit(cache=True, nogil=True)
def occupancy(cumulative: Floats, at: float, sigma: float, gain: float) -> tuple[float, float, float]:
    """Return the pixels with no, one and two photons, from the counts between the points midway between their peaks."""
    q = normal_tail(0.5 * gain / sigma)
    n0 = count_below(cumulative, at + 0.5 * gain)
    n1 = count_below(cumulative, at + 1.5 * gain)
    n2 = count_below(cumulative, at + 2.5 * gain)
    b0, b1, b2 = n0, n1 - n0, n2 - n1
    a0, a1, a2 = b0, b1, b2
    # each peak loses q to either side: (b = M a), solved by iteration
    for _ in range(12):
        a0 = max(0.0, (b0 - q * a1) / (1.0 - q))
        a1 = max(0.0, (b1 - q * (a0 + a2)) / (1.0 - 2.0 * q))
        a2 = max(0.0, (b2 - q * a1) / (1.0 - 2.0 * q))
    return a0, a1, a2


@njit(cache=True, nogil=True)
def without_fit(counts: Counts, mode: bool, start: float, sigma: float, gain: float) -> tuple[float, float]:
    """Return median or mode, and its standard error, in bins."""
    cumulative = np.zeros(len(counts) + 1)
    for b in range(len(counts)):
        cumulative[b + 1] = cumulative[b] + counts[b]
    at, error = median_of(counts, cumulative, start, sigma, gain)
    return mode_of(counts, cumulative, at, sigma, gain) if mode and error < np.inf else (at, error)


@njit(cache=True, nogil=True)
def median_of(counts: Counts, cumulative: Floats, start: float, sigma: float, gain: float) -> tuple[float, float]:
    """Return the median of the pixels without a photon, and its standard error, in bins."""
    at = start
    a0 = a1 = a2 = 0.0
    separation = gain / sigma
    if separation < MIN_SEPARATION:
        return at, np.inf
    for _ in range(6):
        if separation > 8.0:
            a0, a1, a2 = count_below(cumulative, at + 4.0 * sigma), 0.0, 0.0
        else:
            a0, a1, a2 = occupancy(cumulative, at, sigma, gain)
        rank = 0.5 * a0 + a1 * normal_tail(separation) + a2 * normal_tail(2.0 * separation)
        b = np.searchsorted(cumulative, rank) - 1
        if b < 0 or b >= len(counts) or counts[b] == 0:
            return at, np.inf
        at = b - 0.5 + (rank - cumulative[b]) / counts[b]
    if abs(at - start) > 2.0 * sigma or ambiguous(counts, at, sigma, gain, a0):
        return at, np.inf
    return at, 1.2533 * sigma / math.sqrt(max(a0, 1e-9)) * overlap(a0, a1, separation)


MIN_SEPARATION = 2.5
"""Gain over noise below which no method but the fit tells photons from an offset."""


@njit(cache=True, nogil=True)
def overlap(a0: float, a1: float, separation: float) -> float:
    """Return by how much the overlap with the peak of one photon widens the error."""
    q = normal_tail(0.5 * separation)
    return math.sqrt(1.0 + 12.0 * q * (1.0 + a1 / max(a0, 1e-9)))


@njit(cache=True, nogil=True)
def mode_of(counts: Counts, cumulative: Floats, start: float, sigma: float, gain: float) -> tuple[float, float]:
    """Return the highest point of the histogram smoothed by a Gaussian of 1.2 σ, near its lowest peak, in bins.

    It is the mean shift's fixed point: mean(ψ(x - at)) = 0 with ψ(d) = d exp(-d² / 2h²). What the peaks of one and two photons
    add to the mean is reckoned with.
    """
    h = 1.2 * sigma
    separation = gain / sigma
    if separation < MIN_SEPARATION:
        return start, np.inf
    a0 = a1 = a2 = 0.0
    broad = 1.0 + sigma * sigma / (h * h)
    at = start
    for _ in range(30):
        if separation > 8.0:
            a0, a1, a2 = count_below(cumulative, at + 4.0 * sigma), 0.0, 0.0
        else:
            a0, a1, a2 = occupancy(cumulative, at, sigma, gain)
        first, last = max(0, int(at - 4.5 * sigma)), min(len(counts), int(at + 4.5 * sigma) + 2)
        total = 0.0
        for b in range(first, last):
            d = b - at
            total += counts[b] * d * math.exp(-0.5 * d * d / (h * h))
        for k, a in ((1.0, a1), (2.0, a2)):
            m = k * gain
            if a > 0.0 and m < 12.0 * sigma:
                total -= a * m * broad**-1.5 * math.exp(-0.5 * m * m / (sigma * sigma + h * h))
        if a0 <= 0.0:
            return at, np.inf
        step = total * broad**1.5 / a0
        at += min(max(step, -sigma), sigma)
        if abs(step) < 1e-4 * sigma:
            break
    if abs(at - start) > sigma or ambiguous(counts, at, sigma, gain, a0):
        return at, np.inf
    efficiency = broad**3 / (1.0 + 2.0 * sigma * sigma / (h * h)) ** 1.5
    return at, math.sqrt(efficiency) * sigma / math.sqrt(max(a0, 1e-9)) * overlap(a0, a1, separation)

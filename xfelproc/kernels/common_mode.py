"""The offset that a group of pixels has in common on one frame, from a histogram of the group.

Photons only ever add to a pixel. All methods therefore start from the lowest peak of the histogram, that of the pixels without a
photon, and reckon with the peaks of one, two, ... photons above it.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from xfelproc.kernels.pixel_histogram import N_BINS, fill_histogram
from xfelproc.kernels.zero_peak import ambiguous, fit_zero_peak

Floats32 = NDArray[np.float32]
Counts = NDArray[np.uint32]
Floats = NDArray[np.float64]

BINS_A_SIGMA = 4.0
ROUGH = 4000
"""Pixels from which the rough offset is taken, at least; where there are so many."""
MARGIN = 6.0
"""σ below the lowest offset that is looked for."""

MEDIAN, MODE, PEAK, UNBONDED, FLANK = range(5)
METHODS = {"median": MEDIAN, "mode": MODE, "peak": PEAK, "unbonded": UNBONDED}
"""`FLANK`, the lower flank of the zero-photon peak alone, needs no gain; it is used while that is estimated."""


@njit(cache=True, nogil=True)
def group_offset(
    adu: Floats32,
    use: NDArray[np.uint8],
    scale: Floats32,
    bounds: NDArray[np.int32],
    method: int,
    constants: Floats,
    factor: float,
    scratch: Counts,
) -> tuple[float, float]:
    """Return the common offset of a rectangle of pixels, and its standard error.

    Parameters
    ----------
    adu
        (panel, slow, fast) values less the pedestal, ADU, of the stage in which pixels have few photons. What is NaN or far
        outside does not serve.
    use
        (panel, slow, fast), 0 where the pixel may serve.
    scale
        (panel, slow, fast) inverse gain of the pixels; of which unit is told by that of the group's gain.
    bounds
        (5,) panel, first and last slow, first and last fast.
    method
        One of `METHODS`.
    constants
        (5,) noise (ADU rms), gain of the group (inf: no photons are reckoned with), excess kurtosis of the noise, largest
        offset (ADU), largest standard error (in gains; in ADU where the gain is inf).
    factor
        What the inverse gain has to be multiplied with to be photons an ADU.
    scratch
        Of `pixel_histogram.scratch_size`.

    Returns
    -------
    tuple
        Offset and its standard error in ADU; (0, inf) where the offset cannot be determined.
    """
    sigma, unit, kurtosis, reach, limit = constants
    gain = unit / factor
    if method == UNBONDED:
        offset, error = mean_of_few(adu, use, bounds, sigma, reach)
    else:
        offset, error = from_histograms(adu, use, scale, bounds, method, sigma, gain, unit, kurtosis, reach, scratch)
    if not (error < np.inf and error <= (limit * gain if gain < np.inf else limit) and abs(offset) <= reach):
        return 0.0, np.inf
    return offset, error


@njit(cache=True, nogil=True)
def from_histograms(
    adu: Floats32,
    use: NDArray[np.uint8],
    scale: Floats32,
    bounds: NDArray[np.int32],
    method: int,
    sigma: float,
    gain: float,
    unit: float,
    kurtosis: float,
    reach: float,
    scratch: Counts,
) -> tuple[float, float]:
    """Return offset and standard error (ADU) by one of the methods that make a histogram.

    A rough offset is taken from some of the rows. Then the values less it are brought to one gain, so that k photons are the same
    in all pixels. ``gain`` is in ADU a photon, ``unit`` the same in the unit of the inverse of ``scale``.
    """
    width = max(sigma / BINS_A_SIGMA, (2.0 * reach + 2.0 * MARGIN * sigma) / (N_BINS // 2))
    low = -reach - MARGIN * sigma
    rows, columns = bounds[2] - bounds[1], bounds[4] - bounds[3]
    step = max(1, min(rows // 8, rows * columns // ROUGH))
    fill_histogram(adu, use, scale, bounds, step, 0.0, 0.0, low, 1.0 / width, scratch)
    counts = scratch[:N_BINS]
    start = lowest_peak(counts, sigma / width, gain / width)
    if start < 0.0:
        return 0.0, np.inf
    rough = low + (centroid(counts, start, sigma / width) + 0.5) * width
    # room below for the peak that would be there if this were not the lowest
    width = sigma / BINS_A_SIGMA
    low = -min(gain, 20.0 * sigma) - MARGIN * sigma
    fill_histogram(adu, use, scale, bounds, 1, rough, unit if unit < np.inf else 0.0, low, 1.0 / width, scratch)
    # bins from here on: the first one's centre is 0
    s, g = sigma / width, gain / width
    start = lowest_peak(counts, s, g)
    if start < 0.0:
        return 0.0, np.inf
    if method == PEAK:
        at, error = fit_zero_peak(counts, start, s, g, kurtosis, 4.0)
    elif method == FLANK:
        at, error = fit_zero_peak(counts, start, s, np.inf, kurtosis, 1.0)
    else:
        at, error = without_fit(counts, method, start, s, g)
    return rough + low + (at + 0.5) * width, error * width


@njit(cache=True, nogil=True)
def centroid(counts: Counts, start: float, sigma: float) -> float:
    """Return the mean of the counts within 1 σ, from ``start`` on, three times over."""
    at = start
    for _ in range(3):
        n, total = 0.0, 0.0
        for b in range(max(0, round(at - sigma)), min(len(counts), round(at + sigma) + 1)):
            n += counts[b]
            total += counts[b] * (b - at)
        if n > 0.0:
            at += total / n
    return at


@njit(cache=True, nogil=True)
def lowest_peak(counts: Counts, sigma: float, gain: float) -> float:
    """Return the bin of the lowest peak that holds a few pixels in a thousand; -1 where there are too few pixels.

    Peaks are those of sums over ± σ, highest within 1.5 σ. One that the next photon's peak drowns is looked for a gain below.
    """
    n = len(counts)
    total = 0.0
    for b in range(n):
        total += counts[b]
    if total < MIN_PIXELS:
        return -1.0
    half = max(1, round(sigma))
    reach = max(2, round(1.5 * sigma))
    least = max(4.0, 0.004 * total)
    sums = np.zeros(n + reach + 1)
    running = 0.0
    for b in range(-half, n):
        if b + half < n:
            running += counts[b + half]
        if b - half - 1 >= 0:
            running -= counts[b - half - 1]
        if b >= 0:
            sums[b] = running
    for b in range(n):
        if sums[b] < least:
            continue
        highest = True
        for other in range(max(0, b - reach), b + reach + 1):
            if sums[other] > sums[b]:
                highest = False
                break
        if highest:
            return below(sums, b, sigma, gain, least)
    return -1.0


MIN_PIXELS = 30


@njit(cache=True, nogil=True)
def below(sums: NDArray[np.float64], peak: int, sigma: float, gain: float, least: float) -> float:
    """Return the bin of the peak, or of one whole photons below it of which only the flank shows."""
    at = float(peak)
    if gain > 8.0 * sigma:
        return at
    while True:
        lower = at - gain
        b = round(lower)
        if b < 0:
            return at
        tail = sums[round(at)] * math.exp(-0.5 * (gain / sigma - 0.8) ** 2) if gain > 0.8 * sigma else sums[round(at)]
        if sums[b] - tail < least:
            return at
        at = lower


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
def without_fit(counts: Counts, method: int, start: float, sigma: float, gain: float) -> tuple[float, float]:
    """Return median or mode, and its standard error, in bins."""
    cumulative = np.zeros(len(counts) + 1)
    for b in range(len(counts)):
        cumulative[b + 1] = cumulative[b] + counts[b]
    at, error = median_of(counts, cumulative, start, sigma, gain)
    return mode_of(counts, cumulative, at, sigma, gain) if method == MODE and error < np.inf else (at, error)


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


@njit(cache=True, nogil=True)
def mean_of_few(
    adu: Floats32, use: NDArray[np.uint8], bounds: NDArray[np.int32], sigma: float, max_offset: float
) -> tuple[float, float]:
    """Return the mean of the usable pixels that are within 4 σ of their median, and its standard error.

    For a few pixels that see no photons.
    """
    p, y0, y1, x0, x1 = bounds
    values = np.empty((y1 - y0) * (x1 - x0), dtype=np.float32)
    n = 0
    reach = np.float32(max_offset + MARGIN * sigma)
    for y in range(y0, y1):
        row, serves = adu[p, y], use[p, y]
        for x in range(x0, x1):
            if serves[x] == 0 and abs(row[x]) <= reach:
                values[n] = row[x]
                n += 1
    if n < 3:
        return 0.0, np.inf
    middle = np.median(values[:n])
    total, kept = 0.0, 0
    for k in range(n):
        if abs(values[k] - middle) <= 4.0 * sigma:
            total += values[k]
            kept += 1
    if 2 * kept < n or kept < 3:
        return 0.0, np.inf
    return total / kept, sigma / math.sqrt(kept)

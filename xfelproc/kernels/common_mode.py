"""The offset that a group of pixels has in common on one frame, from a histogram of the group.

Photons only ever add to a pixel. All methods therefore start from the lowest peak of the histogram, that of the pixels without a
photon, and reckon with the peaks of one, two, ... photons above it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from xfelproc.kernels.overlapping_peaks import without_fit
from xfelproc.kernels.peak_windows import (
    CLEARANCE,
    FIXED,
    MOST,
    SEPARATED,
    Windows,
    histogram_sums,
    newton_step,
    no_windows,
    peak_numbers,
    window_shape,
    window_sums,
)
from xfelproc.kernels.pixel_histogram import N_BINS, fill_histogram
from xfelproc.kernels.zero_peak import ambiguous, fit_zero_peak

Floats32 = NDArray[np.float32]
Counts = NDArray[np.uint32]
Floats = NDArray[np.float64]

BINS_A_SIGMA = 4.0
ROUGH = 8000
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
    method: int,
    constants: Floats,
    factor: float,
    scratch: Counts,
) -> tuple[float, float]:
    """Return the common offset of a rectangle of pixels, and its standard error.

    Parameters
    ----------
    adu
        (slow, fast) values less the pedestal, ADU, of the stage in which pixels have few photons. What is NaN or far outside does
        not serve.
    use
        (slow, fast), 0 where the pixel may serve.
    scale
        (slow, fast) inverse gain of the pixels; of which unit is told by that of the group's gain.
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
    step = sampled_rows(*adu.shape)
    found = begin_offset(adu, use, scale, method, constants, factor, step, scratch)
    if found.state == FOUND:
        number, total = window_sums(adu, use, scale, found.zero, found.norm, found.windows)
        return finish_offset(found, number, total, constants, factor)
    if found.state == ALL:
        return offset_of_all(adu, use, scale, method, constants, factor, found.zero, scratch)
    return 0.0, np.inf


UNDETERMINED, FOUND, ALL = range(3)
"""Nothing is found; windows are; all pixels have to be looked at together."""


class Found(NamedTuple):
    """What some of the rows tell: where the lowest peak is (``zero``, ADU), windows, and what `window_sums` takes as ``norm``."""

    state: int
    zero: float
    norm: float
    windows: Windows


@njit(cache=True, nogil=True)
def sampled_rows(rows: int, columns: int) -> int:
    """Return the distance of the rows from which a rough offset is taken."""
    return max(1, min(rows // 8, rows * columns // ROUGH))


@njit(cache=True, nogil=True)
def begin_offset(
    adu: Floats32,
    use: NDArray[np.uint8],
    scale: Floats32,
    method: int,
    constants: Floats,
    factor: float,
    step: int,
    scratch: Counts,
) -> Found:
    """Return what a sample of rows tells (`is_sampled`), by a histogram of their values; others are not looked at.

    Where the peaks of photons are apart, values less a rough offset are then brought to one gain, so that k photons are the same in
    all pixels, and windows laid about the peaks of their histogram.
    """
    sigma, unit = constants[0], constants[1]
    gain = unit / factor
    nothing = Found(UNDETERMINED, 0.0, 0.0, no_windows())
    if method == UNBONDED:
        return Found(ALL, 0.0, 0.0, no_windows())
    rough, found = rough_offset(adu, use, scale, constants, factor, step, scratch)
    if not found:
        return nothing if step == 1 else Found(ALL, np.nan, 0.0, no_windows())
    if method == FLANK or gain < SEPARATED * sigma:
        return Found(ALL, rough, 0.0, no_windows())
    low, width, norm = fill_peaks(adu, use, scale, step, rough, sigma, gain, unit, scratch)
    counts = scratch[:N_BINS]
    start = lowest_peak(counts, sigma / width, gain / width)
    if start < 0.0:
        return nothing
    windows, at, found = windows_at(counts, start, sigma / width, gain / width, method)
    return Found(FOUND, rough + low + (at + 0.5) * width, norm / sigma, windows) if found else nothing


@njit(cache=True, nogil=True)
def rough_offset(
    adu: Floats32,
    use: NDArray[np.uint8],
    scale: Floats32,
    constants: Floats,
    factor: float,
    step: int,
    scratch: Counts,
) -> tuple[float, bool]:
    """Return about the offset (ADU) by a histogram of values as they are, of a sample of rows; and whether it has a lowest peak."""
    sigma, unit, _, reach, _ = constants
    width = max(sigma / BINS_A_SIGMA, (2.0 * reach + 2.0 * MARGIN * sigma) / (N_BINS // 2))
    low = -reach - MARGIN * sigma
    fill_histogram(adu, use, scale, step, 0.0, 0.0, low, 1.0 / width, scratch)
    counts = scratch[:N_BINS]
    start = lowest_peak(counts, sigma / width, unit / factor / width)
    if start < 0.0:
        return 0.0, False
    return low + (centroid(counts, start, sigma / width) + 0.5) * width, True


@njit(cache=True, nogil=True)
def fill_peaks(
    adu: Floats32,
    use: NDArray[np.uint8],
    scale: Floats32,
    step: int,
    rough: float,
    sigma: float,
    gain: float,
    unit: float,
    scratch: Counts,
) -> tuple[float, float, float]:
    """Count values less a rough offset, all of one gain.

    Where bin 0 begins and a bin's width (ADU) are returned, and what inverse gains were multiplied with.

    ``gain`` is in ADU a photon, ``unit`` the same in the unit of the inverse of ``scale``.
    """
    width = sigma / BINS_A_SIGMA
    # room below for the peak that would be there if this were not the lowest
    low = -min(gain, 20.0 * sigma) - MARGIN * sigma
    norm = unit if unit < np.inf else 0.0
    fill_histogram(adu, use, scale, step, rough, norm, low, 1.0 / width, scratch)
    return low, width, norm


@njit(cache=True, nogil=True)
def finish_offset(found: Found, number: int, total: int, constants: Floats, factor: float) -> tuple[float, float]:
    """Return offset and standard error, as `group_offset`, of what `window_sums` of all pixels are."""
    if found.state != FOUND:
        return 0.0, np.inf
    sigma = constants[0]
    shift, error = newton_step(float(number), total / FIXED, found.windows)
    return within_bounds(found.zero + shift * sigma, error * sigma, constants, factor)


@njit(cache=True, nogil=True)
def offset_of_all(
    adu: Floats32,
    use: NDArray[np.uint8],
    scale: Floats32,
    method: int,
    constants: Floats,
    factor: float,
    rough: float,
    scratch: Counts,
) -> tuple[float, float]:
    """Return offset and standard error, as `group_offset`, of all pixels together.

    ``rough`` is about the offset; NaN: it is unknown, as a sample of rows had too few pixels.
    """
    sigma, unit, kurtosis, reach, _ = constants
    gain = unit / factor
    if method == UNBONDED:
        offset, error = mean_of_few(adu, use, sigma, reach)
        return within_bounds(offset, error, constants, factor)
    if math.isnan(rough):
        rough, found = rough_offset(adu, use, scale, constants, factor, 1, scratch)
        if not found:
            return 0.0, np.inf
    low, width, _ = fill_peaks(adu, use, scale, 1, rough, sigma, gain, unit, scratch)
    # bins from here on: the first one's centre is 0
    s, g, counts = sigma / width, gain / width, scratch[:N_BINS]
    start = lowest_peak(counts, s, g)
    if start < 0.0:
        return 0.0, np.inf
    if method == PEAK:
        at, error = fit_zero_peak(counts, start, s, g, kurtosis, 4.0)
    elif method == FLANK:
        at, error = fit_zero_peak(counts, start, s, np.inf, kurtosis, 1.0)
    else:
        at, error = without_fit(counts, method == MODE, start, s, g)
    return within_bounds(rough + low + (at + 0.5) * width, error * width, constants, factor)


@njit(cache=True, nogil=True)
def within_bounds(offset: float, error: float, constants: Floats, factor: float) -> tuple[float, float]:
    """Return them, or (0, inf) where they are beyond the largest offset or the largest error."""
    _, unit, _, reach, limit = constants
    gain = unit / factor
    if not (error < np.inf and error <= (limit * gain if gain < np.inf else limit) and abs(offset) <= reach):
        return 0.0, np.inf
    return offset, error


@njit(cache=True, nogil=True)
def windows_at(counts: Counts, start: float, sigma: float, gain: float, method: int) -> tuple[Windows, float, bool]:
    """Return the windows of a method, where the lowest peak is (bins) by the mean about peaks, and whether it is one.

    It is none if it is far from ``start``, or may be that of one photon.
    """
    widest, bent, step = 3.0, 0.0, 0.0
    if method == MODE:
        widest, bent = 2.6, 1.0
    elif method == MEDIAN:
        step = 1.0
    half = min(widest, gain / sigma - CLEARANCE)
    numbers = np.empty(MOST)
    at = centroid(counts, start, sigma)
    last = peak_numbers(counts, at, gain, numbers)
    mean = window_shape(half, gain / sigma, numbers, last, 1.0, 0.0, 0.0)
    error = np.inf
    for _ in range(3):
        number, total = histogram_sums(counts, at, sigma, mean)
        shift, error = newton_step(number, total, mean)
        at += shift * sigma
    found = abs(at - start) <= 1.5 * sigma and error < np.inf and not ambiguous(counts, at, sigma, gain, numbers[0])
    if method == PEAK:
        return mean, at, found
    return window_shape(half, gain / sigma, numbers, 0, 1.0 - step, bent / (half * half), step), at, found


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
    n, total = len(counts), counts.sum()
    if total < MIN_PIXELS:
        return -1.0
    half = max(1, round(sigma))
    reach = max(2, round(1.5 * sigma))
    least = max(4.0, 0.004 * total)
    sums = np.zeros(n + reach + 1, dtype=np.int64)
    running = np.int64(0)
    for b in range(half):
        running += np.int64(counts[b])
    for ahead in range(n + reach):
        # the sum over ± σ of this bin, and then whether one that is `reach` bins back is the highest around
        if ahead + half < n:
            running += np.int64(counts[ahead + half])
        if ahead - half - 1 >= 0 and ahead - half - 1 < n:
            running -= np.int64(counts[ahead - half - 1])
        sums[ahead] = running if ahead < n else 0
        b = ahead - reach
        if b >= 0 and sums[b] >= least and sums[b] == sums[max(0, b - reach) : ahead + 1].max():
            return below(sums, b, sigma, gain, least)
    return -1.0


MIN_PIXELS = 30


@njit(cache=True, nogil=True)
def below(sums: NDArray[np.int64], peak: int, sigma: float, gain: float, least: float) -> float:
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
def mean_of_few(adu: Floats32, use: NDArray[np.uint8], sigma: float, max_offset: float) -> tuple[float, float]:
    """Return the mean of the usable pixels that are within 4 σ of their median, and its standard error.

    For a few pixels that see no photons.
    """
    values = np.empty(adu.size, dtype=np.float32)
    n = 0
    reach = np.float32(max_offset + MARGIN * sigma)
    for y in range(adu.shape[0]):
        row, serves = adu[y], use[y]
        for x in range(len(row)):
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

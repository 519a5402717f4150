"""Fit of the peaks of zero, one, two, ... photons to a histogram: where is zero?

The numbers of pixels with k photons are free, so that nothing is assumed of how the photons are spread over the pixels. Each peak
is a Gaussian a gain above the one before it. Where peaks are far apart, charges shared by neighbours are a plateau between them.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Counts = NDArray[np.uint32]

MOST_PEAKS = 8
N_PARAMETERS = 2 * MOST_PEAKS + 4
FLOOR = 0.1
"""Counts a bin that belong to nothing: single stray pixels have a finite weight."""
SHARING = 6.0
"""Gain over noise from which a plateau between peaks can be told from them."""
APART = 8.0
"""Gain over noise from which peaks do not overlap."""
NOISE_PRIOR = 0.02
"""Relative standard error of the noise that is given."""
REACH = 5.0
ROUNDS = 20
SQRT_2PI = math.sqrt(2.0 * math.pi)


@njit(cache=True, nogil=True)
def fit_zero_peak(counts: Counts, start: float, sigma: float, gain: float, kurtosis: float, upper: float) -> tuple[float, float]:
    """Return the position of the zero-photon peak and its standard error, in bins; an error of inf where there is none.

    Maximum likelihood by Fisher scoring; the noise may differ from that given by a few per cent.

    Parameters
    ----------
    counts
        Histogram.
    start
        About where the peak is, to some 1.5 σ.
    sigma, gain
        Noise and distance of the peaks, in bins; a gain of inf: it is unknown, or there are no photons.
    kurtosis
        Excess kurtosis of the noise: pixels of different noise together are no Gaussian.
    upper
        σ above the peak to which a lone peak is fitted.
    """
    n_peaks, top = choose_peaks(counts, start, sigma, gain, upper)
    first = max(0, math.floor(start - REACH * sigma))
    last = min(len(counts), math.ceil(top) + 1)
    n_gaps = max(1, n_peaks - 1) if SHARING * sigma <= gain < np.inf else 0
    n = n_peaks + n_gaps + 2
    values = np.zeros(N_PARAMETERS)
    values[n - 2], values[n - 1] = sigma, start
    start_weights(counts, first, last, n_peaks, gain, values, n)
    matrix, rhs = np.zeros((n, n)), np.zeros(n)
    error, misfit = np.inf, 0.0
    for _ in range(ROUNDS):
        misfit = normal_equations(counts, first, last, n_peaks, n_gaps, gain, kurtosis, values, matrix, rhs)
        weight = 1.0 / (NOISE_PRIOR * sigma) ** 2
        matrix[n - 2, n - 2] += weight
        rhs[n - 2] += weight * (sigma - values[n - 2])
        if not solve(matrix, rhs):
            return start, np.inf
        error = 1.0 / matrix[n - 1, n - 1]
        step = min(max(rhs[n - 1], -0.5 * sigma), 0.5 * sigma)
        advance(values, rhs, n, step, sigma)
        if abs(step) < 0.03 * error:
            break
    else:
        return values[n - 1], np.inf
    at = values[n - 1]
    if abs(at - start) > 3.0 * sigma or ambiguous(counts, at, sigma, gain, values[0]):
        return at, np.inf
    freedom = max(1, last - first - n)
    return at, error * math.sqrt(max(1.0, misfit / freedom))


@njit(cache=True, nogil=True)
def choose_peaks(counts: Counts, start: float, sigma: float, gain: float, upper: float) -> tuple[int, float]:
    """Return the number of peaks that are fitted, and where the fit ends (bins).

    Peaks are added until they hold 95 % of the pixels, and the last one only spills into what is fitted; where peaks are apart,
    three fifths are enough.
    """
    n = len(counts)
    apart = gain > APART * sigma
    if apart and start + gain + upper * sigma >= n:
        return 1, min(start + upper * sigma, n - 1.0)
    total = 0.0
    for b in range(n):
        total += counts[b]
    enough = (0.6 if apart else 0.95) * total
    running, b, k = 0.0, 0, 0
    while True:
        bound = min(float(n), start + (k + 0.5) * gain)
        while b < bound:
            running += counts[b]
            b += 1
        if running >= enough or k + 2 >= MOST_PEAKS or start + (k + 2.0) * gain >= n:
            break
        k += 1
    if apart:
        return k + 1, start + k * gain + upper * sigma if k else start + upper * sigma
    return k + 2, start + (k + 0.5) * gain


@njit(cache=True, nogil=True)
def start_weights(counts: Counts, first: int, last: int, n_peaks: int, gain: float, values: Floats, n: int) -> None:
    """Write the numbers of pixels of each peak, by a few rounds of expectation and maximisation from equal shares."""
    sigma, at = values[n - 2], values[n - 1]
    shape = np.zeros((n_peaks, last - first))
    covered, total = np.zeros(n_peaks), 0.0
    for b in range(first, last):
        total += counts[b]
        for k in range(n_peaks):
            z = (b - at - k * gain) / sigma if k else (b - at) / sigma
            if abs(z) < REACH:
                shape[k, b - first] = math.exp(-0.5 * z * z) / (SQRT_2PI * sigma)
                covered[k] += shape[k, b - first]
    values[:n_peaks] = total / n_peaks
    gained = np.empty(n_peaks)
    for _ in range(6):
        gained[:] = 0.0
        for b in range(last - first):
            model = FLOOR
            for k in range(n_peaks):
                model += values[k] * shape[k, b]
            ratio = counts[first + b] / model
            for k in range(n_peaks):
                gained[k] += ratio * shape[k, b]
        for k in range(n_peaks):
            # a peak of which little is in the window is not known from it
            values[k] *= gained[k] / max(covered[k], 0.02)


@njit(cache=True, nogil=True)
def normal_equations(
    counts: Counts,
    first: int,
    last: int,
    n_peaks: int,
    n_gaps: int,
    gain: float,
    kurtosis: float,
    values: Floats,
    matrix: Floats,
    rhs: Floats,
) -> float:
    """Write Fisher's information and the gradient of the likelihood; return the sum of (counts - model)² / model.

    Parameters are the peaks' pixels, the gaps' pixels, noise and position.
    """
    n = n_peaks + n_gaps + 2
    sigma, at = values[n - 2], values[n - 1]
    matrix[:], rhs[:] = 0.0, 0.0
    slope, index = np.empty(n), np.empty(n, dtype=np.int64)
    misfit, fourth = 0.0, kurtosis / 24.0
    for b in range(first, last):
        model, by_sigma, by_at, m = FLOOR, 0.0, 0.0, 0
        x = (b - at) / sigma
        for k in range(n_peaks):
            z = x - k * gain / sigma if k else x
            if abs(z) > REACH:
                continue
            w, z2 = math.exp(-0.5 * z * z) / (SQRT_2PI * sigma), z * z
            # Gram and Charlier's correction for the kurtosis
            d = w * (1.0 + fourth * (z2 * z2 - 6.0 * z2 + 3.0))
            falls = z * (d - w * fourth * (4.0 * z2 - 12.0)) / sigma
            index[m], slope[m] = k, d
            m += 1
            model += values[k] * d
            by_at += values[k] * falls
            by_sigma += values[k] * (z * falls - d / sigma)
        for k in range(n_gaps):
            d = (above(x - k * gain / sigma) - above(x - (k + 1) * gain / sigma)) / gain
            if d > 0.0:
                index[m], slope[m] = n_peaks + k, d
                m += 1
                model += values[n_peaks + k] * d
        index[m], slope[m] = n - 2, by_sigma
        index[m + 1], slope[m + 1] = n - 1, by_at
        m += 2
        excess = (counts[b] - model) / model
        misfit += excess * excess * model
        for i in range(m):
            rhs[index[i]] += slope[i] * excess
            scaled = slope[i] / model
            for j in range(i + 1):
                matrix[index[i], index[j]] += scaled * slope[j]
    return misfit


@njit(cache=True, nogil=True)
def above(z: float) -> float:
    """Return the normal distribution function."""
    if z > REACH:
        return 1.0
    return 0.0 if z < -REACH else 0.5 * math.erfc(-z * math.sqrt(0.5))


@njit(cache=True, nogil=True)
def solve(matrix: Floats, rhs: Floats) -> bool:
    """Replace the lower triangle by its Cholesky factor and ``rhs`` by the solution; False where the matrix is singular.

    Parameters on which nothing depends stay as they are.
    """
    n = len(rhs)
    for i in range(n):
        if matrix[i, i] <= 0.0:
            matrix[i, :i] = 0.0
            matrix[i + 1 :, i] = 0.0
            matrix[i, i], rhs[i] = 1.0, 0.0
    for i in range(n):
        for j in range(i + 1):
            total = matrix[i, j]
            for k in range(j):
                total -= matrix[i, k] * matrix[j, k]
            if i > j:
                matrix[i, j] = total / matrix[j, j]
            elif total <= 1e-12 * matrix[i, i]:
                return False
            else:
                matrix[i, i] = math.sqrt(total)
    for i in range(n):
        for k in range(i):
            rhs[i] -= matrix[i, k] * rhs[k]
        rhs[i] /= matrix[i, i]
    for i in range(n - 1, -1, -1):
        for k in range(i + 1, n):
            rhs[i] -= matrix[k, i] * rhs[k]
        rhs[i] /= matrix[i, i]
    return True


@njit(cache=True, nogil=True)
def advance(values: Floats, step: Floats, n: int, shift: float, sigma: float) -> None:
    """Take a step. Numbers of pixels stay positive.

    Where the best number is negative the position is that at which the step of all parameters together leaves it alone, and so has
    not the bias of a fit whose numbers are bounded.
    """
    for k in range(n - 2):
        values[k] = max(values[k] + step[k], 0.2 * values[k])
    values[n - 2] = min(max(values[n - 2] + step[n - 2], 0.5 * sigma), 2.0 * sigma)
    values[n - 1] += shift


@njit(cache=True, nogil=True)
def ambiguous(counts: Counts, at: float, sigma: float, gain: float, pixels: float) -> bool:
    """Return whether a twentieth as many pixels as have no photon are a gain below them: is this the peak of zero photons?"""
    if gain > len(counts) or gain < 2.5 * sigma:
        return pixels <= 0.0
    half = min(0.5 * gain, 2.0 * sigma)
    found = 0.0
    for b in range(max(0, round(at - gain - half)), max(0, round(at - gain + half)) + 1):
        found += counts[b]
    found -= pixels * (above((half - gain) / sigma) - above((-half - gain) / sigma))
    return found > 0.05 * pixels + 5.0 * math.sqrt(pixels * above((half - gain) / sigma) + 1.0)

"""Periodicity of scattering vectors along directions, for indexing without a cell (Steller, Bolotovsky & Rossmann 1997)."""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from xfelproc.kernels.lattice_search import refine_vector

Doubles = NDArray[np.float64]
Singles = NDArray[np.float32]


@njit(cache=True, nogil=True)
def project_spots(directions: Singles, q: Singles, weight: Singles, q_limit: float, histograms: Singles) -> None:
    """Write to ``histograms`` (n, bins) the weighted counts of q · u between ±``q_limit``, directions u (n, 3), ``q`` (3, m)."""
    n_bins = histograms.shape[1]
    scale, shift = np.float32(n_bins / (2.0 * q_limit)), np.float32(0.5 * n_bins)
    qx, qy, qz = q[0], q[1], q[2]
    for i in range(directions.shape[0]):
        x, y, z = directions[i, 0] * scale, directions[i, 1] * scale, directions[i, 2] * scale
        row = histograms[i]
        row[:] = np.float32(0.0)
        for j in range(qx.shape[0]):
            place = int(qx[j] * x + qy[j] * y + qz[j] * z + shift)
            row[min(n_bins - 1, max(0, place))] += weight[j]


@njit(cache=True, nogil=True)
def spectrum_peaks(spectra: Singles, first: int, last: int, peak: NDArray[np.int64], power: Singles) -> None:
    """Write the two strongest local maxima of |F|² between frequencies ``first`` and ``last`` (exclusive) of each row.

    ``spectra`` (n, 2 f) holds real and imaginary parts in turn; ``peak`` and ``power`` are (n, 2), the power of a missing
    maximum is -1.
    """
    width = last - first + 2
    squares = np.empty(width, dtype=np.float32)
    for i in range(spectra.shape[0]):
        row = spectra[i, 2 * (first - 1) : 2 * (last + 1)]
        for k in range(width):
            squares[k] = row[2 * k] * row[2 * k] + row[2 * k + 1] * row[2 * k + 1]
        best, second = np.float32(-1.0), np.float32(-1.0)
        best_at, second_at = first, first
        for k in range(1, width - 1):
            here = squares[k]
            if here > second and here >= squares[k - 1] and here > squares[k + 1]:
                if here > best:
                    second, second_at = best, best_at
                    best, best_at = here, first - 1 + k
                else:
                    second, second_at = here, first - 1 + k
        peak[i, 0], peak[i, 1] = best_at, second_at
        power[i, 0], power[i, 1] = best, second


@njit(cache=True, nogil=True)
def refine_free_vectors(
    vectors: Doubles, q: Doubles, weight: Doubles, stretch: float, n_iterations: int, min_length: float, n_keep: int
) -> tuple[Doubles, Doubles]:
    """Refine candidate lattice vectors (k, 3) of free length, drop repeats (±), return the best ``n_keep`` and their scores.

    ``stretch`` is the relative σ by which a length may move from where it was found. Vectors shorter than ``min_length`` are
    dropped.
    """
    n = vectors.shape[0]
    refined = vectors.copy()
    score = np.empty(n)
    columns = np.ascontiguousarray(q.T)
    for i in range(n):
        v = refined[i]
        length = math.sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2])
        score[i] = refine_vector(v, columns, weight, length, (0.05 / (stretch * length)) ** 2, n_iterations)
    kept = np.empty((min(n_keep, n), 3))
    kept_score = np.empty(kept.shape[0])
    count = 0
    for i in np.argsort(-score):
        v = refined[i]
        length2 = v[0] * v[0] + v[1] * v[1] + v[2] * v[2]
        new = length2 >= min_length * min_length
        for k in range(count):
            plus = (v[0] - kept[k, 0]) ** 2 + (v[1] - kept[k, 1]) ** 2 + (v[2] - kept[k, 2]) ** 2
            minus = (v[0] + kept[k, 0]) ** 2 + (v[1] + kept[k, 1]) ** 2 + (v[2] + kept[k, 2]) ** 2
            if min(plus, minus) < 4e-4 * length2:
                new = False
                break
        if new:
            kept[count] = v
            kept_score[count] = score[i]
            count += 1
            if count == kept.shape[0]:
                break
    return kept[:count], kept_score[:count]

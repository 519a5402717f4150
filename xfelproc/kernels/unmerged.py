"""Kernel of the rows of an unmerged file: scaled observations, sorted by unique reflection."""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from xfelproc.kernels.error_model import observation_variance

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Ints = NDArray[np.int64]

N_COLUMNS = 15
"""h, k, l, isym, batch, I, σ, scale, partiality, fast, slow, polarisation, excitation error, panel, flags."""


@njit(cache=True, nogil=True)
def sorted_rows(
    starts: Ints,
    merged: NDArray[np.bool_],
    group: NDArray[np.int32],
    isym: NDArray[np.int16],
    intensity: Singles,
    fixed: Singles,
    gain: Singles,
    full: Singles,
    partiality: Singles,
    others: tuple[Singles, Singles, Singles, Singles],
    panel: NDArray[np.int16],
    flags: NDArray[np.uint16],
    hkl: NDArray[np.int32],
    expected: Floats,
    common: Floats,
    quality: Floats,
    terms: Floats,
    first_lattice: int,
) -> tuple[Singles, Ints]:
    """Return the rows (m, N_COLUMNS) of the m observations that are ``merged``, and their bounds by unique reflection (n + 1,).

    Those of one reflection are in the order of the lattices, the first of which has the number ``first_lattice``. ``others`` are
    fast, slow, polarisation and excitation error. ``hkl``, ``expected`` (the full intensity that variances are formed with) and
    ``common`` (the factor of the mean lattice, which scales are divided by) are of the unique reflections.
    """
    bounds = np.zeros(hkl.shape[0] + 1, dtype=np.int64)
    for i in range(group.shape[0]):
        if merged[i]:
            bounds[group[i] + 1] += 1
    for g in range(hkl.shape[0]):
        bounds[g + 1] += bounds[g]
    place = bounds[:-1].copy()
    rows = np.empty((bounds[-1], N_COLUMNS), dtype=np.float32)
    for j in range(starts.shape[0] - 1):
        for i in range(starts[j], starts[j + 1]):
            if not merged[i]:
                continue
            g = group[i]
            f, p = np.float64(full[i]), np.float64(partiality[i])
            own = f / common[g]
            v = observation_variance(np.float64(fixed[i]), np.float64(gain[i]), f, p, expected[g], quality[j], terms)
            row = place[g]
            place[g] += 1
            rows[row, 0], rows[row, 1], rows[row, 2] = hkl[g, 0], hkl[g, 1], hkl[g, 2]
            rows[row, 3], rows[row, 4] = isym[i], first_lattice + j + 1
            rows[row, 5], rows[row, 6] = intensity[i] / (own * p), math.sqrt(v) / (own * p)
            rows[row, 7], rows[row, 8] = own, p
            for c in range(4):
                rows[row, 9 + c] = others[c][i]
            rows[row, 13], rows[row, 14] = panel[i], flags[i]
    return rows, bounds


@njit(cache=True, nogil=True)
def place_rows(rows: Singles, bounds: NDArray[np.int32], place: Ints, out: Singles) -> None:
    """Copy rows that are sorted by reflection to where those of each reflection go on: ``place`` (n,), which moves on with them.

    ``bounds`` (n + 1,) are those of the reflections in ``rows``, counted from where the rows begin.
    """
    for g in range(place.shape[0]):
        for i in range(bounds[g] - bounds[0], bounds[g + 1] - bounds[0]):
            for c in range(N_COLUMNS):
                out[place[g], c] = rows[i, c]
            place[g] += 1


@njit(cache=True, nogil=True)
def extremes(
    rows: Singles,
    b: Floats,
    low: Floats,
    high: Floats,
    lowest: Singles,
    highest: Singles,
    present: NDArray[np.bool_],
) -> None:
    """Note the rows with the smallest and the largest value of each column, and of 1/d², in ``lowest`` and ``highest``.

    ``low`` and ``high`` (N_COLUMNS + 1,) are these values so far, infinite at first; ``b`` (3, 3) takes indices to 1/Å;
    ``present`` becomes true at each row's batch.
    """
    for i in range(rows.shape[0]):
        present[int(rows[i, 4])] = True
        for c in range(N_COLUMNS + 1):
            if c < N_COLUMNS:
                value = np.float64(rows[i, c])
            else:
                value = np.float64(0.0)
                for d in range(3):
                    q = b[d, 0] * rows[i, 0] + b[d, 1] * rows[i, 1] + b[d, 2] * rows[i, 2]
                    value += q * q
            if value < low[c]:
                low[c] = value
                lowest[c] = rows[i]
            if value > high[c]:
                high[c] = value
                highest[c] = rows[i]

"""Sums over dark frames, by pixel."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats32 = NDArray[np.float32]


@njit(cache=True, nogil=True)
def add_medians(
    frames: Floats32, least: int, n: NDArray[np.uint32], total: NDArray[np.float64], deviation: NDArray[np.float64]
) -> None:
    """Add each pixel's median over ``frames`` (frame, panel, slow, fast) to ``total``, and that of the absolute deviations from it.

    NaN is left out; of a pixel with fewer than ``least`` values nothing is added. ``n`` counts what is added.
    """
    sorted_values = np.empty(len(frames), dtype=np.float32)
    for p in range(frames.shape[1]):
        for y in range(frames.shape[2]):
            for x in range(frames.shape[3]):
                count = 0
                for f in range(len(frames)):
                    v = frames[f, p, y, x]
                    if not np.isnan(v):
                        insert(sorted_values, count, v)
                        count += 1
                if count < least:
                    continue
                median = middle_of(sorted_values, count)
                for i in range(count):
                    deviate = abs(sorted_values[i] - median)
                    insert(sorted_values, i, np.float32(deviate))
                n[p, y, x] += 1
                total[p, y, x] += median
                deviation[p, y, x] += middle_of(sorted_values, count)


@njit(cache=True, nogil=True)
def insert(ascending: Floats32, count: int, value: np.float32) -> None:
    """Put a value in its place among the first ``count`` ones, which are sorted."""
    i = count
    while i > 0 and ascending[i - 1] > value:
        ascending[i] = ascending[i - 1]
        i -= 1
    ascending[i] = value


@njit(cache=True, nogil=True)
def middle_of(ascending: Floats32, count: int) -> float:
    """Return the median of the first ``count`` values, which are sorted."""
    return 0.5 * (np.float64(ascending[(count - 1) // 2]) + np.float64(ascending[count // 2]))


@njit(cache=True, nogil=True)
def add_values(
    values: Floats32,
    centre: Floats32,
    reach: Floats32,
    n: NDArray[np.uint32],
    total: NDArray[np.float64],
    square: NDArray[np.float64],
) -> None:
    """Add values within ``reach`` of ``centre`` to the number, and their differences from ``rint(centre)`` to the sums.

    NaN is left out. Sums of whole numbers are exact below 2^53, so that they do not depend on the order.
    """
    for i in range(values.size):
        v, middle = values.flat[i], centre.flat[i]
        if not abs(v - middle) <= reach.flat[i]:
            continue
        d = np.float64(v) - np.rint(np.float64(middle))
        n.flat[i] += 1
        total.flat[i] += d
        square.flat[i] += d * d

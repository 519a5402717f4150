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


@njit(cache=True, nogil=True)
def subtract_common(
    values: Floats32, centre: Floats32, slows: NDArray[np.int64], fasts: NDArray[np.int64], offsets: NDArray[np.float64]
) -> None:
    """Subtract from each block of pixels the median of its differences from ``centre``, which goes to ``offsets``.

    Blocks are bounded by ``slows`` and ``fasts``; ``offsets`` is (panel, block, block). A quarter of the pixels serves.
    Offsets are rounded to sixteenths, so that differences of whole numbers stay exact; that of a block with few values is 0.
    """
    scratch = np.empty(values.shape[1] * values.shape[2], dtype=np.float32)
    for p in range(values.shape[0]):
        for i in range(len(slows) - 1):
            for j in range(len(fasts) - 1):
                n = 0
                for y in range(slows[i], slows[i + 1], 2):
                    for x in range(fasts[j] + (y // 2) % 2, fasts[j + 1], 2):
                        d = values[p, y, x] - centre[p, y, x]
                        if not np.isnan(d):
                            scratch[n] = d
                            n += 1
                offset = np.float32(np.rint(16.0 * np.median(scratch[:n])) / 16.0) if n >= 30 else np.float32(0.0)
                offsets[p, i, j] = offset
                for y in range(slows[i], slows[i + 1]):
                    for x in range(fasts[j], fasts[j + 1]):
                        values[p, y, x] -= offset


@njit(cache=True, nogil=True)
def add_common(values: Floats32, slows: NDArray[np.int64], fasts: NDArray[np.int64], offsets: NDArray[np.float64]) -> None:
    """Add to each block of pixels its offset; see `subtract_common`."""
    for p in range(values.shape[0]):
        for i in range(len(slows) - 1):
            for j in range(len(fasts) - 1):
                offset = np.float32(offsets[p, i, j])
                for y in range(slows[i], slows[i + 1]):
                    for x in range(fasts[j], fasts[j + 1]):
                        values[p, y, x] += offset


@njit(cache=True, nogil=True)
def add_extremes(values: Floats32, low: Floats32, high: Floats32) -> None:
    """Widen the range of values seen of each pixel; NaN is left out."""
    for p in range(values.shape[0]):
        for y in range(values.shape[1]):
            row, least, most = values[p, y], low[p, y], high[p, y]
            for x in range(len(row)):
                v = row[x]
                least[x] = v if v < least[x] else least[x]
                most[x] = v if v > most[x] else most[x]

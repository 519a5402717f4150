"""Binned sums and maxima of frames, in one pass over the pixels."""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray


@nb.njit(cache=True, nogil=True)
def accumulate_binned(
    pixels: NDArray[Any],
    mask: NDArray[np.uint8],
    trusted: NDArray[np.float64],
    binning: int,
    total: NDArray[np.float32],
    maximum: NDArray[np.float32],
) -> None:
    """Add a frame to ``total`` and raise ``maximum`` to it, both (panel, ceil(slow / binning), ceil(fast / binning)).

    ``pixels``, ``mask`` are (panel, slow, fast); masked pixels and those outside ``trusted`` (panel, 2) are left out.
    ``maximum`` is of single pixels, not of bins, so that small spots stay visible.
    """
    n_panels, n_slow, n_fast = pixels.shape
    added = np.empty(n_fast, dtype=np.float32)
    largest = np.empty(n_fast, dtype=np.float32)
    for p in range(n_panels):
        low, high = np.float32(trusted[p, 0]), np.float32(trusted[p, 1])
        for b in range(total.shape[1]):
            added[:] = 0.0
            largest[:] = 0.0
            for s in range(b * binning, min(n_slow, (b + 1) * binning)):
                row, keep = pixels[p, s], mask[p, s]
                for f in range(n_fast):  # along a row, without branches: vector instructions
                    value = np.float32(row[f])
                    value = value if (keep[f] == 0) & (value >= low) & (value <= high) else np.float32(0.0)
                    added[f] += value
                    largest[f] = max(largest[f], value)
            for c in range(total.shape[2]):
                for f in range(c * binning, min(n_fast, (c + 1) * binning)):
                    total[p, b, c] += added[f]
                    maximum[p, b, c] = max(maximum[p, b, c], largest[f])


@nb.njit(cache=True, nogil=True)
def accumulate_moments(
    pixels: NDArray[Any],
    mask: NDArray[np.uint8],
    limits: NDArray[Any],
    count: NDArray[np.uint32],
    total: NDArray[np.float64],
    square: NDArray[np.float64],
    maximum: NDArray[np.float32],
) -> None:
    """Add a frame to numbers, sums and sums of squares, and raise the maxima to it; all (panel, slow, fast).

    Pixels that are masked, NaN or below ``limits[panel, 0]`` are left out of everything, those above ``limits[panel, 1]``
    (saturated) of all but the maximum; those above ``limits[panel, 2]`` are no pixels. Maxima start from -inf.
    """
    for p in range(pixels.shape[0]):
        low, high, last = limits[p, 0], limits[p, 1], limits[p, 2]
        for y in range(pixels.shape[1]):
            row, keep = pixels[p, y], mask[p, y]
            n, sums, squares, largest = count[p, y], total[p, y], square[p, y], maximum[p, y]
            for x in range(len(row)):
                v = row[x]
                there = (keep[x] == 0) & (v >= low) & (v <= last)
                good = there & (v <= high)
                w = np.float64(v) if good else 0.0
                n[x] += np.uint32(1) if good else np.uint32(0)
                sums[x] += w
                squares[x] += w * w
                largest[x] = max(largest[x], np.float32(v) if there else largest[x])

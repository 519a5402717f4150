"""Strong pixels above the background at their distance from the beam centre (Barty et al. 2014, J. Appl. Cryst. 47, 1118)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray


@njit(cache=True, nogil=True)
def ring_sums(
    pixels: NDArray[Any],
    mask: NDArray[np.uint8],
    limits: NDArray[Any],
    ring: NDArray[np.uint16],
    step: int,
    clip: NDArray[np.float64],
    count: NDArray[np.int64],
    total: NDArray[np.float64],
    square: NDArray[np.float64],
) -> None:
    """Sum values and squares of the usable pixels of each ring up to ``clip[ring]``, every ``step``-th row."""
    count[:] = 0
    total[:] = 0.0
    square[:] = 0.0
    for p in range(pixels.shape[0]):
        low, high = limits[p, 0], limits[p, 1]
        for y in range(0, pixels.shape[1], step):
            for x in range(pixels.shape[2]):
                v = pixels[p, y, x]
                r = ring[p, y, x]
                if mask[p, y, x] == 0 and v >= low and v <= high and v <= clip[r]:
                    w = float(v)
                    count[r] += 1
                    total[r] += w
                    square[r] += w * w


@njit(cache=True, nogil=True)
def ring_statistics(
    pixels: NDArray[Any],
    mask: NDArray[np.uint8],
    limits: NDArray[Any],
    ring: NDArray[np.uint16],
    n_rings: int,
    cycles: int,
    n_clip: float,
    mean: NDArray[np.float64],
    sigma: NDArray[np.float64],
    count: NDArray[np.int64],
) -> None:
    """Fill mean, standard deviation and number of each ring, clipped ``cycles`` times ``n_clip`` σ above the mean.

    All but the last cycle use every fourth row; rings of few pixels there use what they have.
    """
    clip = np.full(n_rings, np.inf)
    total = np.empty(n_rings)
    square = np.empty(n_rings)
    for cycle in range(cycles + 1):
        ring_sums(pixels, mask, limits, ring, 1 if cycle == cycles else 4, clip, count, total, square)
        for r in range(n_rings):
            if count[r] == 0:
                mean[r] = 0.0
                sigma[r] = 0.0
                continue
            mean[r] = total[r] / count[r]
            sigma[r] = np.sqrt(max(0.0, square[r] / count[r] - mean[r] * mean[r]))
            # at least one count above the mean: all but empty rings would lose theirs
            clip[r] = mean[r] + max(n_clip * sigma[r], 1.0)


@njit(cache=True, nogil=True)
def strong_by_radius(
    pixels: NDArray[Any],
    mask: NDArray[np.uint8],
    limits: NDArray[Any],
    ring: NDArray[np.uint16],
    level: NDArray[np.float64],
    out: NDArray[np.int32],
) -> int:
    """List usable pixels above ``level[ring]``, by flat index, ascending; return their number."""
    _, height, width = pixels.shape
    n_found = 0
    for p in range(pixels.shape[0]):
        low, last = limits[p, 0], limits[p, 2]
        for y in range(height):
            for x in range(width):
                v = pixels[p, y, x]
                if v > level[ring[p, y, x]] and mask[p, y, x] == 0 and v >= low and v <= last:
                    out[n_found] = (p * height + y) * width + x
                    n_found += 1
    return n_found

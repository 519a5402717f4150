"""Parting components of several maxima along the valleys between them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from xfelproc.kernels.components import root_of

MIN_PIXELS = 8
"""Two maxima of 3 x 3 sums with a valley between them need as many pixels."""


@njit(cache=True, nogil=True)
def smoothed_count(pixels: NDArray[Any], mask: NDArray[np.uint8], limits: NDArray[Any], here: int) -> float:
    """Return the sum of the usable pixels of 3 x 3 around a flat index, scaled to nine; 0 if there are none."""
    _, height, width = pixels.shape
    p = here // (width * height)
    y = (here // width) % height
    x = here % width
    low, high, last = limits[p, 0], limits[p, 1], limits[p, 2]
    n = 0
    s = 0.0
    for yy in range(max(0, y - 1), min(height, y + 2)):
        for xx in range(max(0, x - 1), min(width, x + 2)):
            v = pixels[p, yy, xx]
            if mask[p, yy, xx] == 0 and v >= low and v <= last:
                n += 1
                s += min(v, high)
    return 9.0 * s / n if n > 0 else 0.0


@njit(cache=True, nogil=True)
def has_two_maxima(heights: NDArray[np.float64], place: NDArray[np.int32], columns: int, local: NDArray[np.int32], n: int) -> bool:
    """Return whether more than one of ``n`` pixels has no higher neighbour (of equal ones, the later is the higher).

    ``local[i]`` is the cell of pixel i in the grid ``place`` of rows of ``columns``: i there, -1 elsewhere and
    all around.
    """
    maxima = 0
    for i in range(n):
        highest = True
        for dy in range(-1, 2):
            for dx in range(-1, 2):
                j = place[local[i] + dy * columns + dx]
                if j >= 0 and (heights[j] > heights[i] or (heights[j] == heights[i] and j > i)):
                    highest = False
        maxima += highest
    return maxima > 1


@njit(cache=True, nogil=True)
def flood(
    heights: NDArray[np.float64],
    place: NDArray[np.int32],
    columns: int,
    local: NDArray[np.int32],
    n: int,
    n_sigma: float,
    depth: float,
    basin: NDArray[np.int32],
    top: NDArray[np.float64],
) -> int:
    """Fill basins from the top down; return how many remain, with ``basin[i]`` numbering them from 0.

    Where two basins meet, at the saddle's height s, they stay apart if the lower top t is above it by ``n_sigma √(t + s)`` and the
    valley takes away ``depth`` of the top's height over the component's lowest pixel; else they are one.
    """
    falling = np.argsort(-heights[:n], kind="mergesort")
    floor = heights[falling[n - 1]]
    parent = np.empty(n, dtype=np.int32)
    n_basins = 0
    basin[:n] = -1
    for i in falling:
        s = heights[i]
        best = -1
        best_height = -np.inf
        for dy in range(-1, 2):
            for dx in range(-1, 2):
                j = place[local[i] + dy * columns + dx]
                if j >= 0 and basin[j] >= 0 and heights[j] > best_height:
                    best = root_of(parent, basin[j])
                    best_height = heights[j]
        if best < 0:
            parent[n_basins] = n_basins
            top[n_basins] = s
            basin[i] = n_basins
            n_basins += 1
            continue
        for dy in range(-1, 2):
            for dx in range(-1, 2):
                j = place[local[i] + dy * columns + dx]
                if j < 0 or basin[j] < 0:
                    continue
                a, b = root_of(parent, best), root_of(parent, basin[j])
                if a == b:
                    continue
                t = min(top[a], top[b])
                if t - s <= n_sigma * np.sqrt(t + s) or t - s <= depth * (t - floor):
                    higher, lower = (a, b) if top[a] >= top[b] else (b, a)
                    parent[lower] = higher
        basin[i] = root_of(parent, best)
    number = np.full(n_basins, -1, dtype=np.int32)
    n_left = 0
    for i in range(n):
        r = root_of(parent, basin[i])
        if number[r] < 0:
            number[r] = n_left
            n_left += 1
        basin[i] = number[r]
    return n_left


@njit(cache=True, nogil=True)
def largest_component(start: NDArray[np.int32], max_pixels: int) -> int:
    """Return the number of pixels of the largest component that has at most ``max_pixels``."""
    largest = 0
    for c in range(len(start) - 1):
        if start[c + 1] - start[c] <= max_pixels:
            largest = max(largest, start[c + 1] - start[c])
    return largest


@njit(cache=True, nogil=True)
def split_components(
    pixels: NDArray[Any],
    mask: NDArray[np.uint8],
    limits: NDArray[Any],
    index: NDArray[np.int32],
    order: NDArray[np.int32],
    start: NDArray[np.int32],
    max_pixels: int,
    n_sigma: float,
    depth: float,
    label: NDArray[np.int32],
    split: NDArray[np.uint8],
) -> int:
    """Give the parts of components of several significant maxima labels of their own.

    The first part keeps the label, the others are numbered on from the last. Heights are 3 x 3 sums. ``split`` (by label,
    of as many entries as pixels) becomes 1 at all parts. Components of more than ``max_pixels`` stay whole.

    Returns
    -------
    int
        Number of components after splitting.
    """
    width = pixels.shape[2]
    n_components = len(start) - 1
    largest = largest_component(start, max_pixels)
    heights, top = np.empty(largest), np.empty(largest)
    local = np.empty(largest, dtype=np.int32)
    basin = np.empty(largest, dtype=np.int32)
    place = np.full((largest + 2) * (largest + 2), -1, dtype=np.int32)
    total = n_components
    for c in range(n_components):
        split[c] = 0
        n = start[c + 1] - start[c]
        if n < MIN_PIXELS or n > max_pixels:
            continue
        x0, x1 = width, 0
        for i in range(n):
            x = index[order[start[c] + i]] % width
            x0 = min(x0, x)
            x1 = max(x1, x)
        y0 = index[order[start[c]]] // width
        columns = x1 - x0 + 3
        for i in range(n):
            here = index[order[start[c] + i]]
            local[i] = (here // width - y0 + 1) * columns + here % width - x0 + 1
            place[local[i]] = i
            heights[i] = smoothed_count(pixels, mask, limits, here)
        if has_two_maxima(heights, place, columns, local, n):
            n_basins = flood(heights, place, columns, local, n, n_sigma, depth, basin, top)
            if n_basins > 1:
                split[c] = 1
                for i in range(n):
                    if basin[i] > 0:
                        label[order[start[c] + i]] = total + basin[i] - 1
                split[total : total + n_basins - 1] = 1
                total += n_basins - 1
        for i in range(n):
            place[local[i]] = -1
    return total

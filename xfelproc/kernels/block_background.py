"""Strong pixels by block means: a clipped mean and variance a block, then one cheap test of the 3 x 3 sum at every pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray


@njit(cache=True, nogil=True)
def column_sums(
    pixels: NDArray[Any],
    mask: NDArray[np.uint8],
    first: int,
    last: int,
    step: int,
    low: Any,
    high: NDArray[Any],
    count: NDArray[np.int32],
    total: NDArray[np.float32],
    square: NDArray[np.float32],
) -> None:
    """Sum values and their squares down each column over rows ``first:last:step`` of one panel.

    Masked pixels and values outside ``low`` to ``high[column]`` are left out.
    """
    width = pixels.shape[1]
    for x in range(width):
        count[x] = 0
        total[x] = 0.0
        square[x] = 0.0
    for y in range(first, last, step):
        row = pixels[y]
        bad = mask[y]
        for x in range(width):
            v = row[x]
            good = (bad[x] == 0) & (v >= low) & (v <= high[x])
            w = np.float32(v) if good else np.float32(0.0)
            count[x] += np.int32(good)
            total[x] += w
            square[x] += w * w


@njit(cache=True, nogil=True)
def strip_statistics(
    pixels: NDArray[Any],
    mask: NDArray[np.uint8],
    first: int,
    last: int,
    step: int,
    limits: NDArray[Any],
    edges: NDArray[np.int64],
    high: NDArray[Any],
    count: NDArray[np.int32],
    total: NDArray[np.float32],
    square: NDArray[np.float32],
    n_used: NDArray[np.int64],
    mean: NDArray[np.float64],
    variance: NDArray[np.float64],
) -> None:
    """Fill number, mean and variance of the pixels of each block of a strip of rows, clipped twice at 4 σ above the mean."""
    high[:] = limits[1]
    for cycle in range(3):
        column_sums(pixels, mask, first, last, step, limits[0], high, count, total, square)
        for b in range(len(edges) - 1):
            n = 0
            s = 0.0
            q = 0.0
            for x in range(edges[b], edges[b + 1]):
                n += count[x]
                s += total[x]
                q += square[x]
            n_used[b] = n
            mean[b] = s / n if n > 0 else 0.0
            variance[b] = max(0.0, q / n - mean[b] * mean[b]) if n > 0 else 0.0
            if cycle < 2 and n > 0:
                # a clip below one unit above the mean would cut away the counts of an all but empty block
                clip = mean[b] + max(4.0 * np.sqrt(variance[b]), 1.0)
                if clip < limits[1]:
                    for x in range(edges[b], edges[b + 1]):
                        high[x] = clip


@njit(cache=True, nogil=True)
def fill_blocks(n_used: NDArray[np.int64], n_needed: int, mean: NDArray[np.float64], variance: NDArray[np.float64]) -> bool:
    """Give blocks of too few pixels the statistics of the nearest block of the strip that has enough; return False if none has."""
    n = len(n_used)
    for b in range(n):
        if n_used[b] >= n_needed:
            continue
        found = -1
        for distance in range(1, n):
            if b - distance >= 0 and n_used[b - distance] >= n_needed:
                found = b - distance
            elif b + distance < n and n_used[b + distance] >= n_needed:
                found = b + distance
            if found >= 0:
                break
        if found < 0:
            return False
        mean[b] = mean[found]
        variance[b] = variance[found]
    return True


@njit(cache=True, nogil=True)
def clean_row(
    row: NDArray[Any], bad: NDArray[np.uint8], limits: NDArray[Any], ceiling: Any, fill: NDArray[Any], out: NDArray[Any]
) -> None:
    """Copy a row into ``out[1:-1]``: unusable pixels become ``fill``, values above ``ceiling`` become the ceiling."""
    low = limits[0]
    last = limits[2]
    for x in range(len(row)):
        v = row[x]
        good = (bad[x] == 0) & (v >= low) & (v <= last)
        c = min(v, ceiling)
        out[x + 1] = c if good else fill[x]
    out[0] = fill[0]
    out[len(row) + 1] = fill[len(row) - 1]


@njit(cache=True, nogil=True)
def outside_row(fill: NDArray[Any], out: NDArray[Any]) -> None:
    """Write what `clean_row` would of a row beyond the panel: ``fill`` alone."""
    width = len(out) - 2
    out[1:-1] = fill[:width]
    out[0] = fill[0]
    out[width + 1] = fill[width - 1]


@njit(cache=True, nogil=True)
def strong_by_blocks(
    pixels: NDArray[Any],
    mask: NDArray[np.uint8],
    limits: NDArray[Any],
    ceilings: NDArray[Any],
    block: int,
    step: int,
    n_sigma: float,
    work: NDArray[Any],
    high: NDArray[Any],
    out: NDArray[np.int32],
) -> int:
    """Find pixels whose 3 x 3 sum is above the background's.

    Longer than the house's 60 lines: the scratch of one pass over the rows is shared.

    Parameters
    ----------
    pixels, mask
        Stacks (panel, slow, fast).
    limits
        (panel, 3) of `pixels.pixel_limits`; ``ceilings`` (panel,), same type: values are clipped there.
    block
        Edge of the blocks, px; ``step``: every how many rows are sampled for their statistics.
    n_sigma
        Significance k: a pixel is strong where the sum S of the 3 x 3 pixels around it exceeds
        ``9 m + k √(9 σ²) + (k² - 1) / 6``, the last term being the skewness of counts (Cornish & Fisher 1938).
    work
        (8, fast + 2) scratch, int32 for integer pixels, else float32; ``high`` (fast,) scratch of the type of the pixels.
    out
        Receives the flat indices of strong pixels, ascending.

    Returns
    -------
    int
        Number of strong pixels.
    """
    n_panels, height, width = pixels.shape
    n_blocks = max(1, round(width / block))
    n_strips = max(1, round(height / block))
    edges = np.empty(n_blocks + 1, dtype=np.int64)
    for b in range(n_blocks + 1):
        edges[b] = b * width // n_blocks
    count = np.empty(width, dtype=np.int32)
    total = np.empty(width, dtype=np.float32)
    square = np.empty(width, dtype=np.float32)
    n_used = np.empty(n_blocks, dtype=np.int64)
    mean = np.empty(n_blocks, dtype=np.float64)
    variance = np.empty(n_blocks, dtype=np.float64)
    columns, difference, fill, threshold = work[3], work[4], work[5], work[6]
    words = np.zeros((width + 7) // 8, dtype=np.uint64)
    flags = words.view(np.uint8)
    skew = (n_sigma * n_sigma - 1.0) / 6.0
    n_found = 0
    for p in range(n_panels):
        for strip in range(n_strips):
            first = strip * height // n_strips
            last = (strip + 1) * height // n_strips
            area = (last - first) * (width // n_blocks)
            strip_statistics(
                pixels[p], mask[p], first, last, step, limits[p], edges, high, count, total, square, n_used, mean, variance
            )
            if step > 1 and n_used.min() * step * 4 < area:
                strip_statistics(
                    pixels[p], mask[p], first, last, 1, limits[p], edges, high, count, total, square, n_used, mean, variance
                )
            if not fill_blocks(n_used, min(50, area // 4), mean, variance):
                continue
            for b in range(n_blocks):
                sigma = np.sqrt(max(variance[b], mean[b], 0.0))
                t = 9.0 * mean[b] + 3.0 * n_sigma * sigma + skew
                for x in range(edges[b], edges[b + 1]):
                    threshold[x] = t
                    fill[x] = np.rint(mean[b])
            for y in (first - 1, first):
                if y >= 0:
                    clean_row(pixels[p, y], mask[p, y], limits[p], ceilings[p], fill, work[y % 3])
                else:
                    outside_row(fill, work[2])
            for y in range(first, last):
                if y + 1 < height:
                    clean_row(pixels[p, y + 1], mask[p, y + 1], limits[p], ceilings[p], fill, work[(y + 1) % 3])
                else:
                    outside_row(fill, work[(y + 1) % 3])
                offset = (p * height + y) * width
                n_found = append_strong(
                    work[0], work[1], work[2], columns, difference, threshold, words, flags, offset, n_found, out
                )
    return n_found


@njit(cache=True, nogil=True)
def append_strong(
    a: NDArray[Any],
    b: NDArray[Any],
    c: NDArray[Any],
    columns: NDArray[Any],
    difference: NDArray[Any],
    threshold: NDArray[Any],
    words: NDArray[np.uint64],
    flags: NDArray[np.uint8],
    offset: int,
    n_found: int,
    out: NDArray[np.int32],
) -> int:
    """Append pixels whose 3 x 3 sum exceeds the threshold; ``flags`` are the bytes of ``words``, to look at eight at once.

    The loops are apart so that each of them is vectorised.
    """
    width = len(a) - 2
    for x in range(width + 2):
        columns[x] = a[x] + b[x] + c[x]
    for x in range(width):
        difference[x] = columns[x] + columns[x + 1] + columns[x + 2]
    for x in range(width):
        flags[x] = difference[x] > threshold[x]
    for word in range(len(words)):
        if words[word] != 0:
            for x in range(8 * word, min(8 * word + 8, width)):
                if flags[x]:
                    out[n_found] = offset + x
                    n_found += 1
    return n_found

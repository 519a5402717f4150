"""Strong pixels by the index of dispersion of 7 x 7 windows (Kabsch 2010, Acta Cryst. D66, 125)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

HALF = 3
"""Half width of the window: its terms are written out below, which makes it four times as fast as a width that varies."""

Row = NDArray[np.float32]


@njit(cache=True, nogil=True)
def load_row(row: NDArray[Any], bad: NDArray[np.uint8], low: Any, high: Any, last: Any, value: Row, square: Row, good: Row) -> None:
    """Copy a row to ``[3:-3]`` of value, square and 1; pixels that are not measurements become 0, saturated ones the limit."""
    for x in range(len(row)):
        v = row[x]
        usable = (bad[x] == 0) & (v >= low) & (v <= last)
        w = np.float32(min(v, high)) if usable else np.float32(0.0)
        value[x + 3] = w
        square[x + 3] = w * w
        good[x + 3] = np.float32(1.0) if usable else np.float32(0.0)


@njit(cache=True, nogil=True)
def add_rows(rows: NDArray[np.float32], out: Row) -> None:
    """Sum seven rows, two or three at a time: loops over few arrays are vectorised."""
    a, b, c = rows[0], rows[1], rows[2]
    for x in range(len(out)):
        out[x] = a[x] + b[x] + c[x]
    a, b = rows[3], rows[4]
    for x in range(len(out)):
        out[x] += a[x] + b[x]
    a, b = rows[5], rows[6]
    for x in range(len(out)):
        out[x] += a[x] + b[x]


@njit(cache=True, nogil=True)
def sum_across(columns: Row, out: Row) -> None:
    """Sum seven neighbours along a row; ``columns`` has three pixels more on either side."""
    for x in range(len(out)):
        out[x] = columns[x] + columns[x + 1] + columns[x + 2] + columns[x + 3] + columns[x + 4] + columns[x + 5] + columns[x + 6]


@njit(cache=True, nogil=True)
def sum_windows(rows: NDArray[np.float32], columns: Row, out: Row) -> None:
    """Sum the 7 x 7 pixels about each of a row; ``columns`` is scratch."""
    add_rows(rows, columns)
    sum_across(columns, out)


@njit(cache=True, nogil=True)
def test_windows(
    n: Row,
    total: Row,
    square: Row,
    value: Row,
    good: Row,
    gain: np.float32,
    n_background: np.float32,
    n_strong: np.float32,
    min_local: np.float32,
    threshold: np.float32,
    both: bool,
    strong: NDArray[np.uint8],
) -> int:
    """Mark pixels that pass both tests (the first alone unless ``both``); return their number.

    No quotients or roots of the data are taken. For sums S and Q of values and squares, variance over mean above
    ``g (1 + n_b √(2 / (N - 1)))`` is ``N Q - S² > g S (N - 1 + n_b √(2 (N - 1)))``, and I above ``mean + n_s √(g mean)`` is
    ``N I > S`` and ``(N I - S)² > n_s² g N S``.
    """
    found = np.int32(0)
    two = np.float32(2.0)
    one = np.float32(1.0)
    zero = np.float32(0.0)
    for x in range(len(strong)):
        s = total[x]
        free = max(n[x] - one, one)
        excess = n[x] * value[x] - s
        scattered = n[x] * square[x] - s * s > gain * s * (free + n_background * np.sqrt(two * free))
        bright = (excess > zero) & (excess * excess > n_strong * n_strong * gain * n[x] * s)
        usable = (good[x] > zero) & (n[x] >= min_local) & (s > zero) & (value[x] > threshold)
        hit = scattered & (bright | (not both)) & usable
        strong[x] = np.uint8(hit)
        found += np.int32(hit)
    return int(found)


@njit(cache=True, nogil=True)
def strong_by_dispersion(
    pixels: NDArray[Any],
    mask: NDArray[np.uint8],
    limits: NDArray[Any],
    gain: float,
    n_background: float,
    n_strong: float,
    min_local: int,
    threshold: float,
    both: bool,
    out: NDArray[np.int32],
) -> int:
    """Find strong pixels.

    Longer than the house's 60 lines: the scratch of one pass over the rows is shared.

    Parameters
    ----------
    pixels, mask
        Stacks (panel, slow, fast).
    limits
        (panel, 3) of `pixels.pixel_limits`.
    gain, n_background, n_strong, min_local, threshold
        Variance over mean of the background; the two significances (σ); fewest usable pixels of a window; lowest strong value.
    both
        False: pixels need not be bright, only their window scattered.
    out
        Receives the flat indices of strong pixels, ascending.

    Returns
    -------
    int
        Number of strong pixels.
    """
    n_panels, height, width = pixels.shape
    padded = width + 2 * HALF
    value = np.zeros((7, padded), dtype=np.float32)
    square = np.zeros((7, padded), dtype=np.float32)
    good = np.zeros((7, padded), dtype=np.float32)
    columns = np.zeros(padded, dtype=np.float32)
    n, total, total_square = np.empty(width, np.float32), np.empty(width, np.float32), np.empty(width, np.float32)
    strong = np.empty(width, dtype=np.uint8)
    n_found = 0
    for p in range(n_panels):
        low, high, last = limits[p, 0], limits[p, 1], limits[p, 2]
        value[:] = 0.0
        square[:] = 0.0
        good[:] = 0.0
        for ahead in range(height + HALF):
            slot = ahead % 7
            if ahead < height:
                load_row(pixels[p, ahead], mask[p, ahead], low, high, last, value[slot], square[slot], good[slot])
            else:
                value[slot] = 0.0
                square[slot] = 0.0
                good[slot] = 0.0
            y = ahead - HALF
            if y < 0:
                continue
            sum_windows(value, columns, total)
            sum_windows(square, columns, total_square)
            sum_windows(good, columns, n)
            here = y % 7
            found = test_windows(
                n,
                total,
                total_square,
                value[here, HALF : width + HALF],
                good[here, HALF : width + HALF],
                np.float32(gain),
                np.float32(n_background),
                np.float32(n_strong),
                np.float32(min_local),
                np.float32(threshold),
                both,
                strong,
            )
            if found > 0:
                for x in range(width):
                    if strong[x]:
                        out[n_found] = (p * height + y) * width + x
                        n_found += 1
    return n_found

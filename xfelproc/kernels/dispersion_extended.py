"""Second step of the extended dispersion method: a mean that the spot itself does not raise."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray


@njit(cache=True, nogil=True)
def erode(candidates: NDArray[np.int32], height: int, width: int, reach: int, state: NDArray[np.uint8]) -> None:
    """Mark candidates (flat indices) by 1 in ``state``, and by 2 those whose square of 2 ``reach`` + 1 is all candidates.

    A pixel of signal makes every window that holds it scattered: erosion by half the window brings the signal back.
    Pixels outside the panel count as candidates.
    """
    for i in candidates:
        state[i] = 1
    for i in candidates:
        x = i % width
        y = (i // width) % height
        base = (i // (width * height)) * height
        core = True
        for yy in range(max(0, y - reach), min(height, y + reach + 1)):
            for xx in range(max(0, x - reach), min(width, x + reach + 1)):
                if state[(base + yy) * width + xx] == 0:
                    core = False
                    break
            if not core:
                break
        if core:
            state[i] = 2


@njit(cache=True, nogil=True)
def brighter_than_clean_mean(
    pixels: NDArray[Any],
    mask: NDArray[np.uint8],
    limits: NDArray[Any],
    candidates: NDArray[np.int32],
    state: NDArray[np.uint8],
    reach: int,
    gain: float,
    n_strong: float,
    min_local: int,
    threshold: float,
    out: NDArray[np.int32],
) -> int:
    """Keep candidates above ``mean + n_strong √(gain mean)``, the mean being that of a window without its signal (``state`` 2).

    Nor are those kept that are not above ``threshold``.

    ``reach`` is half the window's width less one half, ``min_local`` the fewest pixels for a mean. ``out`` may be the array that
    holds the candidates. Returns the number kept.
    """
    _, height, width = pixels.shape
    n_found = 0
    for i in candidates:
        x = i % width
        y = (i // width) % height
        p = i // (width * height)
        low, last = limits[p, 0], limits[p, 2]
        n = 0
        s = 0.0
        for yy in range(max(0, y - reach), min(height, y + reach + 1)):
            for xx in range(max(0, x - reach), min(width, x + reach + 1)):
                v = pixels[p, yy, xx]
                if state[(p * height + yy) * width + xx] != 2 and mask[p, yy, xx] == 0 and v >= low and v <= last:
                    n += 1
                    s += v
        if n < min_local:
            continue
        mean = max(0.0, s / n)
        if float(pixels[p, y, x]) > max(threshold, mean + n_strong * np.sqrt(gain * mean)):
            out[n_found] = i
            n_found += 1
    return n_found


@njit(cache=True, nogil=True)
def clear(state: NDArray[np.uint8], candidates: NDArray[np.int32]) -> None:
    """Set ``state`` back to 0 at the candidates."""
    for i in candidates:
        state[i] = 0

"""Scatter and mean of small windows, from which the gain follows."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

N_COLUMNS = 4
"""Of `window_scatter`: usable pixels, mean, variance less the noise's, largest value."""


@njit(cache=True, nogil=True)
def window_scatter(
    adu: NDArray[np.float32],
    use: NDArray[np.uint8],
    variance: NDArray[np.float32],
    size: int,
    out: NDArray[np.float64],
) -> int:
    """Fill ``out`` (window, `N_COLUMNS`) of the square windows of one panel that are usable to three quarters; return their number.

    Parameters
    ----------
    adu
        (slow, fast) values less pedestal and common mode; NaN: not usable.
    use
        (slow, fast), 0 where usable.
    variance
        (slow, fast) square of the noise.
    size
        Side of a window, px.
    """
    height, width = adu.shape
    n_found = 0
    for y0 in range(0, height - size + 1, size):
        for x0 in range(0, width - size + 1, size):
            n = 0
            s = q = noise = 0.0
            largest = -np.inf
            for y in range(y0, y0 + size):
                for x in range(x0, x0 + size):
                    v = adu[y, x]
                    if use[y, x] == 0 and v == v:
                        n += 1
                        s += v
                        q += float(v) * float(v)
                        noise += variance[y, x]
                        largest = max(largest, v)
            if 4 * n < 3 * size * size:
                continue
            out[n_found, 0] = n
            out[n_found, 1] = s / n
            out[n_found, 2] = (q - s * s / n) / (n - 1) - noise / n
            out[n_found, 3] = largest
            n_found += 1
    return n_found

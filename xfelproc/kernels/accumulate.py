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
    for p in range(n_panels):
        low, high = np.float32(trusted[p, 0]), np.float32(trusted[p, 1])
        for s in range(n_slow):
            row, keep = pixels[p, s], mask[p, s]
            out_total, out_maximum = total[p, s // binning], maximum[p, s // binning]
            for b in range(out_total.shape[0]):
                added = np.float32(0.0)
                largest = np.float32(out_maximum[b])
                for f in range(b * binning, min(n_fast, (b + 1) * binning)):
                    value = np.float32(row[f])
                    good = (keep[f] == 0) & (value >= low) & (value <= high)
                    value = value if good else np.float32(0.0)
                    added += value
                    largest = max(largest, value)
                out_total[b] += added
                out_maximum[b] = largest

"""Histogram of the pixels of a rectangle."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats32 = NDArray[np.float32]
Counts = NDArray[np.uint32]

N_BINS = 1024
BANK = N_BINS + 24
"""A pixel's bin is counted in one of four banks, so that equal neighbours do not wait for one another's sums."""


def scratch_size(width: int) -> int:
    """Return the length of the uint32 scratch for groups of up to ``width`` columns."""
    return 4 * BANK + width


TOGETHER = 4
"""Rows of a sample side by side: memory is read ahead within, not between them."""


@njit(cache=True, nogil=True, inline="always")
def is_sampled(y: int, step: int) -> bool:
    """Return whether a row is one of a sample of about every ``step``-th."""
    return y // TOGETHER % step == 0


@njit(cache=True, nogil=True)
def fill_histogram(
    adu: Floats32,
    use: NDArray[np.uint8],
    scale: Floats32,
    step: int,
    offset: float,
    gain: float,
    low: float,
    inverse_width: float,
    scratch: Counts,
) -> None:
    """Count the usable pixels of sampled rows (`is_sampled`) into the first `N_BINS` of ``scratch``; bin 0 is from ``low`` on.

    Arrays are (slow, fast) of a rectangle. Values are taken less ``offset``, and where ``gain`` is not 0 times ``gain * scale``.
    """
    zero, first, to_bins = np.float32(offset), np.float32(low), np.float32(inverse_width)
    last, norm = np.float32(N_BINS), np.float32(gain)
    n = adu.shape[1]
    scratch[: 4 * BANK] = 0
    bank0, bank1 = scratch[:BANK], scratch[BANK : 2 * BANK]
    bank2, bank3 = scratch[2 * BANK : 3 * BANK], scratch[3 * BANK : 4 * BANK]
    bins = scratch[4 * BANK :]
    for y in range(adu.shape[0]):
        if not is_sampled(y, step):
            continue
        row, serves, inverse = adu[y], use[y], scale[y]
        if norm > np.float32(0.0):
            for x in range(n):
                t = ((row[x] - zero) * (inverse[x] * norm) - first) * to_bins
                good = (t >= np.float32(0.0)) & (t < last) & (serves[x] == 0)
                t = t if good else last
                bins[x] = np.uint32(np.int32(t))
        else:
            for x in range(n):
                t = (row[x] - zero - first) * to_bins
                good = (t >= np.float32(0.0)) & (t < last) & (serves[x] == 0)
                t = t if good else last
                bins[x] = np.uint32(np.int32(t))
        whole = n - n % 4
        for x in range(0, whole, 4):
            bank0[bins[x]] += np.uint32(1)
            bank1[bins[x + 1]] += np.uint32(1)
            bank2[bins[x + 2]] += np.uint32(1)
            bank3[bins[x + 3]] += np.uint32(1)
        for x in range(whole, n):
            bank0[bins[x]] += np.uint32(1)
    for b in range(N_BINS):
        bank0[b] += bank1[b] + bank2[b] + bank3[b]

"""Kernel: to which resolution each lattice has signal."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

STRONGEST = 3.0
"""I/σ above this count as this: a single strong reflection does not make a shell."""


@njit(cache=True, nogil=True)
def signal_limits(
    starts: NDArray[np.int64], inverse_d2: NDArray[np.float64], ratio: NDArray[np.float64], cut: float
) -> NDArray[np.float64]:
    """Return 1/d² (1/Å²) to which each lattice has signal, (m,); -1 where it has none.

    Of all limits it is the one at which Σ(I/σ - ``cut``) of the observations inside is largest: any stretch of resolution that
    ends there has a mean above the cut, any that begins there one below. ``starts`` (m + 1,) bounds the lattices in
    ``inverse_d2`` and ``ratio`` (I/σ), (n,).
    """
    m = starts.shape[0] - 1
    limits = np.empty(m)
    for j in range(m):
        first = starts[j]
        order = np.argsort(inverse_d2[first : starts[j + 1]])
        total, best, limits[j] = 0.0, 0.0, -1.0
        for i in range(order.shape[0]):
            row = first + order[i]
            total += min(ratio[row], STRONGEST) - cut
            last = i + 1 == order.shape[0] or inverse_d2[first + order[i + 1]] > inverse_d2[row]
            if total > best and last:
                best, limits[j] = total, inverse_d2[row]
    return limits

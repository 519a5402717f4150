"""Which index each spot of a lattice has."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]


@njit(cache=True, nogil=True)
def assign_indices(a: Floats, q: Floats, tolerance: float, hkl: Ints, inside: NDArray[np.bool_]) -> int:
    """Write the nearest index of each q and whether it is within ``tolerance`` in each component; return how many are."""
    inverse = np.linalg.inv(a)
    count = 0
    for i in range(q.shape[0]):
        good = True
        zero = True
        for r in range(3):
            f = inverse[r, 0] * q[i, 0] + inverse[r, 1] * q[i, 1] + inverse[r, 2] * q[i, 2]
            nearest = np.rint(f)
            hkl[i, r] = int(nearest)
            if abs(f - nearest) > tolerance:
                good = False
            if nearest != 0.0:
                zero = False
        inside[i] = good and not zero
        count += inside[i]
    return count


@njit(cache=True, nogil=True)
def keep_nearest(hkl: Ints, distance2: Floats, rows: NDArray[np.bool_], keep: NDArray[np.bool_]) -> None:
    """Write into ``keep`` which of ``rows`` are the nearest to the prediction of all with the same index."""
    n = hkl.shape[0]
    size = 64
    while size < 3 * n:
        size *= 2
    table = np.full(size, -1, dtype=np.int32)
    for i in range(n):
        keep[i] = rows[i]
        if not rows[i]:
            continue
        key = hkl[i, 0] * 73856093 ^ hkl[i, 1] * 19349663 ^ hkl[i, 2] * 83492791
        slot = key & (size - 1)
        while table[slot] >= 0:
            other = table[slot]
            if hkl[other, 0] == hkl[i, 0] and hkl[other, 1] == hkl[i, 1] and hkl[other, 2] == hkl[i, 2]:
                if distance2[i] < distance2[other]:
                    keep[other] = False
                    table[slot] = i
                else:
                    keep[i] = False
                break
            slot = (slot + 1) & (size - 1)
        else:
            table[slot] = i

"""Kernels of reduction to the asymmetric unit."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray


@njit(cache=True, nogil=True)
def in_asu(h: int, k: int, l: int, case: int) -> bool:  # noqa: E741  (the index's own name)
    """Return whether (h, k, l) is in the reciprocal asymmetric unit of CCP4 for a Laue class (0: -1 ... 11: m-3m)."""
    if case == 0:
        return l > 0 or (l == 0 and (h > 0 or (h == 0 and k >= 0)))
    if case == 1:
        return k >= 0 and (l > 0 or (l == 0 and h >= 0))
    if case == 2:
        return h >= 0 and k >= 0 and l >= 0
    if case == 3 or case == 8:
        return l >= 0 and ((h >= 0 and k > 0) or (h == 0 and k == 0))
    if case == 4 or case == 9:
        return h >= k and k >= 0 and l >= 0
    if case == 5:
        return (h >= 0 and k > 0) or (h == 0 and k == 0 and l >= 0)
    if case == 6:
        return h >= k and k >= 0 and (k > 0 or l >= 0)
    if case == 7:
        return h >= k and k >= 0 and (h > k or l >= 0)
    if case == 10:
        return h >= 0 and ((l >= h and k > h) or (l == h and k == h))
    return k >= l and l >= h and h >= 0


@njit(cache=True, nogil=True)
def map_to_asu(hkl: NDArray[np.int32], operators: NDArray[np.int32], case: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return the equivalents (n, 3) in the asymmetric unit, and isym: 2 i + 1 by operator i, 2 i + 2 by operator i and inversion.

    ``operators`` (m, 3, 3) are the rotations of the space group; an index maps as the row vector ``h R``. isym is 0 where no
    operator leads to the asymmetric unit (it cannot happen for a group and its own unit).
    """
    n = hkl.shape[0]
    out = np.zeros((n, 3), np.int32)
    isym = np.zeros(n, np.int32)
    for i in range(n):
        for m in range(operators.shape[0]):
            r = operators[m]
            h = hkl[i, 0] * r[0, 0] + hkl[i, 1] * r[1, 0] + hkl[i, 2] * r[2, 0]
            k = hkl[i, 0] * r[0, 1] + hkl[i, 1] * r[1, 1] + hkl[i, 2] * r[2, 1]
            l = hkl[i, 0] * r[0, 2] + hkl[i, 1] * r[1, 2] + hkl[i, 2] * r[2, 2]  # noqa: E741
            if in_asu(h, k, l, case):
                out[i, 0], out[i, 1], out[i, 2] = h, k, l
                isym[i] = 2 * m + 1
                break
            if in_asu(-h, -k, -l, case):
                out[i, 0], out[i, 1], out[i, 2] = -h, -k, -l
                isym[i] = 2 * m + 2
                break
    return out, isym

"""Kernels of unique reflections: from Miller indices as observed to rows of the list of unique reflections."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from xfelproc.kernels.merging import in_asu

Ints = NDArray[np.int32]


@njit(cache=True, nogil=True)
def find_groups(
    hkl: NDArray[np.int16], operators: Ints, case: int, low: Ints, grid: Ints
) -> tuple[NDArray[np.int32], NDArray[np.int16]]:
    """Return the row of each index (n, 3) in the list of unique reflections (-1: not in it), and isym as `map_to_asu` does.

    ``grid`` (h, k, l) holds the rows of the list, -1 elsewhere; its first entry is of the index ``low`` (3,).
    """
    n = hkl.shape[0]
    group = np.full(n, -1, np.int32)
    isym = np.zeros(n, np.int16)
    for i in range(n):
        for m in range(operators.shape[0]):
            r = operators[m]
            h = hkl[i, 0] * r[0, 0] + hkl[i, 1] * r[1, 0] + hkl[i, 2] * r[2, 0]
            k = hkl[i, 0] * r[0, 1] + hkl[i, 1] * r[1, 1] + hkl[i, 2] * r[2, 1]
            l = hkl[i, 0] * r[0, 2] + hkl[i, 1] * r[1, 2] + hkl[i, 2] * r[2, 2]  # noqa: E741
            sign = 1
            if not in_asu(h, k, l, case):
                if not in_asu(-h, -k, -l, case):
                    continue
                sign = -1
            isym[i] = 2 * m + (1 if sign > 0 else 2)
            x, y, z = sign * h - low[0], sign * k - low[1], sign * l - low[2]
            if 0 <= x < grid.shape[0] and 0 <= y < grid.shape[1] and 0 <= z < grid.shape[2]:
                group[i] = grid[x, y, z]
            break
    return group, isym


@njit(cache=True, nogil=True)
def order_by_group(group: NDArray[np.int32], n_groups: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the order (n,) that sorts rows by group, stable, and the bounds (n_groups + 1,) of the groups in it."""
    starts = np.zeros(n_groups + 1, np.int64)
    for i in range(group.shape[0]):
        starts[group[i] + 1] += 1
    for g in range(n_groups):
        starts[g + 1] += starts[g]
    place = starts.copy()
    order = np.empty(group.shape[0], np.int64)
    for i in range(group.shape[0]):
        order[place[group[i]]] = i
        place[group[i]] += 1
    return order, starts

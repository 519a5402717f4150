"""Connected components of sparse pixels, without a label image."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray


@njit(cache=True, nogil=True)
def root_of(parent: NDArray[np.int32], i: int) -> int:
    """Return the root of element ``i``, halving its path."""
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@njit(cache=True, nogil=True)
def unite(parent: NDArray[np.int32], i: int, j: int) -> None:
    """Unite two sets; the smaller root stays, so that components are numbered in raster order."""
    a = root_of(parent, i)
    b = root_of(parent, j)
    if a < b:
        parent[b] = a
    elif b < a:
        parent[a] = b


@njit(cache=True, nogil=True)
def label_components(index: NDArray[np.int32], width: int, height: int, eight: bool, label: NDArray[np.int32]) -> int:
    """Label pixels given by ascending flat indices of a stack (panel, slow, fast).

    Pixels touch along rows and columns (and diagonals with ``eight``), never across panels. ``label`` (same length) receives the
    component of each pixel, numbered from 0 by first pixels.

    Returns
    -------
    int
        Number of components.
    """
    n = len(index)
    reach = 1 if eight else 0
    upper = 0
    for i in range(n):
        label[i] = i
        x = index[i] % width
        if i > 0 and x > 0 and index[i - 1] == index[i] - 1:
            unite(label, i - 1, i)
        if (index[i] // width) % height == 0:
            continue
        above = index[i] - width
        left = above - (reach if x > 0 else 0)
        right = above + (reach if x < width - 1 else 0)
        while index[upper] < left:
            upper += 1
        j = upper
        while j < i and index[j] <= right:
            unite(label, i, j)
            j += 1
    n_components = 0
    for i in range(n):
        # a parent comes before its children: it already carries its component, as a negative number
        if label[i] == i:
            label[i] = -1 - n_components
            n_components += 1
        else:
            label[i] = label[label[i]]
    for i in range(n):
        label[i] = -1 - label[i]
    return n_components


@njit(cache=True, nogil=True)
def sort_by_component(label: NDArray[np.int32], n_components: int, order: NDArray[np.int32], start: NDArray[np.int32]) -> None:
    """Counting sort: pixels of component c are ``order[start[c]:start[c + 1]]``, in raster order."""
    start[: n_components + 1] = 0
    for i in range(len(label)):
        start[label[i] + 1] += 1
    for c in range(n_components):
        start[c + 1] += start[c]
    for i in range(len(label)):
        c = label[i]
        order[start[c]] = i
        start[c] += 1
    for c in range(n_components, 0, -1):
        start[c] = start[c - 1]
    start[0] = 0

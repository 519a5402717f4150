"""Metrology: what a lattice adds to the normal equations of the groups, after it is eliminated.

The matrix of many groups fits no cache, and every lattice adds to rows all over it: lattices are held back until there are
`BATCH`, and what they add is then added row by row.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]

BATCH = 32
"""Lattices of which the products are formed together."""


@njit(cache=True, nogil=True)
def gather_groups(panel: Ints, group: Ints, first: int, last: int, slot: Ints, touched: Ints) -> int:
    """Write the groups that hold spots, ascending, and the place of each in ``slot``; return how many."""
    count = 0
    for i in range(first, last):
        g = group[panel[i]]
        if g >= 0 and slot[g] < 0:
            slot[g] = 0
            touched[count] = g
            count += 1
    for m in range(1, count):  # by insertion: they are few
        g, place = touched[m], m
        while place > 0 and touched[place - 1] > g:
            touched[place] = touched[place - 1]
            place -= 1
        touched[place] = g
    for m in range(count):
        slot[touched[m]] = m
    return count


@njit(cache=True, nogil=True)
def eliminate(
    factor: Floats, right: Floats, p: int, coupling: Floats, pull: Floats, touched: Ints, count: int, gradient: Floats
) -> None:
    """Make W = L⁻¹ B of ``coupling`` (p, 6 count), which is B, and add ``pull`` (6 count) less Wᵀ L⁻¹ b to the gradient.

    ``factor`` is L of the lattice's own normal matrix, ``right`` L⁻¹ b.
    """
    width = 6 * count
    for i in range(p):
        for k in range(i):
            f = factor[i, k]
            for c in range(width):
                coupling[i, c] -= f * coupling[k, c]
        f = 1.0 / factor[i, i]
        for c in range(width):
            coupling[i, c] *= f
    for m in range(count):
        for r in range(6):
            column = 6 * m + r
            total = pull[column]
            for k in range(p):
                total -= coupling[k, column] * right[k]
            gradient[6 * touched[m] + r] += total


@njit(cache=True, nogil=True)
def add_products(
    coupling: Floats,
    own: Floats,
    touched: Ints,
    counts: Ints,
    sizes: Ints,
    halves: Ints,
    n: int,
    n_groups: int,
    line: Floats,
    normal: Floats,
) -> None:
    """Add C - Wᵀ W of ``n`` lattices to the packed lower triangles of their half-sets (2, ...), group by group.

    ``coupling`` (n, p, 6 count) is W, ``own`` (n, count, 6, 6) the diagonal blocks of C (lower triangle), ``touched`` (n, count)
    the groups, ascending, ``sizes`` p.
    """
    places = np.zeros(n, dtype=np.int64)
    for g in range(n_groups):
        for b in range(n):
            m = places[b]
            if m == counts[b] or touched[b, m] != g:
                continue
            places[b] = m + 1
            w, those, out = coupling[b], touched[b], normal[halves[b]]
            for r in range(6):
                row = 6 * g + r
                _line(w, sizes[b], 6 * m + r, 6 * (m + 1), line)
                base = row * (row + 1) // 2
                for other in range(m):
                    place = base + 6 * those[other]
                    for c in range(6):
                        out[place + c] -= line[6 * other + c]
                place = base + 6 * g
                for c in range(r + 1):
                    out[place + c] += own[b, m, r, c] - line[6 * m + c]


@njit(cache=True, nogil=True)
def _line(w: Floats, p: int, column: int, end: int, out: Floats) -> None:
    """Write Σ w[k, column] w[k, :end] over the p rows: four to six in one go, as nearly all symmetries have them."""
    f0, f1, f2, f3 = w[0, column], w[1, column], w[2, column], w[3, column]
    if p == 4:
        for c in range(end):
            out[c] = f0 * w[0, c] + f1 * w[1, c] + f2 * w[2, c] + f3 * w[3, c]
        return
    f4 = w[4, column]
    if p == 5:
        for c in range(end):
            out[c] = f0 * w[0, c] + f1 * w[1, c] + f2 * w[2, c] + f3 * w[3, c] + f4 * w[4, c]
        return
    f5 = w[5, column]
    for c in range(end):
        out[c] = f0 * w[0, c] + f1 * w[1, c] + f2 * w[2, c] + f3 * w[3, c] + f4 * w[4, c] + f5 * w[5, c]
    for k in range(6, p):
        f = w[k, column]
        for c in range(end):
            out[c] += f * w[k, c]

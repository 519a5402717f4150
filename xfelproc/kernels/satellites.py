"""A second lattice near to a found one: the turn and dilation that most of the spots left over have in common."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from xfelproc.kernels.small_matrices import solve_spd

Floats = NDArray[np.float64]
_WIDENED = (4.0, 2.0, 1.0, 1.0)
"""Factors on the reach in the cycles of a round: a start is rough."""


@njit(cache=True, nogil=True)
def _left_over(q: Floats, miss: Floats, normal: Floats, move: Floats) -> tuple[float, float]:
    """Return how far (1/Å) a spot lies off its point moved by ``move``: along the sphere's normal, and squared, across it."""
    x = miss[0] - (move[1] * q[2] - move[2] * q[1] + move[3] * q[0])
    y = miss[1] - (move[2] * q[0] - move[0] * q[2] + move[3] * q[1])
    z = miss[2] - (move[0] * q[1] - move[1] * q[0] + move[3] * q[2])
    along = x * normal[0] + y * normal[1] + z * normal[2]
    return along, x * x + y * y + z * z - along * along


@njit(cache=True, nogil=True)
def _add(q: Floats, miss: Floats, normal: Floats, weight: float, across: float, along: float, n: Floats, b: Floats) -> None:
    """Add a spot to the normal equations of the move; ``across`` and ``along`` are inverse variances (Å²)."""
    x, y, z = q[0], q[1], q[2]
    rows = ((0.0, z, -y, x), (-z, 0.0, x, y), (y, -x, 0.0, z))
    projected = np.zeros(4)
    for k in range(4):
        projected[k] = rows[0][k] * normal[0] + rows[1][k] * normal[1] + rows[2][k] * normal[2]
    off = miss[0] * normal[0] + miss[1] * normal[1] + miss[2] * normal[2]
    for k in range(4):
        total = rows[0][k] * miss[0] + rows[1][k] * miss[1] + rows[2][k] * miss[2]
        b[k] += weight * (across * total + (along - across) * projected[k] * off)
        for m in range(4):
            product = rows[0][k] * rows[0][m] + rows[1][k] * rows[1][m] + rows[2][k] * rows[2][m]
            n[k, m] += weight * (across * product + (along - across) * projected[k] * projected[m])


@njit(cache=True, nogil=True)
def moved_matrix(a: Floats, move: Floats) -> Floats:
    """Return A moved by a small rotation vector (radians) and a dilation: A + ω × A + δ A."""
    out = a.copy()
    for c in range(3):
        out[0, c] += move[1] * a[2, c] - move[2] * a[1, c] + move[3] * a[0, c]
        out[1, c] += move[2] * a[0, c] - move[0] * a[2, c] + move[3] * a[1, c]
        out[2, c] += move[0] * a[1, c] - move[1] * a[0, c] + move[3] * a[2, c]
    return out


@njit(cache=True, nogil=True)
def fit_move(
    a: Floats, q: Floats, normal: Floats, move: Floats, reach: float, depth: float, prior: Floats, n: Floats, b: Floats
) -> float:
    """Return how many spots q (n, 3; 1/Å) lie at points of A moved by ``move``: 1 at the point, 0 from ``reach`` on.

    Distances count across the Ewald sphere's normal (n, 3); along it, where a still says little, they must be less than
    ``depth`` (1/Å). ``n`` and ``b`` become the normal equations of the move, with standard deviations ``prior`` about 0.
    """
    inverse = np.linalg.inv(moved_matrix(a, move))
    n[:] = 0.0
    b[:] = 0.0
    for k in range(4):
        n[k, k] = 1.0 / prior[k] ** 2
    point, miss = np.empty(3), np.empty(3)
    h = np.empty(3)
    total = 0.0
    for i in range(q.shape[0]):
        for r in range(3):
            h[r] = np.rint(inverse[r, 0] * q[i, 0] + inverse[r, 1] * q[i, 1] + inverse[r, 2] * q[i, 2])
        for r in range(3):
            point[r] = a[r, 0] * h[0] + a[r, 1] * h[1] + a[r, 2] * h[2]
            miss[r] = q[i, r] - point[r]
        along, across2 = _left_over(point, miss, normal[i], move)
        if abs(along) >= depth or across2 >= reach * reach:
            continue
        near = 1.0 - across2 / (reach * reach)
        total += near
        _add(point, miss, normal[i], near * near, 4.0 / reach**2, 4.0 / depth**2, n, b)
    return total


@njit(cache=True, nogil=True)
def find_move(
    a: Floats, q: Floats, normal: Floats, prior: Floats, reach: float, depth: float, rounds: int
) -> tuple[float, float, Floats]:
    """Return the largest score of `fit_move`, that of its mirror image, and its move: rotation vector (radians) and dilation.

    Each round starts from a turn of the sequence of Halton in a cube of half an edge of twice the prior's standard deviation.
    """
    best, best_move = -1.0, np.zeros(4)
    n, b = np.empty((4, 4)), np.empty(4)
    move = np.empty(4)
    for start in range(rounds):
        for k in range(3):
            move[k] = (4.0 * _halton(start, (2, 3, 5)[k]) - 2.0) * prior[k] if start else 0.0
        move[3] = 0.0
        for factor in _WIDENED:
            score = fit_move(a, q, normal, move, factor * reach, depth, prior, n, b)
            if factor == 1.0 and score > best:
                best = score
                best_move[:] = move
            if not solve_spd(n, b):
                break
            move[:] = b
    mirrored = fit_move(a, q, normal, -best_move, reach, depth, prior, n, b)
    return best, mirrored, best_move


@njit(cache=True, nogil=True)
def _halton(index: int, base: int) -> float:
    """Return an element of the sequence of van der Corput, in [0, 1)."""
    value, part = 0.0, 1.0
    while index > 0:
        part /= base
        value += part * (index % base)
        index //= base
    return value

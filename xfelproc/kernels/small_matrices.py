"""3 x 3 linear algebra without calls into LAPACK."""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

Doubles = NDArray[np.float64]


@njit(cache=True, nogil=True)
def determinant3(m: Doubles) -> float:
    """Return the determinant of a 3 x 3 matrix."""
    return float(
        m[0, 0] * (m[1, 1] * m[2, 2] - m[1, 2] * m[2, 1])
        - m[0, 1] * (m[1, 0] * m[2, 2] - m[1, 2] * m[2, 0])
        + m[0, 2] * (m[1, 0] * m[2, 1] - m[1, 1] * m[2, 0])
    )


@njit(cache=True, nogil=True)
def invert3(m: Doubles, out: Doubles) -> float:
    """Write the inverse of ``m`` to ``out`` (not the same array); return the determinant (0: ``out`` is not written)."""
    det = determinant3(m)
    if det == 0.0:
        return 0.0
    s = 1.0 / det
    out[0, 0] = (m[1, 1] * m[2, 2] - m[1, 2] * m[2, 1]) * s
    out[0, 1] = (m[0, 2] * m[2, 1] - m[0, 1] * m[2, 2]) * s
    out[0, 2] = (m[0, 1] * m[1, 2] - m[0, 2] * m[1, 1]) * s
    out[1, 0] = (m[1, 2] * m[2, 0] - m[1, 0] * m[2, 2]) * s
    out[1, 1] = (m[0, 0] * m[2, 2] - m[0, 2] * m[2, 0]) * s
    out[1, 2] = (m[0, 2] * m[1, 0] - m[0, 0] * m[1, 2]) * s
    out[2, 0] = (m[1, 0] * m[2, 1] - m[1, 1] * m[2, 0]) * s
    out[2, 1] = (m[0, 1] * m[2, 0] - m[0, 0] * m[2, 1]) * s
    out[2, 2] = (m[0, 0] * m[1, 1] - m[0, 1] * m[1, 0]) * s
    return det


@njit(cache=True, nogil=True)
def solve3(m: Doubles, b: Doubles, out: Doubles) -> None:
    """Write the solution of ``m x = b`` to ``out``; leave it alone where ``m`` is singular."""
    inverse = np.empty((3, 3))
    scale = abs(m[0, 0]) + abs(m[1, 1]) + abs(m[2, 2])
    det = invert3(m, inverse)
    if abs(det) <= 1e-14 * scale * scale * scale:
        return
    for k in range(3):
        out[k] = inverse[k, 0] * b[0] + inverse[k, 1] * b[1] + inverse[k, 2] * b[2]


@njit(cache=True, nogil=True)
def polar3(m: Doubles, out: Doubles) -> None:
    """Write the orthogonal factor of ``m`` to ``out`` (Newton's iteration X <- (X + X⁻ᵀ) / 2; Higham 1986)."""
    out[:] = m
    inverse = np.empty((3, 3))
    for _ in range(20):
        if invert3(out, inverse) == 0.0:
            return
        change = 0.0
        for i in range(3):
            for j in range(3):
                new = 0.5 * (out[i, j] + inverse[j, i])
                change += abs(new - out[i, j])
                out[i, j] = new
        if change < 1e-12 or math.isnan(change):
            return

"""Linear algebra of small matrices, most of them 3 x 3, without calls into LAPACK."""

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


@njit(cache=True, nogil=True)
def cholesky(matrix: Doubles, n: int) -> bool:
    """Replace the lower triangle of a matrix by its Cholesky factor; return whether it is positive definite."""
    for i in range(n):
        for j in range(i + 1):
            total = matrix[i, j]
            for k in range(j):
                total -= matrix[i, k] * matrix[j, k]
            if i == j:
                if not total > 0.0:
                    return False
                matrix[i, i] = math.sqrt(total)
            else:
                matrix[i, j] = total / matrix[j, j]
    return True


@njit(cache=True, nogil=True)
def solve_lower(factor: Doubles, vector: Doubles, n: int) -> None:
    """Solve L x = b in place."""
    for i in range(n):
        for k in range(i):
            vector[i] -= factor[i, k] * vector[k]
        vector[i] /= factor[i, i]


@njit(cache=True, nogil=True)
def solve_upper(factor: Doubles, vector: Doubles, n: int) -> None:
    """Solve Lᵀ x = b in place."""
    for i in range(n - 1, -1, -1):
        for k in range(i + 1, n):
            vector[i] -= factor[k, i] * vector[k]
        vector[i] /= factor[i, i]


@njit(cache=True, nogil=True)
def solve_spd(matrix: Doubles, vector: Doubles) -> bool:
    """Solve a symmetric positive definite system in place (Cholesky on the matrix scaled to a unit diagonal)."""
    n = vector.shape[0]
    scale = np.empty(n)
    for i in range(n):
        if not matrix[i, i] > 0.0:
            return False
        scale[i] = 1.0 / np.sqrt(matrix[i, i])
    for i in range(n):
        vector[i] *= scale[i]
        for j in range(n):
            matrix[i, j] *= scale[i] * scale[j]
        matrix[i, i] += 1e-10
    if not cholesky(matrix, n):
        return False
    solve_lower(matrix, vector, n)
    solve_upper(matrix, vector, n)
    for i in range(n):
        vector[i] *= scale[i]
    return True


@njit(cache=True, nogil=True)
def frame_about(axis: Doubles, other: Doubles) -> Doubles:
    """Return orthonormal rows (e1, e2, e3): e1 along ``axis``, e2 in the plane of ``axis`` and ``other``, right-handed."""
    frame = np.empty((3, 3))
    norm = math.sqrt(axis[0] ** 2 + axis[1] ** 2 + axis[2] ** 2)
    for k in range(3):
        frame[0, k] = axis[k] / norm
    along = other[0] * frame[0, 0] + other[1] * frame[0, 1] + other[2] * frame[0, 2]
    for k in range(3):
        frame[1, k] = other[k] - along * frame[0, k]
    norm = math.sqrt(frame[1, 0] ** 2 + frame[1, 1] ** 2 + frame[1, 2] ** 2)
    for k in range(3):
        frame[1, k] /= norm
    frame[2, 0] = frame[0, 1] * frame[1, 2] - frame[0, 2] * frame[1, 1]
    frame[2, 1] = frame[0, 2] * frame[1, 0] - frame[0, 0] * frame[1, 2]
    frame[2, 2] = frame[0, 0] * frame[1, 1] - frame[0, 1] * frame[1, 0]
    return frame


@njit(cache=True, nogil=True)
def any_normal(axis: Doubles) -> Doubles:
    """Return a vector that is not parallel to ``axis``."""
    k = 0
    for j in range(1, 3):
        if abs(axis[j]) < abs(axis[k]):
            k = j
    out = np.zeros(3)
    out[k] = 1.0
    return out

"""Primitive and reduced cells.

Bases are (3, 3) arrays of rows a, b, c; a change of basis is a matrix T with ``new = T @ old``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xfelproc.geometry.cells import Floats, cell_volume, metric_tensor

_HALF = 0.5
CENTRINGS: dict[str, tuple[tuple[float, float, float], ...]] = {
    "P": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "A": ((1, 0, 0), (0, _HALF, _HALF), (0, -_HALF, _HALF)),
    "B": ((_HALF, 0, _HALF), (0, 1, 0), (-_HALF, 0, _HALF)),
    "C": ((_HALF, _HALF, 0), (-_HALF, _HALF, 0), (0, 0, 1)),
    "I": ((-_HALF, _HALF, _HALF), (_HALF, -_HALF, _HALF), (_HALF, _HALF, -_HALF)),
    "F": ((0, _HALF, _HALF), (_HALF, 0, _HALF), (_HALF, _HALF, 0)),
    "R": ((2 / 3, 1 / 3, 1 / 3), (-1 / 3, 1 / 3, 1 / 3), (-1 / 3, -2 / 3, 1 / 3)),
}
"""Rows: a primitive basis in terms of the conventional one, of determinant 1 / multiplicity (R: hexagonal axes, obverse)."""


def primitive_transform(centring: str) -> Floats:
    """Return P (3, 3): primitive basis = P @ conventional basis.

    Raises
    ------
    ValueError
        If the centring is none of P, A, B, C, I, F, R.
    """
    if centring not in CENTRINGS:
        raise ValueError(f"centring {centring!r} is not known; use one of {', '.join(CENTRINGS)}")
    return np.array(CENTRINGS[centring], dtype=np.float64)


def cell_of(basis: ArrayLike) -> tuple[float, float, float, float, float, float]:
    """Return a, b, c (Å), α, β, γ (degrees) of rows a, b, c."""
    rows = np.asarray(basis, dtype=np.float64)
    return cell_of_metric(rows @ rows.T)


def cell_of_metric(g: Floats) -> tuple[float, float, float, float, float, float]:
    """Return a, b, c (Å), α, β, γ (degrees) of a metric tensor."""
    a, b, c = (float(x) for x in np.sqrt(np.diag(g)))
    cosines = np.clip([g[1, 2] / (b * c), g[0, 2] / (a * c), g[0, 1] / (a * b)], -1.0, 1.0)
    alpha, beta, gamma = (float(x) for x in np.degrees(np.arccos(cosines)))
    return (a, b, c, alpha, beta, gamma)


def niggli_transform(metric: ArrayLike, relative_epsilon: float = 1e-5) -> NDArray[np.int64]:
    """Return the integer T of determinant 1 that takes a primitive basis of this metric to the Niggli-reduced one.

    Křivý & Gruber (1976), Acta Cryst. A32, 297, with comparisons to ``relative_epsilon`` V^(1/3)-scaled, which makes it
    stable (Grosse-Kunstleve, Sauter & Adams 2004, Acta Cryst. A60, 1). T is kept in integers and the metric formed
    anew at each step, so that no rounding accumulates.

    Raises
    ------
    ValueError
        If the metric is not positive definite, or the reduction does not end within 1000 steps.
    """
    g0 = np.asarray(metric, dtype=np.float64)
    determinant = float(np.linalg.det(g0))
    if not determinant > 0.0:
        raise ValueError(f"metric tensor is not positive definite (determinant {determinant:.3g})")
    epsilon = relative_epsilon * determinant ** (1.0 / 3.0)
    t = np.eye(3, dtype=np.int64)
    for _ in range(1000):
        g = t @ g0 @ t.T
        step = _niggli_step(
            (g[0, 0], g[1, 1], g[2, 2], 2 * g[1, 2], 2 * g[0, 2], 2 * g[0, 1]),
            epsilon,
        )
        if step is None:
            return t
        t = np.array(step, dtype=np.int64) @ t
    raise ValueError("Niggli reduction did not end within 1000 steps: the metric is too close to singular")


_Rows = tuple[tuple[int, int, int], tuple[int, int, int], tuple[int, int, int]]


def _niggli_step(g6: tuple[float, float, float, float, float, float], eps: float) -> _Rows | None:
    """Return the next change of basis (rows), or None where the form is reduced."""
    a, b, c, x, y, z = g6

    def less(u: float, v: float) -> bool:
        return u < v - eps

    def equal(u: float, v: float) -> bool:
        return abs(u - v) <= eps

    if less(b, a) or (equal(a, b) and less(abs(y), abs(x))):
        return ((0, -1, 0), (-1, 0, 0), (0, 0, -1))
    if less(c, b) or (equal(b, c) and less(abs(z), abs(y))):
        return ((-1, 0, 0), (0, 0, -1), (0, -1, 0))
    signs = _niggli_signs(x, y, z, eps)
    if signs != (1, 1, 1):
        return ((signs[0], 0, 0), (0, signs[1], 0), (0, 0, signs[2]))
    if less(b, abs(x)) or (equal(x, b) and less(2 * y, z)) or (equal(x, -b) and less(z, 0)):
        return ((1, 0, 0), (0, 1, 0), (0, -1 if x > 0 else 1, 1))
    if less(a, abs(y)) or (equal(y, a) and less(2 * x, z)) or (equal(y, -a) and less(z, 0)):
        return ((1, 0, 0), (0, 1, 0), (-1 if y > 0 else 1, 0, 1))
    if less(a, abs(z)) or (equal(z, a) and less(2 * x, y)) or (equal(z, -a) and less(y, 0)):
        return ((1, 0, 0), (-1 if z > 0 else 1, 1, 0), (0, 0, 1))
    total = x + y + z + a + b
    if less(total, 0) or (equal(total, 0) and less(0, 2 * (a + y) + z)):
        return ((1, 0, 0), (0, 1, 0), (1, 1, 1))
    return None


def _niggli_signs(x: float, y: float, z: float, eps: float) -> tuple[int, int, int]:
    """Return the signs of a, b, c that make the products all positive (type I) or none positive (type II)."""
    products = (x, y, z)
    positive = sum(v > eps for v in products)
    zero = sum(abs(v) <= eps for v in products)
    if positive == 3 or (zero == 0 and positive == 1):
        signs = [-1 if v < -eps else 1 for v in products]
        return (signs[0], signs[1], signs[2])
    signs = [1, 1, 1]
    free = -1
    for k, v in enumerate(products):
        if v > eps:
            signs[k] = -1
        elif v >= -eps:
            free = k
    if signs[0] * signs[1] * signs[2] < 0 and free >= 0:
        signs[free] = -1
    return (signs[0], signs[1], signs[2])


def reduced_basis(basis: ArrayLike) -> tuple[Floats, NDArray[np.int64]]:
    """Return the Niggli-reduced right-handed basis of the lattice of rows a, b, c, and T with ``reduced = T @ basis``."""
    rows = np.asarray(basis, dtype=np.float64)
    t = niggli_transform(rows @ rows.T)
    if np.linalg.det(rows) < 0:
        t = -t
    return t @ rows, t


def reduced_cell(
    cell: tuple[float, ...] | list[float] | Floats, centring: str = "P"
) -> tuple[float, float, float, float, float, float]:
    """Return the Niggli cell of the primitive lattice of a cell with a centring.

    Raises
    ------
    ValueError
        If the angles cannot form a cell, or the centring is not known.
    """
    if not cell_volume([float(v) for v in cell]) > 0:
        raise ValueError(f"these lengths and angles form no cell: {tuple(float(v) for v in cell)}")
    p = primitive_transform(centring)
    g = p @ metric_tensor([float(v) for v in cell]) @ p.T
    t = niggli_transform(g)
    return cell_of_metric(t @ g @ t.T)

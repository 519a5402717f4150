"""Unit cells and orientation matrices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def metric_tensor(cell: Sequence[float]) -> Floats:
    """Return G (3, 3) in Å², G_ij = a_i · a_j, of the cell a, b, c (Å), α, β, γ (degrees)."""
    a, b, c = cell[:3]
    ca, cb, cg = np.cos(np.radians(cell[3:6]))
    return np.array([[a * a, a * b * cg, a * c * cb], [a * b * cg, b * b, b * c * ca], [a * c * cb, b * c * ca, c * c]])


def cell_volume(cell: Sequence[float]) -> float:
    """Return the volume in Å³ (NaN where the angles cannot form a cell)."""
    determinant = float(np.linalg.det(metric_tensor(cell)))
    return float(np.sqrt(determinant)) if determinant > 0 else float("nan")


def real_space_basis(cell: Sequence[float]) -> Floats:
    """Return rows a, b, c in Å in a Cartesian frame: a along x, b in the xy plane (as in the PDB convention)."""
    a, b, c = cell[:3]
    ca, cb, cg = np.cos(np.radians(cell[3:6]))
    sg = np.sqrt(1.0 - cg * cg)
    cy = (ca - cb * cg) / sg
    return np.array([[a, 0.0, 0.0], [b * cg, b * sg, 0.0], [c * cb, c * cy, c * np.sqrt(max(0.0, 1.0 - cb * cb - cy * cy))]])


def b_matrix(cell: Sequence[float]) -> Floats:
    """Return B (3, 3), columns a*, b*, c* in 1/Å, in the frame of `real_space_basis`."""
    return np.asarray(np.linalg.inv(real_space_basis(cell)), dtype=np.float64)


def resolution(a_matrix: ArrayLike, hkl: ArrayLike) -> Floats:
    """Return d in Å of indices (n, 3)."""
    q = np.asarray(hkl, dtype=np.float64) @ np.asarray(a_matrix, dtype=np.float64).T
    return np.asarray(1.0 / np.linalg.norm(q, axis=1), dtype=np.float64)


def rotation_matrix(vector: ArrayLike) -> Floats:
    """Return the rotation about ``vector`` by its length in radians (Rodrigues)."""
    v = np.asarray(vector, dtype=np.float64)
    angle = float(np.linalg.norm(v))
    k = np.array([[0, -v[2], v[1]], [v[2], 0, -v[0]], [-v[1], v[0], 0]])
    if angle < 1e-12:
        return np.asarray(np.eye(3) + k, dtype=np.float64)
    k = k / angle
    return np.asarray(np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * (k @ k), dtype=np.float64)


def nearest_rotation(matrix: ArrayLike) -> Floats:
    """Return the rotation nearest to ``matrix`` (polar decomposition)."""
    u, _, vt = np.linalg.svd(np.asarray(matrix, dtype=np.float64))
    return np.asarray(u @ np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt))]) @ vt, dtype=np.float64)


def lattice_rotations(cell: Sequence[float], max_delta: float = 3.0) -> NDArray[np.int64]:
    """Return (n, 3, 3) integer matrices M of determinant 1 that map the lattice of a cell on itself, to ``max_delta`` degrees.

    The lattice vectors M (a, b, c) have the lengths and angles of a, b, c; entries are -1, 0, 1, which is all of them for
    reduced cells and for conventional primitive ones (Le Page 1982 finds the same set from twofold axes).
    """
    basis = real_space_basis(cell)
    g = basis @ basis.T
    lengths = np.sqrt(np.diag(g))
    candidates = np.array(np.meshgrid(*[[-1, 0, 1]] * 3)).reshape(3, -1).T
    vectors = candidates @ basis
    norms = np.linalg.norm(vectors, axis=1)
    tolerance = np.sin(np.radians(max_delta))
    near = [candidates[np.abs(norms - length) < tolerance * length] for length in lengths]
    cosines = g / np.outer(lengths, lengths)
    found = []
    for r0 in near[0]:
        for r1 in near[1]:
            if abs(_cosine(r0, r1, g) - cosines[0, 1]) > tolerance:
                continue
            for r2 in near[2]:
                m = np.array([r0, r1, r2])
                if (
                    abs(_cosine(r0, r2, g) - cosines[0, 2]) < tolerance
                    and abs(_cosine(r1, r2, g) - cosines[1, 2]) < tolerance
                    and round(float(np.linalg.det(m))) == 1
                ):
                    found.append(m)
    return np.array(found, dtype=np.int64)


def _cosine(u: NDArray[np.int64], v: NDArray[np.int64], g: Floats) -> float:
    return float(u @ g @ v / np.sqrt((u @ g @ u) * (v @ g @ v)))


def misorientation(a_matrix: ArrayLike, reference: ArrayLike, rotations: NDArray[np.int64] | None = None) -> float:
    """Return the smallest rotation in degrees between two lattices, modulo the lattice's own ``rotations``.

    Both arguments are (3, 3) with columns a*, b*, c*.
    """
    a = np.linalg.inv(np.asarray(a_matrix, dtype=np.float64))
    r = np.linalg.inv(np.asarray(reference, dtype=np.float64))
    best = 180.0
    for m in np.eye(3, dtype=np.int64)[None] if rotations is None else rotations:
        u = nearest_rotation(np.linalg.lstsq(m @ a, r, rcond=None)[0])
        best = min(best, float(np.degrees(np.linalg.norm(_rotation_vector(u)))))
    return best


def _rotation_vector(rotation: Floats) -> Floats:
    """Return the vector (radians) of a rotation, accurate for small angles."""
    axis = np.array([rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]])
    sine, cosine = 0.5 * float(np.linalg.norm(axis)), 0.5 * (float(np.trace(rotation)) - 1.0)
    angle = float(np.arctan2(sine, cosine))
    if sine < 1e-12:
        return np.array([angle, 0.0, 0.0])
    return np.asarray(axis / (2.0 * sine) * angle, dtype=np.float64)

"""What a space group leaves free of a cell, as directions of the reciprocal metric.

A point-group operation R acts on indices as h' = h R and leaves |q| unchanged, so that the reciprocal metric ``G* = Aᵀ A``
obeys ``R G* Rᵀ = G*`` for all R. The symmetric matrices that obey it form a space of 1 (cubic) to 6 (triclinic) dimensions;
``A (1 + ½ G*⁻¹ E)`` with E of that space keeps it, exactly.
"""

from __future__ import annotations

from functools import lru_cache

import gemmi
import numpy as np
from numpy.typing import ArrayLike, NDArray

from xfelproc.errors import ConfigError
from xfelproc.geometry.cells import nearest_rotation

Floats = NDArray[np.float64]


@lru_cache(maxsize=64)
def space_group_of(symbol: str) -> gemmi.SpaceGroup:
    """Return gemmi's space group of a Hermann-Mauguin symbol.

    Raises
    ------
    ConfigError
        If there is no such space group.
    """
    group = gemmi.find_spacegroup_by_name(symbol)
    if group is None:
        raise ConfigError(f"space group {symbol!r} is not known: give a Hermann-Mauguin symbol such as 'P 43 21 2'")
    return group


@lru_cache(maxsize=64)
def point_operations(symbol: str) -> Floats:
    """Return (n, 3, 3) matrices R of the point group's operations on indices, h' = h R."""
    operations = space_group_of(symbol).operations()
    return np.array([np.array(op.rot, dtype=np.float64) / op.DEN for op in operations.sym_ops])


@lru_cache(maxsize=64)
def centring_vectors(symbol: str) -> NDArray[np.int64]:
    """Return (n, 3) centring translations in 1/24 of the cell, without the zero one; h is absent if h · t is no multiple of 24."""
    vectors = [v for v in space_group_of(symbol).operations().cen_ops if any(v)]
    return np.array(vectors, dtype=np.int64).reshape(-1, 3)


def average_metric(metric: ArrayLike, symbol: str) -> Floats:
    """Return the part (3, 3) of a symmetric reciprocal metric that the space group leaves unchanged."""
    g = np.asarray(metric, dtype=np.float64)
    operations = point_operations(symbol)
    averaged: Floats = np.einsum("nij,jk,nlk->il", operations, g, operations) / len(operations)
    return averaged


@lru_cache(maxsize=64)
def metric_basis(symbol: str) -> Floats:
    """Return (k, 3, 3) orthonormal symmetric matrices that span the reciprocal metrics of a space group, 1 ≤ k ≤ 6."""
    units = []
    for i in range(3):
        for j in range(i, 3):
            unit = np.zeros((3, 3))
            unit[i, j] = unit[j, i] = 1.0 if i == j else np.sqrt(0.5)
            units.append(unit)
    projected = np.array([average_metric(u, symbol).ravel() for u in units])
    _, values, rows = np.linalg.svd(projected)
    basis: Floats = rows[: int(np.sum(values > 1e-6))].reshape(-1, 3, 3)
    return basis


def constrain(a_matrix: ArrayLike, symbol: str) -> Floats:
    """Return the orientation matrix of the symmetric cell nearest to ``a_matrix`` (3, 3), turned on it as well as can be.

    Raises
    ------
    ConfigError
        If no cell of this symmetry is near (the averaged metric is not positive definite).
    """
    a = np.asarray(a_matrix, dtype=np.float64)
    metric = average_metric(a.T @ a, symbol)
    try:
        root = np.linalg.cholesky(metric).T
    except np.linalg.LinAlgError as error:
        raise ConfigError(f"the cell cannot be given the symmetry of {symbol!r}") from error
    rotation = nearest_rotation(a @ np.linalg.inv(root))
    constrained: Floats = rotation @ root
    return constrained

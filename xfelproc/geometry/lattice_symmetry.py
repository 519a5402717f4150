"""What a space group demands of a lattice."""

from __future__ import annotations

from functools import lru_cache

import gemmi
import numpy as np
from numpy.typing import ArrayLike, NDArray

from xfelproc.geometry.cells import Floats, b_matrix, metric_tensor, nearest_rotation
from xfelproc.geometry.reduction import cell_of_metric

Cell = tuple[float, float, float, float, float, float]


def space_group(name: str) -> gemmi.SpaceGroup:
    """Return gemmi's space group of a Hermann-Mauguin symbol or number.

    Raises
    ------
    ValueError
        If there is no such space group.
    """
    text = name.strip()
    found = gemmi.find_spacegroup_by_number(int(text)) if text.isdigit() else gemmi.find_spacegroup_by_name(text)
    if found is None:
        raise ValueError(
            f"space group {name!r} is not known: give a Hermann-Mauguin symbol such as 'P 43 21 2' or a number from 1 to 230"
        )
    return found


@lru_cache(maxsize=256)
def _rotations(name: str) -> tuple[tuple[tuple[int, ...], ...], ...]:
    ops = space_group(name).operations().derive_symmorphic().sym_ops
    unique = {tuple(tuple(v // gemmi.Op.DEN for v in row) for row in op.rot) for op in ops}
    return tuple(sorted(unique))


def point_group_rotations(name: str) -> NDArray[np.int64]:
    """Return (n, 3, 3) rotation parts R (x' = R x, fractional coordinates) of a space group's operations."""
    return np.array(_rotations(name), dtype=np.int64)


def symmetrized_metric(metric: ArrayLike, name: str) -> Floats:
    """Return the mean of the metric tensor over the point group: the nearest that obeys the space group."""
    g = np.asarray(metric, dtype=np.float64)
    rotations = point_group_rotations(name).astype(np.float64)
    mean: Floats = np.einsum("nji,jk,nkl->il", rotations, g, rotations) / len(rotations)
    return mean


def symmetrized_cell(cell: tuple[float, ...] | Floats, name: str) -> Cell:
    """Return the cell with the constraints of a space group imposed on it."""
    return cell_of_metric(symmetrized_metric(metric_tensor([float(v) for v in cell]), name))


def symmetrized_orientation(a_matrix: ArrayLike, name: str) -> Floats:
    """Return the orientation matrix nearest to ``a_matrix`` whose cell obeys the space group."""
    a = np.asarray(a_matrix, dtype=np.float64)
    basis = np.linalg.inv(a)
    b = b_matrix(cell_of_metric(symmetrized_metric(basis @ basis.T, name)))
    return np.asarray(nearest_rotation(a @ np.linalg.inv(b)) @ b, dtype=np.float64)


def cell_deviation(cell: tuple[float, ...] | Floats, other: tuple[float, ...] | Floats) -> tuple[float, float]:
    """Return the largest relative difference of lengths and the largest difference of angles (degrees) of two cells."""
    first, second = np.asarray(cell, dtype=np.float64), np.asarray(other, dtype=np.float64)
    length = float(np.max(np.abs(first[:3] - second[:3]) / second[:3]))
    return length, float(np.max(np.abs(first[3:] - second[3:])))

"""Indexing ambiguity: rotations of the lattice that are no symmetry of the crystal.

A still shows the lattice alone, so where the lattice has more symmetry than the intensities, each shot is indexed in one of several
ways at random. One operator stands for each coset of the point group in the rotation group of the lattice (Flack 1987, Acta
Cryst. A43, 564); the lattice's rotations are found from twofold axes (Le Page 1982, J. Appl. Cryst. 15, 255; by gemmi).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import gemmi
import numpy as np
from numpy.typing import NDArray

from xfelproc.geometry.cells import Floats, b_matrix, metric_tensor, nearest_rotation
from xfelproc.geometry.lattice_symmetry import space_group, symmetrized_metric

_GENERIC = (1.0, 1.234, 1.517, 97.3, 103.1, 109.7)
"""A cell without accidental symmetry, to see which operators a space group's own lattice has."""


@dataclass(frozen=True, eq=False)
class AmbiguityOperator:
    """Another way to index the same lattice.

    ``text`` gives the new indices, as ``k,h,-l``; ``matrix`` (3, 3) with ``hkl' = matrix @ hkl``. ``merohedral``: the lattice of
    every crystal of the space group has it; otherwise the cell happens to be so (pseudo-merohedry). ``strain`` is the largest
    relative change of the length of a reciprocal vector, 0 for an exact rotation.
    """

    text: str
    matrix: NDArray[np.int64]
    merohedral: bool
    strain: float


def indexing_ambiguity(cell: Sequence[float], group: str, max_obliquity: float = 3.0) -> tuple[AmbiguityOperator, ...]:
    """Return the operators of an indexing ambiguity, exact ones first; none if there is no ambiguity.

    Parameters
    ----------
    cell
        a, b, c (Å), α, β, γ (degrees) in the setting of the space group.
    group
        Symbol of the space group.
    max_obliquity
        Largest angle in degrees between a twofold axis of the lattice and the normal of its net.

    Raises
    ------
    ValueError
        If the space group is not known.
    """
    found = space_group(group)
    operators = gemmi.find_twin_laws(gemmi.UnitCell(*(float(v) for v in cell)), found, max_obliquity, False)
    generic = symmetrized_metric(metric_tensor(_GENERIC), group)
    result = []
    for operator in operators:
        hkl = operator.as_hkl()
        matrix = np.array([hkl.apply_to_hkl([int(v) for v in row]) for row in np.eye(3, dtype=np.int64)], dtype=np.int64).T
        reciprocal = np.linalg.inv(generic)
        exact = bool(np.allclose(matrix.T @ reciprocal @ matrix, reciprocal, atol=1e-9 * float(np.trace(reciprocal))))
        result.append(AmbiguityOperator(hkl.triplet(), matrix, exact, 0.0 if exact else _strain(cell, matrix)))
    return tuple(sorted(result, key=lambda operator: (not operator.merohedral, operator.strain, operator.text)))


def _strain(cell: Sequence[float], matrix: NDArray[np.int64]) -> float:
    """Return the largest relative change of length under ``B matrix B⁻¹``, which is a rotation if the operator is exact."""
    b = b_matrix([float(v) for v in cell])
    map_: Floats = b @ matrix @ np.linalg.inv(b)
    stretch = nearest_rotation(map_).T @ map_
    return float(np.max(np.abs(np.linalg.svd(stretch, compute_uv=False) - 1.0)))

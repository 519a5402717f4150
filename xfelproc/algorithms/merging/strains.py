"""Changes of the reciprocal cell that its symmetry allows, as small matrices on indices."""

from __future__ import annotations

import gemmi
import numpy as np
from numpy.typing import NDArray

LENGTHS = {
    "triclinic": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "monoclinic": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "orthorhombic": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "tetragonal": ((1, 1, 0), (0, 0, 1)),
    "trigonal": ((1, 1, 0), (0, 0, 1)),
    "hexagonal": ((1, 1, 0), (0, 0, 1)),
    "cubic": ((1, 1, 1),),
}
"""Axes that change together, of the usual settings."""
SHEARS = {"triclinic": ((0, 1), (0, 2), (1, 2)), "monoclinic": ((0, 2),)}
"""Axes whose angle is free: with b unique."""


def strain_shapes(space_group: gemmi.SpaceGroup) -> NDArray[np.float64]:
    """Return the shapes S (k, 3, 3) of the strains a group allows: q = A (1 + Σ eᵢ Sᵢ) h.

    Lengths change alone or together; an angle by a shear, whose rotation the rotations of the lattice take up. A setting whose
    axes are not the usual ones (another unique axis, rhombohedral axes) gets the one strain that every symmetry allows.
    """
    usual = space_group.is_reference_setting()
    if not usual or (space_group.crystal_system_str() == "trigonal" and space_group.ext == "R"):
        return np.eye(3)[None]
    system = space_group.crystal_system_str()
    shapes = [np.diag(np.asarray(axes, dtype=np.float64)) for axes in LENGTHS[system]]
    for row, column in SHEARS.get(system, ()):
        shear = np.zeros((3, 3))
        shear[row, column] = 1.0
        shapes.append(shear)
    return np.array(shapes)

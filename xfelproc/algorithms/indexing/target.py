"""What is known about the lattice, prepared for searching."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from xfelproc.errors import ConfigError
from xfelproc.geometry.cells import Floats, cell_volume, lattice_rotations, real_space_basis
from xfelproc.geometry.lattice_symmetry import Cell, cell_deviation, space_group, symmetrized_cell
from xfelproc.geometry.reduction import cell_of, primitive_transform, reduced_basis
from xfelproc.models.frames import CellTarget


@dataclass(frozen=True, eq=False)
class KnownLattice:
    """A target cell with its primitive reduced basis.

    ``reduced`` (3, 3) has rows a, b, c (Å) of the Niggli basis in a Cartesian frame; ``to_conventional`` (3, 3, integers) takes
    it to the setting of the space group: ``conventional = to_conventional @ reduced``. ``rotations`` are the proper
    rotations of the reduced lattice (n, 3, 3).
    """

    cell: Cell
    space_group: str
    reduced: Floats
    to_conventional: Floats
    rotations: Floats

    @cached_property
    def two_senses(self) -> tuple[bool, bool, bool]:
        """For each reduced axis, whether no rotation of the lattice reverses it."""
        reverses = [any(np.array_equal(m[k], -np.eye(3)[k]) for m in self.rotations) for k in range(3)]
        return (not reverses[0], not reverses[1], not reverses[2])

    @property
    def volume(self) -> float:
        """Volume of the primitive cell in Å³."""
        return float(abs(np.linalg.det(self.reduced)))


@lru_cache(maxsize=64)
def known_lattice(target: CellTarget) -> KnownLattice:
    """Return the prepared form of a target whose cell is known; without a space group the cell is taken as primitive.

    Raises
    ------
    ConfigError
        If the cell is impossible, or does not fit the space group.
    """
    if target.cell is None:
        raise ConfigError("the target has no cell")
    cell = target.cell
    name = check_cell(cell, target.space_group)
    basis = real_space_basis(symmetrized_cell(cell, name))
    p = primitive_transform(space_group(name).centring_type())
    reduced, t = reduced_basis(p @ basis)
    to_conventional = np.rint(np.linalg.inv(t @ p))
    return KnownLattice(cell, name, reduced, to_conventional, lattice_rotations(cell_of(reduced), 1.0).astype(np.float64))


def check_cell(cell: Cell | None, name: str | None) -> str:
    """Return the space group's symbol ("P 1" if there is none), having checked that the cell is possible and fits it.

    Raises
    ------
    ConfigError
        If the lengths are not positive, the angles form no cell, the group is unknown, or the cell contradicts it.
    """
    if cell is None:
        return "P 1" if name is None else _group(name)
    if min(cell[:3]) <= 0 or not all(0 < v < 180 for v in cell[3:]) or not cell_volume(cell) > 0:
        raise ConfigError(f"cell {_text(cell)} is impossible: lengths must be positive and the angles able to form a cell")
    if name is None:
        return "P 1"
    group = _group(name)
    symmetric = symmetrized_cell(cell, group)
    length, angle = cell_deviation(cell, symmetric)
    if length > 0.02 or angle > 1.5:
        raise ConfigError(
            f"cell {_text(cell)} does not fit space group {group}, which demands e.g. {_text(symmetric)}: "
            "check the order of the axes and the setting"
        )
    return group


def _group(name: str) -> str:
    try:
        return str(space_group(name).xhm())
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _text(cell: Cell) -> str:
    return " ".join(f"{v:.5g}" for v in cell)

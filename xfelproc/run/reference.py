"""Reference intensities of a job: whether they are of use for its lattices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from xfelproc.errors import ConfigError
from xfelproc.geometry.lattice_symmetry import cell_deviation, point_group_rotations
from xfelproc.io.exchange.reference import ReferenceData, read_reference

SAME_CELL = 0.03
"""Relative difference of lengths, and degrees / 100 of angles, to which a reference has the cell of the lattices."""


def usable_reference(path: Path, cell: Sequence[float] | None, space_group: str | None) -> ReferenceData:
    """Return the intensities of a file that ``merge.ambiguity.reference`` names.

    Parameters
    ----------
    path
        MTZ or mmCIF.
    cell, space_group
        Of the lattices and to merge in, as far as they are known.

    Raises
    ------
    ConfigError
        If they are of another cell or Laue group.
    DataError
        If they cannot be read.
    """
    data = read_reference(path)
    if cell is not None:
        length, angle = cell_deviation(data.cell, tuple(cell))
        if max(length, angle / 100.0) > SAME_CELL:
            shown = [" ".join(f"{v:.2f}" for v in values) for values in (data.cell, cell)]
            raise ConfigError(
                f"merge.ambiguity.reference {path}: its cell is {shown[0]}, that of the lattices {shown[1]}: reindex it"
            )
    if space_group is not None and _laue(data.space_group) != _laue(space_group):
        raise ConfigError(
            f"merge.ambiguity.reference {path}: {data.space_group} has other rotations than {space_group}, in which is merged: "
            "reindex or reduce it to that symmetry, or set merge.space_group"
        )
    return data


def _laue(name: str) -> set[bytes]:
    return {np.ascontiguousarray(sign * r).tobytes() for r in point_group_rotations(name) for sign in (1, -1)}

"""Intensities that lattices are scaled and refined to (``merge.reference``)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging.comparison import mean_of_equivalents
from xfelproc.algorithms.merging.lattice_block import UniqueReflections
from xfelproc.algorithms.merging.reduction import find_space_group
from xfelproc.algorithms.merging.settings import Merge
from xfelproc.geometry.cells import metric_tensor
from xfelproc.geometry.lattice_symmetry import cell_deviation, point_group_rotations
from xfelproc.geometry.reduction import cell_of_metric
from xfelproc.io.exchange.model_intensities import has_coordinates, model_intensities
from xfelproc.io.exchange.reference import ReferenceData, read_reference
from xfelproc.run.reference import SAME_CELL

Integers = NDArray[np.int64]
HIGHEST_RESOLUTION = 1.5
"""To which structure factors are calculated where no limit is set, Å."""


@dataclass(frozen=True)
class GivenReference:
    """Usable intensities in the setting of the lattices (None: there are none), and what is to be told of them."""

    data: ReferenceData | None = None
    words: tuple[str, ...] = ()

    def intensities(self, unique: UniqueReflections, space_group: str) -> NDArray[np.float64]:
        """Return the given intensity of each unique reflection, (n,), NaN without any; empty if there is no reference."""
        if self.data is None:
            return np.zeros(0)
        return mean_of_equivalents(unique.hkl, self.data.hkl, self.data.intensity, find_space_group(space_group))


def given_reference(settings: Merge, cell: Sequence[float] | None, space_group: str) -> GivenReference:
    """Return the intensities of ``settings.reference`` for lattices of a cell, merged in a space group.

    Those of the same crystal form in another setting are reindexed, with a word; those of another form are not used, with a word.

    Raises
    ------
    DataError
        If the file cannot be read, or has no intensities.
    """
    if settings.reference is None or cell is None:
        return GivenReference()
    path = Path(settings.reference)
    data = model_intensities(path, settings.d_min or HIGHEST_RESOLUTION) if has_coordinates(path) else read_reference(path)
    change = _change(data, cell, space_group)
    if change is None:
        there, here = (" ".join(f"{v:.2f}" for v in values) for values in (data.cell, cell))
        what = f"its cell is {there} in {data.space_group}, that of the lattices {here}, merged in {space_group}"
        return GivenReference(words=(f"merge.reference {path.name}: {what}: another crystal form, merged without it",))
    if np.array_equal(change, np.eye(3)):
        return GivenReference(data)
    axes = ", ".join("".join(f"{int(v):+d}{name}" for name, v in zip("abc", column, strict=True) if v) for column in change.T)
    word = f"merge.reference {path.name}: is in another setting, its axes are taken as ({axes})"
    cell_there = cell_of_metric(change.T @ metric_tensor(data.cell) @ change)
    return GivenReference(replace(data, hkl=(data.hkl @ change).astype(np.int32), cell=cell_there), (word,))


def _change(data: ReferenceData, cell: Sequence[float], space_group: str) -> Integers | None:
    """Return the matrix whose columns are the axes of the lattices in those of the reference; None if there is none."""
    wanted, metric_there = _laue(space_group), metric_tensor(data.cell)
    best: tuple[float, Integers | None] = SAME_CELL, None
    for change in _changes():
        length, angle = cell_deviation(cell_of_metric(change.T @ metric_there @ change), tuple(cell))
        away = max(length, angle / 100.0)
        if away >= best[0] - 1e-6:
            continue
        inverse = np.rint(np.linalg.inv(change)).astype(np.int64)
        moved = {tuple((inverse @ r @ change).ravel().tolist()) for r in _rotations(data.space_group)}
        if moved == wanted:
            best = away, change
            if np.array_equal(change, np.eye(3)):
                break  # as it is, if that fits
    return best[1]


@cache
def _changes() -> tuple[Integers, ...]:
    """Return the changes of axes of determinant 1 with the entries -1, 0 and 1: the identity, permutations, then all others."""
    all_of = np.array(list(itertools.product((-1, 0, 1), repeat=9)), dtype=np.int64).reshape(-1, 3, 3)
    proper = all_of[np.rint(np.linalg.det(all_of)) == 1.0]
    order = sorted(proper, key=lambda m: (int(np.abs(m - np.eye(3)).sum() > 0), int(np.abs(m).sum()), -int(m.sum())))
    return tuple(order)


def _rotations(name: str) -> list[Integers]:
    return [sign * r for r in point_group_rotations(name) for sign in (1, -1)]


def _laue(name: str) -> set[tuple[int, ...]]:
    return {tuple(r.ravel().tolist()) for r in _rotations(name)}

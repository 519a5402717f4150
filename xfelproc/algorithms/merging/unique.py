"""The unique reflections of a run: how many observations each has, and where each observation belongs."""

from __future__ import annotations

from dataclasses import dataclass

import gemmi
import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging.reduction import Indices, asu_operators, pack, to_asu
from xfelproc.errors import ConfigError
from xfelproc.kernels.unique import find_groups, order_by_group

MOST_CELLS = 1 << 28
"""Cells of the table of all indices between the extremes, 4 bytes each: beyond it no crystal diffracts."""


@dataclass(frozen=True)
class Multiplicity:
    """How often each unique reflection is observed: packed indices in the asymmetric unit, ascending, and counts; both (n,)."""

    keys: NDArray[np.int64]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, hkl: Indices, group: gemmi.SpaceGroup) -> Multiplicity:
        """Count indices (n, 3) as observed."""
        keys, counts = np.unique(pack(to_asu(hkl, group)[0]), return_counts=True)
        return cls(keys, counts.astype(np.int64))

    def __add__(self, other: Multiplicity) -> Multiplicity:
        """Return the counts over both."""
        keys = np.union1d(self.keys, other.keys)
        counts = np.zeros(len(keys), dtype=np.int64)
        for part in (self, other):
            counts[np.searchsorted(keys, part.keys)] += part.counts
        return Multiplicity(keys, counts)


class Locator:
    """Finds the rows of observations in a list of unique reflections ``unique`` (n, 3), in the asymmetric unit of a group.

    Raises
    ------
    ConfigError
        If the indices of the list span more than any crystal has.
    """

    def __init__(self, unique: Indices, group: gemmi.SpaceGroup) -> None:
        self._n = len(unique)
        self._operators, self._case = asu_operators(group)
        self._low, high = np.zeros(3, dtype=np.int32), np.zeros(3, dtype=np.int32)
        if len(unique):
            self._low, high = unique.min(axis=0).astype(np.int32), unique.max(axis=0)
        shape = (high.astype(np.int64) - self._low + 1).tolist()
        if np.prod(shape) > MOST_CELLS:
            raise ConfigError(
                f"indices of reflections go from {self._low.tolist()} to {high.tolist()}: set merge.d_min, or look at the cells"
            )
        self._grid = np.full(shape, -1, dtype=np.int32)
        self._grid[tuple((unique - self._low).T)] = np.arange(len(unique), dtype=np.int32)

    def find(self, hkl: NDArray[np.int16]) -> tuple[NDArray[np.int32], NDArray[np.int16]]:
        """Return the row (n,) of each index (n, 3) as observed (-1: not in the list), and isym as `reduction.to_asu` does."""
        found: tuple[NDArray[np.int32], NDArray[np.int16]] = find_groups(
            np.ascontiguousarray(hkl), self._operators, self._case, self._low, self._grid
        )
        return found

    def sorted(self, hkl: Indices) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the order (n,) that sorts indices of the asymmetric unit as the list, and the bounds of its rows in that order.

        All of them must be in the list; those of one row stay in their order.
        """
        rows = self._grid[tuple((hkl - self._low).T)]
        found: tuple[NDArray[np.int64], NDArray[np.int64]] = order_by_group(rows, self._n)
        return found

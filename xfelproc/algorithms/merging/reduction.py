"""Observations reduced to unique reflections."""

from __future__ import annotations

from dataclasses import dataclass

import gemmi
import numpy as np
from numpy.typing import NDArray

from xfelproc.geometry.miller import (
    HOLOHEDRAL_GROUPS,
    Indices,
    asu_operators,
    find_space_group,
    free_flags,
    holohedral_group,
    inverse_d2,
    mix,
    pack,
    possible_reflections,
    to_asu,
    unpack,
)

__all__ = [
    "HOLOHEDRAL_GROUPS",
    "Indices",
    "Reduced",
    "asu_operators",
    "find_space_group",
    "free_flags",
    "holohedral_group",
    "inverse_d2",
    "mix",
    "pack",
    "possible_reflections",
    "reduce_indices",
    "to_asu",
    "unpack",
]


@dataclass(frozen=True)
class Reduced:
    """Indices reduced to the asymmetric unit, and the order that sorts them.

    ``order`` sorts observations by unique reflection and, within it, keeps their order; ``starts`` (n_unique + 1,) bounds the
    unique reflections in that order; ``unique`` (n_unique, 3) are their indices; ``isym`` (n,) belongs to the unsorted rows.
    """

    order: NDArray[np.int64]
    starts: NDArray[np.int64]
    unique: Indices
    isym: NDArray[np.int32]

    @property
    def group(self) -> NDArray[np.int64]:
        """(n,) number of the unique reflection of each sorted row."""
        return np.repeat(np.arange(len(self.unique)), np.diff(self.starts))


def reduce_indices(hkl: Indices, space_group: gemmi.SpaceGroup) -> Reduced:
    """Return the reduction of indices (n, 3) under a space group; unique reflections come sorted by h, k, l."""
    reduced, isym = to_asu(hkl, space_group)
    key = pack(reduced)
    order = np.argsort(key, kind="stable")
    ordered = key[order]
    first = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(ordered) else np.zeros(0, dtype=np.int64)
    return Reduced(order, np.append(first, len(ordered)).astype(np.int64), reduced[order[first]], isym)

"""The negative control from pixels of all shards, as far as it is needed."""

from __future__ import annotations

from collections.abc import Sequence

import gemmi
import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging.ambiguity_operators import reindexed
from xfelproc.algorithms.merging.off_lattice import OffLattice
from xfelproc.geometry.miller import mix
from xfelproc.io.shards import read_control, read_lattices
from xfelproc.models.frames import Control
from xfelproc.stages.ambiguity import ReindexedReader
from xfelproc.stages.fold import Shards

MOST = 1 << 21
"""Intensities that are kept, about: more would tell no more."""


def off_lattice_of(shards: Shards, n_lattices: Sequence[int], group: gemmi.SpaceGroup) -> OffLattice:
    """Return the control of shards from all over the run.

    Parameters
    ----------
    shards
        As they were merged.
    n_lattices
        Of each.
    group
        Space group of the merging.
    """
    before = np.concatenate([[0], np.cumsum(n_lattices)]).astype(np.int64)
    parts: list[tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.float32], NDArray[np.uint8]]] = []
    total = 0
    # halves, quarters, eighths ... of the run
    for block in sorted(range(len(shards)), key=lambda number: f"{number:032b}"[::-1]):
        if total >= MOST:
            break
        path = shards.path(block)[3]
        control = read_control(path) if n_lattices[block] else None
        if control is not None:
            frame = read_lattices(path)["frame"][control.lattice].astype(np.uint64)
            half = (mix((np.uint64(block) << np.uint64(32)) | frame) & np.uint64(1)).astype(np.uint8)
            parts.append((_indices(control, shards, block), before[block] + control.lattice, control.intensity, half))
            total += len(control)
    if not parts:
        parts = [(np.zeros((0, 3), np.int32), np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, np.uint8))]
    hkl, lattice, intensity, halves = (np.concatenate(column) for column in zip(*parts, strict=True))
    return OffLattice.of(hkl, lattice, intensity, halves, group)


def _indices(control: Control, shards: Shards, block: int) -> NDArray[np.int32]:
    """Return the indices in the settings that the shards are read in."""
    reader = shards.open(block)
    if not isinstance(reader, ReindexedReader):
        return control.hkl
    own, hkl = reader.operators[control.lattice], control.hkl.copy()
    for matrix in np.unique(own, axis=0):
        rows = np.all(own == matrix, axis=(1, 2))
        hkl[rows] = reindexed(hkl[rows], matrix)
    return hkl

"""Places between the reflections of a lattice, to be integrated like these: what is found there can be no signal."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from xfelproc.geometry.miller import mix
from xfelproc.geometry.prediction import predict_indices
from xfelproc.models.conventions import ReflectionFlag
from xfelproc.models.experiment import Beam, as_matrix
from xfelproc.models.frames import FrameRef, RefinedLattice
from xfelproc.models.tables import ReflectionTable

EXCLUDED = int(ReflectionFlag.OVERLOADED | ReflectionFlag.BAD_PIXEL | ReflectionFlag.BACKGROUND | ReflectionFlag.EDGE)
_HASH = 1 << 20


def is_control(ref: FrameRef, share: float) -> bool:
    """Return whether a frame is among the ``share`` of all whose places between the reflections are integrated: a hash says."""
    identity = np.array([ref.source, ref.index], dtype=np.uint64)
    return int(mix(identity[1:] ^ mix(identity[:1]))[0] % np.uint64(_HASH)) < share * _HASH


def between(lattice: RefinedLattice, beam: Beam, table: ReflectionTable) -> ReflectionTable:
    """Return the table of a lattice's reflections with each moved by half of all three indices, as far as its ray meets the panel.

    The half-integral index is no point of the lattice whatever its centring.
    """
    halved = replace(lattice.crystal, A=as_matrix(0.5 * lattice.crystal.a_matrix))
    places = predict_indices(halved, lattice.detector, beam, 2 * table["hkl"] + 1, table["panel"])
    moved = table.replace(fast=places[:, 0], slow=places[:, 1], flags=np.zeros(len(table), dtype=np.uint16))
    sizes = lattice.detector.image_sizes[table["panel"]]
    return moved.select(np.all((places[:, :2] > 0) & (places[:, :2] < sizes), axis=1))


def clear_of(places: ReflectionTable, reflections: ReflectionTable, distance: float) -> NDArray[np.bool_]:
    """Return which places are further than ``distance`` px from every reflection of a frame."""
    clear = np.ones(len(places), dtype=bool)
    for panel in np.unique(places["panel"]):
        mine, theirs = places["panel"] == panel, reflections["panel"] == panel
        here, there = (np.column_stack([t["fast"], t["slow"]])[rows] for t, rows in ((places, mine), (reflections, theirs)))
        apart = np.sum((here[:, None, :] - there[None, :, :]) ** 2, axis=2)
        clear[mine] = np.all(apart > distance**2, axis=1)
    return clear

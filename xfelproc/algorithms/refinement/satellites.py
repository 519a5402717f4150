"""Lattices close to a refined one: parts of a split or bent crystal, or of other cells, that share its indices."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from xfelproc.geometry.prediction import pack_detector
from xfelproc.kernels.geometry import spots_to_q
from xfelproc.kernels.satellites import find_move, moved_matrix
from xfelproc.models.experiment import Beam, as_matrix
from xfelproc.models.frames import IndexedLattice, RefinedLattice
from xfelproc.models.tables import SpotTable

_ROUNDS = 50
_REACH, _LEAST_REACH = 2.5, 1.0
"""A spot is the satellite's within so many RMSDs of the lattice, and never less than so many px."""
_DEPTH, _LEAST_DEPTH = 3.0, 1e-3
"""So many root mean square excitation errors of the lattice, and never less (1/Å), may a spot be off along the sphere's normal."""
_TURN, _DILATION = 0.012, 0.002
"""Standard deviations of turns (radians) and of relative cell lengths against the lattice; twice the former is searched."""
_CLEAR, _SIGNIFICANCE = 3.0, 4.0
"""A satellite not so many reaches away must stand out over its mirror image by so many standard deviations."""


def find_satellite(
    lattice: RefinedLattice, left: NDArray[np.int64], spots: SpotTable, beam: Beam, min_spots: int
) -> IndexedLattice | None:
    """Return a lattice turned and dilated a little against a refined one that explains many of the rows ``left`` of ``spots``.

    It must explain ``min_spots``, and there must be twice as many to be worth the search. One so near that the wings of a broad
    lattice reach it must explain significantly more than its mirror image about the lattice, as wings are as wide on either side.
    """
    if len(left) < 2 * min_spots:
        return None
    q = np.empty((len(left), 3))
    packed = pack_detector(lattice.detector)
    spots_to_q(packed, spots["panel"][left], spots["fast"][left], spots["slow"][left], beam.s0, q)
    normal = q + beam.s0
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    a = lattice.crystal.a_matrix
    used = lattice.indexed["used"]
    length = np.linalg.norm(lattice.indexed["hkl"][used] @ a.T, axis=1)
    excitation = np.radians(lattice.indexed["delta_psi"][used]) * length
    depth = max(_DEPTH * float(np.sqrt(np.mean(excitation**2))), _LEAST_DEPTH)
    pixel = packed[0, 13] / (float(np.linalg.norm(lattice.detector.centre)) * beam.wavelength)
    reach = pixel * max(_REACH * lattice.rmsd_used, _LEAST_REACH)
    prior = np.array([_TURN, _TURN, _TURN, _DILATION])
    score, mirrored, move = find_move(a, q, normal, prior, reach, depth, _ROUNDS)
    moved = moved_matrix(a, move)
    if score < min_spots / 2 or (
        _apart(lattice, moved - a) < _CLEAR * reach and score - mirrored < _SIGNIFICANCE * np.sqrt(score + mirrored)
    ):
        return None
    hkl = np.rint(q @ np.linalg.inv(moved).T).astype(np.int32)
    miss = q - hkl @ moved.T
    along = np.sum(miss * normal, axis=1)
    core = (np.abs(along) < depth) & (np.sum(miss**2, axis=1) - along**2 < reach**2)
    crystal = replace(lattice.crystal, A=as_matrix(moved))
    return IndexedLattice(crystal, left[core], hkl[core], lattice.log10_p, lattice.shift, lattice.tilt)


def _apart(lattice: RefinedLattice, change: NDArray[np.float64]) -> float:
    """Return the root mean square distance (1/Å) by which a change of A moves the lattice's indexed points."""
    moved = lattice.indexed["hkl"] @ change.T
    return float(np.sqrt(np.mean(np.sum(moved**2, axis=1))))

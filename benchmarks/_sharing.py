"""Which spots are whose: what the figures of a frame's first lattice are if spots are shared out otherwise."""

from __future__ import annotations

import numpy as np
from _truth import Outcome
from numpy.typing import NDArray

from xfelproc.geometry.cells import lattice_rotations, misorientation
from xfelproc.geometry.detector import pixel_to_q
from xfelproc.geometry.prediction import predict_indices
from xfelproc.models.experiment import Beam
from xfelproc.models.frames import RefinedLattice
from xfelproc.models.tables import SpotTable


def others(outcome: Outcome) -> str:
    """Return spots, RMSD and turn against the first of the further lattices of a frame."""
    words = []
    for lattice in outcome.lattices[1:]:
        apart = misorientation(
            lattice.crystal.a_matrix, outcome.lattices[0].crystal.a_matrix, lattice_rotations(outcome.lattices[0].crystal.cell)
        )
        n_used = int(lattice.indexed["used"].sum())
        words.append(f"{len(lattice.indexed)} spots ({n_used} that fit {lattice.rmsd_used:.2f} px) at {apart:.2f}°")
    return "; ".join(words)


def residuals(lattice: RefinedLattice, spots: SpotTable, beam: Beam) -> NDArray[np.float64]:
    """Return the distance (px) of every spot of the frame from its prediction, infinite where |Δhkl| > 0.3."""
    q = pixel_to_q(lattice.detector, beam, spots["panel"], spots["fast"], spots["slow"])
    index = q @ np.linalg.inv(lattice.crystal.a_matrix).T
    hkl = np.rint(index).astype(np.int32)
    rows = np.flatnonzero(np.all(np.abs(index - hkl) <= 0.3, axis=1) & np.any(hkl != 0, axis=1))
    predicted = predict_indices(lattice.crystal, lattice.detector, beam, hkl[rows], spots["panel"][rows])
    out = np.full(len(spots), np.inf)
    out[rows] = np.hypot(predicted[:, 0] - spots["fast"][rows], predicted[:, 1] - spots["slow"][rows])
    return out


def offered(outcome: Outcome, beam: Beam, factor: float) -> str:
    """Return the figures of the first lattice; spots that another predicts nearer by ``factor`` are not offered to it."""
    first, *further = [residuals(lattice, outcome.spots, beam) for lattice in outcome.lattices]
    own = np.isfinite(first)
    for other in further:
        own[own] = other[own] >= factor * first[own]
    return f"{np.count_nonzero(own)} indexed, {np.sqrt(np.mean(first[own] ** 2)):.2f} px"


def together(outcome: Outcome, beam: Beam) -> str:
    """Return the figures of all lattices of the frame: every spot offered, and taken by the one that predicts it nearest."""
    distance = np.min([residuals(lattice, outcome.spots, beam) for lattice in outcome.lattices], axis=0)
    own = np.isfinite(distance)
    return f"{np.count_nonzero(own)} of {len(own)} indexed, {np.sqrt(np.mean(distance[own] ** 2)):.2f} px"

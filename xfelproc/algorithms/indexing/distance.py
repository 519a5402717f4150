"""The distance of the detector, from frames whose cell is known: a search on each, and what several agree on.

Distance and size of the cell nearly make up for each other, so that one lattice tells little. What gives a wrong distance
away is that the spots of many frames fit far better at another one, the same for all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from xfelproc.geometry.cells import Floats, cell_volume
from xfelproc.models.experiment import Beam, Detector, as_vector
from xfelproc.models.frames import CellTarget, IndexedLattice, IndexingResult
from xfelproc.models.tables import SpotTable

DISTANCE_STEP = 0.01
"""Relative step of the search; a lattice is found at distances up to about three times that from the right one."""
AGREEMENT = 0.01
"""Largest relative difference of two frames' distances that agree."""
MAX_CHANCE = 1e-4
"""A distance is believed if so many frames of random spots agree on one with less than this chance."""
_AS_GOOD = 0.85
"""A lattice explains the spots about as well as the best if log10 of its chance is at least this part of the best one's."""


class Indexer(Protocol):
    """What indexes a frame with the detector where it is."""

    def index(self, spots: SpotTable, detector: Detector, beam: Beam, target: CellTarget) -> IndexingResult:
        """Return the lattices of a frame."""


@dataclass(frozen=True)
class DistanceSearch:
    """An indexer that tries every distance within ``max_error`` (relative) of the recorded one, that one first."""

    indexer: Indexer
    max_error: float

    def index(self, spots: SpotTable, detector: Detector, beam: Beam, target: CellTarget) -> IndexingResult:
        """Return the lattices at the distance that the spots fit; the recorded one if they fit it about as well as any.

        A cell that is scaled along all axes makes up for a wrong distance where angles are small: such a cell has to do clearly
        worse at the recorded distance than the given one does at another.
        """

        def index_at(moved: Detector) -> IndexingResult:
            return self.indexer.index(spots, moved, beam, target)

        recorded = index_at(detector)
        found = list(results_at_distances(index_at, detector, beam, self.max_error))
        best = min(map(_log10_p, (recorded, *found)))
        if _log10_p(recorded) <= _AS_GOOD * best:
            return recorded
        nearest = nearest_cell(found, target)
        if nearest is None:
            return recorded
        forward = -np.asarray(beam.direction) @ np.asarray(nearest.lattices[0].shift)
        scaled = self.indexer.index(spots, detector, beam, _scaled(target, 1.0 / (1.0 + forward / _distance(detector, beam))))
        return scaled if _log10_p(scaled) <= _AS_GOOD * best else nearest


def _scaled(target: CellTarget, factor: float) -> CellTarget:
    """Return a target with the lengths of its cell times ``factor``."""
    if target.cell is None:
        return target
    a, b, c, alpha, beta, gamma = target.cell
    return replace(target, cell=(factor * a, factor * b, factor * c, alpha, beta, gamma))


def _distance(detector: Detector, beam: Beam) -> float:
    """Return the mean distance (mm) of the panels' origins along the beam."""
    along = -np.asarray(beam.direction)
    return float(np.mean([along @ np.asarray(panel.origin) for panel in detector.panels]))


def results_at_distances(
    index_at: Callable[[Detector], IndexingResult], detector: Detector, beam: Beam, max_error: float
) -> Iterable[IndexingResult]:
    """Yield what is found with the detector nearer and further by up to ``max_error`` of its distance, small moves first."""
    along, distance = -np.asarray(beam.direction), _distance(detector, beam)
    for step in range(1, round(max_error / DISTANCE_STEP) + 1):
        for sign in (1, -1):
            move = as_vector(sign * step * DISTANCE_STEP * distance * along)
            found = index_at(detector.shifted(move))
            yield replace(found, lattices=tuple(_moved(lattice, move) for lattice in found.lattices))


def _moved(lattice: IndexedLattice, move: tuple[float, float, float]) -> IndexedLattice:
    return replace(lattice, shift=as_vector(np.add(lattice.shift, move)))


def _log10_p(result: IndexingResult) -> float:
    return result.lattices[0].log10_p if result.lattices else 0.0


def nearest_cell(results: Iterable[IndexingResult], target: CellTarget) -> IndexingResult | None:
    """Return, of the results that explain the spots about as well as the best, that whose cell has the target's volume most nearly.

    None if nothing was found in any.
    """
    found = [result for result in results if result.lattices]
    limit = _AS_GOOD * min(map(_log10_p, found), default=0.0)
    volume = cell_volume(target.cell) if target.cell is not None else 0.0
    good = [result for result in found if _log10_p(result) <= limit]
    return min(good, key=lambda r: abs(cell_volume(r.lattices[0].crystal.cell) - volume), default=None)


@dataclass(frozen=True)
class CommonDistance:
    """A distance (mm) that ``count`` frames agree on, and half the range of theirs, relative."""

    distance: float
    count: int
    spread: float


def common_distance(distances: Floats, n_frames: int, max_error: float, log10_chance: float) -> CommonDistance | None:
    """Return the distance that more frames agree on than chance allows, and at least half of those with a lattice; else None.

    Parameters
    ----------
    distances
        (n,) in mm, of the frames with a lattice.
    n_frames
        Frames searched, with and without a lattice.
    max_error
        Relative range of the search to each side.
    log10_chance
        Log10 of the chance that random spots show a lattice at one distance.
    """
    if len(distances) == 0:
        return None
    chosen = largest_cluster(np.log(distances)[:, None], AGREEMENT)
    count = int(np.count_nonzero(chosen))
    if 2 * count < len(distances) or count < fewest_agreeing(n_frames, max_error, log10_chance):
        return None
    agreeing = distances[chosen]
    return CommonDistance(float(np.median(agreeing)), count, float(np.ptp(np.log(agreeing))) / 2.0)


def fewest_agreeing(n_frames: int, max_error: float, log10_chance: float) -> int:
    """Return how many of ``n_frames`` frames must agree; more than ``n_frames`` if there are too few to tell.

    A frame of random spots shows a lattice within `AGREEMENT` of a given distance with the chance p of that many steps of the
    search. That k or more of n do so at one of the w distances tried has at most the chance w C(n, k) pᵏ.
    """
    steps = round(max_error / DISTANCE_STEP)
    log_p = math.log(min(1.0, 10.0**log10_chance * (1 + 2 * round(AGREEMENT / DISTANCE_STEP))))
    limit = math.log(MAX_CHANCE / (2 * steps + 1))
    for k in range(2, n_frames + 1):
        # logarithms, as C(n, k) of a long run is more than a float holds
        ways = math.lgamma(n_frames + 1) - math.lgamma(k + 1) - math.lgamma(n_frames - k + 1)
        if ways + k * log_p < limit:
            return k
    return n_frames + 1


def largest_cluster(values: Floats, tolerance: float) -> NDArray[np.bool_]:
    """Return which of ``values`` (n, k) lie within ``tolerance``, in each component, of the one that most lie about."""
    near = np.all(np.abs(values[:, None, :] - values[None, :, :]) <= tolerance, axis=2)
    best: NDArray[np.bool_] = near[int(np.argmax(np.count_nonzero(near, axis=1)))]
    return best

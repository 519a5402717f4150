"""A frame again, with another geometry: indexed from the spots that are known, and integrated from its pixels only where that
changes what would be summed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xfelproc.geometry.cells import lattice_rotations, misorientation
from xfelproc.geometry.placement import transferred
from xfelproc.geometry.prediction import predict_indices
from xfelproc.io.shards import UnitImages, read_images, read_shard, shard_path
from xfelproc.models.conventions import FrameStatus
from xfelproc.models.experiment import Beam, Crystal, Detector, as_matrix, as_vector
from xfelproc.models.frames import Frame, FrameRef, IndexedLattice, IntegrationResult, RefinedLattice, UnitResult
from xfelproc.models.tables import IndexedTable, LatticeTable, ReflectionTable, SpotTable
from xfelproc.stages.stills import StillResult, Stills, refine_found

SAME_LATTICE = 1.0
"""Largest misorientation (degrees) of a lattice from what it was before."""
INDEX, REFINE, INTEGRATE = 2, 3, 4
"""Places in `StillResult.times`."""


@dataclass(frozen=True)
class Again:
    """How a stage processes frames again.

    Parameters
    ----------
    stage
        Whose shards have the spots, the lattices and the reflections.
    before, after
        Geometry of the run's first frame that these were found with, and the one to use.
    tolerance
        Pixels (rms over a lattice's reflections) by which predictions may move before a frame is integrated again; None: nothing
        is integrated, and no pixels are read.
    """

    stage: str
    before: Detector
    after: Detector
    tolerance: float | None


@dataclass(frozen=True)
class KnownFrame:
    """What an earlier stage knows of a frame; ``lattice`` columns count its lattices from 0, ``spot`` columns its spots."""

    status: FrameStatus
    reason: str
    wavelength: float
    times: tuple[float, ...]
    spots: SpotTable
    lattices: LatticeTable
    indexed: IndexedTable
    reflections: ReflectionTable
    common_mode_failed: int = 0

    def as_blank(self) -> StillResult:
        """Return what there was before indexing."""
        found = StillResult(self.status, self.reason, self.spots, self.wavelength, times=self.times[1:])
        return replace(found, common_mode_failed=self.common_mode_failed)


class KnownUnit:
    """The shard of a unit that an earlier stage made, frame by frame."""

    def __init__(self, result: UnitResult, images: UnitImages | None) -> None:
        self.images = images
        self._result = result
        self._spots = _starts(result.spots["frame"], len(result.frames))
        self._lattices = _starts(result.lattices["frame"], len(result.frames))
        self._indexed = _starts(result.indexed["lattice"], len(result.lattices))
        self._reflections = _starts(result.reflections["lattice"], len(result.lattices))

    @classmethod
    def read(cls, run: Path, stage: str, unit: int) -> KnownUnit:
        """Read a unit's shard.

        Raises
        ------
        DataError
            If it is missing or damaged.
        """
        path = shard_path(run, stage, unit)
        return cls(read_shard(path), read_images(path))

    def ref(self, row: int) -> FrameRef:
        """Return which frame is at a row."""
        return FrameRef(int(self._result.frames["source"][row]), int(self._result.frames["index"][row]))

    def frame(self, row: int) -> KnownFrame:
        """Return what is known of the frame at a row."""
        result, frames = self._result, self._result.frames
        first, last = self._lattices[row], self._lattices[row + 1]
        spots = slice(self._spots[row], self._spots[row + 1])
        indexed = result.indexed.select(slice(self._indexed[first], self._indexed[last]))
        reflections = result.reflections.select(slice(self._reflections[first], self._reflections[last]))
        return KnownFrame(
            FrameStatus(int(frames["status"][row])),
            str(frames["reason"][row]),
            float(frames["wavelength"][row]),
            tuple(map(float, frames["times"][row])),
            result.spots.select(spots),
            result.lattices.select(slice(first, last)),
            indexed.replace(lattice=indexed["lattice"] - first, spot=indexed["spot"] - spots.start),
            reflections.replace(lattice=reflections["lattice"] - first),
            int(frames["common_mode_failed"][row]),
        )


def _starts(owner: NDArray[np.int32], n: int) -> list[int]:
    """Return where the rows of each of ``n`` owners begin, and where the last one's end; owners ascend."""
    starts: list[int] = np.searchsorted(owner, np.arange(n + 1)).tolist()
    return starts


class Placer:
    """Carries a refined geometry over to the detectors of frames; knows the last few, which most frames share."""

    def __init__(self, again: Again) -> None:
        self._again = again
        self._known: list[tuple[Detector, Detector | None]] = []

    def place(self, detector: Detector) -> Detector | None:
        """Return the detector of a frame with the refined geometry; None if it is another than the one that was refined."""
        for seen, placed in self._known:
            if seen is detector:
                return placed
        found = transferred(detector, self._again.before, self._again.after)
        self._known = [(detector, found), *self._known[:3]]
        return found


def unchanged(known: KnownFrame, detector: Detector) -> StillResult:
    """Return what is known of a frame as it is."""
    base = known.as_blank()
    if known.status < FrameStatus.INDEXED:
        return base
    lattices = tuple(_as_known(known, number, detector) for number in range(len(known.lattices)))
    d_min = tuple(map(float, known.lattices["d_min"]))
    integration = IntegrationResult(tuple(x.crystal for x in lattices), d_min, known.reflections)
    return replace(base, lattices=lattices, integration=integration)


def _as_known(known: KnownFrame, number: int, detector: Detector) -> RefinedLattice:
    row = {column.name: known.lattices[column.name][number] for column in LatticeTable.SCHEMA}
    crystal = Crystal(as_matrix(row["A"]), str(row["space_group"]), float(row["domain_size"]), float(row["half_mosaicity"]))
    indexed = known.indexed.select(known.indexed["lattice"] == number)
    return RefinedLattice(
        crystal,
        detector,
        as_vector(row["shift"]),
        indexed,
        float(row["rmsd"]),
        float(row["rmsd_psi"]),
        accepted=True,
        log10_p=float(row["log10_p"]),
        rmsd_used=float(row["rmsd_used"]),
        tilt=(float(row["tilt"][0]), float(row["tilt"][1])),
        satellite=bool(row["satellite"]),
    )


def reprocess(
    stills: Stills,
    known: KnownFrame,
    detector: Detector,
    beam: Beam,
    tolerance: float | None,
    read: Callable[[], Frame],
) -> StillResult:
    """Index a frame again from its spots, on another detector; integrate it where its predictions move by more than ``tolerance``.

    Parameters
    ----------
    known
        What was found before; a frame that was no hit is left as it is.
    detector, beam
        Of this frame, as they are now.
    tolerance
        See `Again`.
    read
        Returns the calibrated frame, with this detector.
    """
    base = known.as_blank()
    if known.status < FrameStatus.HIT:
        return base
    clock = time.process_time()
    found = stills.index.index(known.spots, detector, beam, stills.target)
    refined, refused = refine_found(stills, found.lattices, known.spots, detector, beam)
    if not refined:
        refined, _ = refine_found(stills, lattices_before(known), known.spots, detector, beam)
    refined, places = in_old_setting(refined, known.lattices)
    base = _spent(base, INDEX, clock)
    if not refined:
        return replace(base, status=FrameStatus.HIT, reason=refused or found.reason or "no lattice found")
    indexed = replace(base, status=FrameStatus.INDEXED, reason="", lattices=refined)
    if tolerance is None or stills.integrate is None:
        return indexed
    if known.status == FrameStatus.INTEGRATED and not moved(known, refined, places, beam, tolerance):
        return replace(indexed, status=FrameStatus.INTEGRATED, integration=_kept(known, refined, places))
    clock = time.process_time()
    integration = stills.integrate.integrate(read(), refined, known.spots)
    indexed = replace(_spent(indexed, INTEGRATE, clock), integration=integration)
    if len(integration.reflections) == 0:
        return replace(indexed, reason="no reflection is predicted on the detector")
    return replace(indexed, status=FrameStatus.INTEGRATED)


def _spent(result: StillResult, step: int, since: float) -> StillResult:
    """Return the result with the CPU time (ms) since then in the place of a step's."""
    times = list(result.times)
    times[step] = 1e3 * (time.process_time() - since)
    return replace(result, times=tuple(times))


def lattices_before(known: KnownFrame) -> list[IndexedLattice]:
    """Return the lattices of a frame that are no satellites, to be refined again."""
    found = []
    for number in np.flatnonzero(~known.lattices["satellite"]):
        rows = known.indexed["used"] & (known.indexed["lattice"] == number)
        crystal = Crystal(as_matrix(known.lattices["A"][number]), str(known.lattices["space_group"][number]))
        spots = known.indexed["spot"][rows].astype(np.int64)
        found.append(IndexedLattice(crystal, spots, known.indexed["hkl"][rows], float(known.lattices["log10_p"][number])))
    return found


def in_old_setting(refined: Sequence[RefinedLattice], old: LatticeTable) -> tuple[tuple[RefinedLattice, ...], NDArray[np.int64]]:
    """Return lattices in the order and in the setting of those of before that they are, and where each of those now is.

    A lattice has several settings that are all right (they differ by rotations of it), and indexing takes any. The places, (old,),
    are -1 for lattices that are there no more, and for satellites.
    """
    places = np.full(len(old), -1, dtype=np.int64)
    left, ordered = list(refined), list[RefinedLattice]()
    for number in np.flatnonzero(~old["satellite"]):
        own = old["A"][number]
        rotations = lattice_rotations(tuple(old["cell"][number]))
        apart = [np.inf if x.satellite else misorientation(x.crystal.a_matrix, own, rotations) for x in left]
        best = int(np.argmin(apart)) if apart else -1
        if best < 0 or apart[best] > SAME_LATTICE:
            continue
        places[number] = len(ordered)
        ordered.append(_turned(left.pop(best), own, rotations))
    return (*ordered, *left), places


def _turned(lattice: RefinedLattice, own: NDArray[np.float64], rotations: NDArray[np.int64]) -> RefinedLattice:
    """Return a lattice in that of its settings that is nearest to ``own`` (3, 3; columns a*, b*, c*)."""
    a = lattice.crystal.a_matrix
    settings = [a @ np.linalg.inv(rotation.astype(np.float64)) for rotation in rotations]
    best = int(np.argmin([np.sum((setting - own) ** 2) for setting in settings]))
    if np.array_equal(rotations[best], np.eye(3)):
        return lattice
    hkl = (lattice.indexed["hkl"] @ rotations[best].T).astype(np.int32)
    crystal = replace(lattice.crystal, A=as_matrix(settings[best]))
    return replace(lattice, crystal=crystal, indexed=lattice.indexed.replace(hkl=hkl))


def moved(known: KnownFrame, refined: Sequence[RefinedLattice], places: NDArray[np.int64], beam: Beam, tolerance: float) -> bool:
    """Whether lattices of a frame are others than before, or the reflections of one moved by more than ``tolerance`` px rms."""
    own = ~known.lattices["satellite"]
    if np.any(places[own] < 0) or int(np.count_nonzero(own)) != sum(not lattice.satellite for lattice in refined):
        return True
    for number in np.flatnonzero(own):
        rows = known.reflections["lattice"] == number
        table, lattice = known.reflections.select(rows), refined[places[number]]
        predicted = predict_indices(lattice.crystal, lattice.detector, beam, table["hkl"], table["panel"])
        off2 = (predicted[:, 0] - table["fast"]) ** 2 + (predicted[:, 1] - table["slow"]) ** 2
        if len(table) and not float(np.mean(off2)) <= tolerance**2:  # NaN, too: a ray that misses its panel
            return True
    return False


def _kept(known: KnownFrame, refined: Sequence[RefinedLattice], places: NDArray[np.int64]) -> IntegrationResult:
    """Return the reflections of before, of the lattices as they are now."""
    d_min = np.full(len(refined), np.nan)
    own = places >= 0
    d_min[places[own]] = known.lattices["d_min"][own]
    table = known.reflections.replace(lattice=places[known.reflections["lattice"]])
    return IntegrationResult(tuple(x.crystal for x in refined), tuple(map(float, d_min)), table)

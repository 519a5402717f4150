"""Detector metrology over the shards of a run: what workers do.

`PlaceSurvey` is a fold over the shards: how many lattices there are, and where each frame's own refinement had the detector.
`SpotExtract` writes, once a round, what refinement needs of each lattice: a few kilobytes, in the frame of the run's detector.
`MetrologyFold` goes over these, once an iteration, with the detector as it is then; `DriftUpdate` refines each block of frames for
itself.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.metrology import CrystalSpots
from xfelproc.errors import DataError
from xfelproc.geometry.placement import Motion, seen_from, transferred, whole_motion
from xfelproc.io.nodes import Partial
from xfelproc.io.sources.settings import SourceSettings
from xfelproc.models.experiment import Beam, Detector
from xfelproc.models.frames import UnitResult
from xfelproc.stages.fold import UnitReader
from xfelproc.stages.unit_sources import Opener, UnitSources

Floats = NDArray[np.float64]

PLACES = 4096
"""Lattices, of smallest key, whose own place of the detector is kept for the median."""
SPOT_ARRAYS = ("hkl", "panel", "fast", "slow", "var_fast", "var_slow")
LATTICE_ARRAYS = ("A", "space_group", "wavelength", "key")
_SYMBOL = np.dtype("S24")


class Refinement(Protocol):
    """Section ``[metrology]``, as far as workers need it."""

    def begin(self, detector: Detector, beam: Beam) -> Any:
        """Return the state before the first iteration."""

    def accumulate(self, state: Any, crystals: Iterable[CrystalSpots]) -> Partial:
        """Return the sums over some crystals."""

    def combine(self, first: Partial, second: Partial) -> Partial:
        """Return the sums of both."""

    def advance(self, state: Any, partial: Partial) -> Any:
        """Return the state after an iteration."""


@dataclass(frozen=True)
class UnitOpening:
    """Where a worker finds the frames of a run: their manifest, and how to open the files."""

    manifest: Path
    opener: Opener
    settings: SourceSettings


def frame_key(name: str, index: int) -> int:
    """Return the hash of a frame's identity: the name of its file (not where it lies) and its number in it."""
    return int.from_bytes(hashlib.blake2b(f"{name}\x00{index}".encode(), digest_size=8).digest(), "big")


def _lattice_keys(sources: UnitSources, result: UnitResult, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
    given = sources.given
    names = {number: given.sources.name(given.row(number)) for number in given.numbers.tolist()}
    frame = result.lattices["frame"][rows]
    identity = zip(result.frames["source"][frame].tolist(), result.frames["index"][frame].tolist(), strict=True)
    return np.array([frame_key(names[source], index) for source, index in identity], dtype=np.uint64)


def _independent(result: UnitResult) -> NDArray[np.int64]:
    """Return the lattices that are no part of another one's crystal."""
    return np.flatnonzero(~result.lattices["satellite"])


@dataclass(frozen=True)
class PlaceSurvey:
    """Fold over shards: number of lattices and of their spots, and translation (mm) and tilt (degrees) of the detector by some."""

    manifest: Path

    @property
    def lineage(self) -> str:
        """Hash of what the result depends on beside the shards."""
        return hashlib.sha256(f"metrology survey {PLACES}".encode()).hexdigest()

    def accumulate(self, blocks: Iterable[UnitReader]) -> Partial:
        """Return the survey of some shards."""
        found = {"key": np.zeros(0, np.uint64), "place": np.zeros((0, 5)), "counts": np.zeros(2, np.int64)}
        opened = UnitSources(self.manifest, _no_opener, SourceSettings())
        try:
            for block in blocks:
                opened.begin(block.unit)
                found = self.combine(found, self._of(block.result(), opened))
        finally:
            opened.close()
        return found

    def _of(self, result: UnitResult, opened: UnitSources) -> Partial:
        rows = _independent(result)
        place = np.column_stack([result.lattices["shift"][rows], result.lattices["tilt"][rows]])
        counts = np.array([len(rows), int(result.lattices["n_used"][rows].sum())], dtype=np.int64)
        return _smallest(_lattice_keys(opened, result, rows), place) | {"counts": counts}

    def combine(self, first: Partial, second: Partial) -> Partial:
        """Return the survey of both."""
        keys, places = (np.concatenate([first[name], second[name]]) for name in ("key", "place"))
        return _smallest(keys, places) | {"counts": first["counts"] + second["counts"]}


def _smallest(keys: NDArray[np.uint64], places: Floats) -> Partial:
    order = np.argsort(keys, kind="stable")[:PLACES]
    return {"key": keys[order], "place": places[order]}


def _no_opener(path: str, settings: SourceSettings) -> Any:
    raise AssertionError("a survey opens no frames")


@dataclass(frozen=True)
class SpotExtract:
    """Update over shards: the indexed spots of all lattices, as seen on one detector.

    Parameters
    ----------
    opening
        Where the frames' own detectors are to be had.
    before, after
        The run's recorded detector, and the one that the shards were made with.
    target
        The detector that the spots are seen on: ``after``, with the mean of what the frames' own refinement found added.
    individual
        Whether each frame's own place of the detector is to be believed; otherwise it moves from frame to frame by error only.
    """

    opening: UnitOpening
    before: Detector
    after: Detector
    target: Detector
    individual: bool

    @property
    def lineage(self) -> str:
        """Hash of what the result depends on beside the shards."""
        content = ("metrology spots 1", self.before, self.after, self.target, self.individual)
        return hashlib.sha256(repr(content).encode()).hexdigest()

    def accumulate(self, blocks: Iterable[UnitReader]) -> Partial:
        """Return the spots of some shards."""
        opened = UnitSources(self.opening.manifest, self.opening.opener, self.opening.settings)
        try:
            parts = [self._of(block, opened) for block in blocks]
        finally:
            opened.close()
        joined = {name: np.concatenate([part[name] for part in parts]) for name in (*LATTICE_ARRAYS, *SPOT_ARRAYS, "count")}
        frames = np.sum([part["frames"] for part in parts], axis=0)
        return joined | {"frames": frames}

    def _of(self, block: UnitReader, opened: UnitSources) -> Partial:
        result = block.result()
        opened.begin(block.unit)
        rows = _independent(result)
        turns, moves, good = self._motions(result, rows, opened)
        rows, turns, moves, others = rows[good], turns[good], moves[good], int(np.count_nonzero(~good))
        used = result.indexed["used"] & np.isin(result.indexed["lattice"], rows)
        indexed = result.indexed.select(used)
        owner = np.searchsorted(rows, indexed["lattice"])
        spots = result.spots.select(indexed["spot"])
        panel, pixels = spots["panel"].astype(np.int64), np.column_stack([spots["fast"], spots["slow"]])
        if len(pixels):
            pixels = seen_from(self.target, self.after, panel, pixels, turns[owner], moves[owner])
        lattices = result.lattices
        return {
            "A": lattices["A"][rows],
            "space_group": lattices["space_group"][rows].astype(_SYMBOL),
            "wavelength": result.frames["wavelength"][lattices["frame"][rows]],
            "key": _lattice_keys(opened, result, rows),
            "count": np.bincount(owner, minlength=len(rows)).astype(np.int64),
            "hkl": indexed["hkl"],
            "panel": spots["panel"],
            "fast": pixels[:, 0],
            "slow": pixels[:, 1],
            "var_fast": spots["var_fast"],
            "var_slow": spots["var_slow"],
            "frames": np.array([len(result.frames), others], dtype=np.int64),
        }

    def _motions(
        self, result: UnitResult, rows: NDArray[np.int64], opened: UnitSources
    ) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        """Return by which turns (n, 3, 3) and moves (n, 3) the detectors of lattices came to where they were from ``after``, and
        whether they are that detector at all.
        """
        turns, moves, good = np.tile(np.eye(3), (len(rows), 1, 1)), np.zeros((len(rows), 3)), np.ones(len(rows), dtype=bool)
        if not self.individual:  # all stand where their mean does
            turns[:], moves[:] = _motion_between(self.after, self.target)
        known: tuple[Detector, Motion | None] | None = None
        for number, row in enumerate(rows):
            frame = int(result.lattices["frame"][row])
            own = _own_detector(opened, int(result.frames["source"][frame]), int(result.frames["index"][frame]))
            if own is None:
                good[number] = False
                continue
            if known is None or known[0] is not own:
                known = own, _motion_to(self.before, self.after, own)
            motion = known[1]
            if motion is None:
                good[number] = False
                continue
            if self.individual:
                shift, tilt = result.lattices["shift"][row], result.lattices["tilt"][row]
                turns[number], moves[number] = shot_motion(self.after, shift, tilt)
            turns[number], moves[number] = motion.turn @ turns[number], motion.turn @ moves[number] + motion.move
        return turns, moves, good


def _own_detector(opened: UnitSources, source: int, index: int) -> Detector | None:
    """Return the detector of a frame as its file says; None if that cannot be read any more."""
    try:
        return opened.source(source).experiment(index).detector
    except DataError:
        return None


def _motion_to(before: Detector, after: Detector, own: Detector) -> Motion | None:
    """Return the motion from ``after`` to where a frame has the same detector."""
    placed = own if before is after else transferred(own, before, after)
    if placed is None:
        return None
    return whole_motion(after, placed)


def _motion_between(first: Detector, second: Detector) -> tuple[Floats, Floats]:
    motion = whole_motion(first, second)
    assert motion is not None, "it was moved as a whole"
    return motion.turn, motion.move


def shot_motion(detector: Detector, shift: Floats, tilt: Floats) -> tuple[Floats, Floats]:
    """Return turn and move of `Detector.moved`."""
    if not np.any(tilt):
        return np.eye(3), np.asarray(shift, dtype=np.float64)
    x, y = np.radians(np.asarray(tilt, dtype=np.float64))
    angle = float(np.hypot(x, y))
    cross = np.array([[0.0, 0.0, y], [0.0, 0.0, -x], [-y, x, 0.0]]) / angle
    turn = np.eye(3) + np.sin(angle) * cross + (1.0 - np.cos(angle)) * (cross @ cross)
    return turn, detector.centre + shift - turn @ detector.centre


def crystals_of(node: Partial) -> Iterator[CrystalSpots]:
    """Yield the lattices of a node that `SpotExtract` made."""
    ends = np.cumsum(node["count"])
    symbols = [symbol.decode() for symbol in node["space_group"].tolist()]
    for number, (start, end) in enumerate(zip(ends - node["count"], ends, strict=True)):
        spots = {name: node[name][start:end] for name in SPOT_ARRAYS}
        yield CrystalSpots(
            A=node["A"][number],
            space_group=symbols[number],
            wavelength=float(node["wavelength"][number]),
            key=int(node["key"][number]),
            **spots,
        )


@dataclass(frozen=True)
class MetrologyFold:
    """Fold over nodes of `SpotExtract`: the sums of an iteration. ``lineage`` is that of the state."""

    settings: Refinement
    state: Any
    lineage: str

    def accumulate(self, blocks: Iterable[Partial]) -> Partial:
        """Return the sums over the crystals of some nodes."""
        return self.settings.accumulate(self.state, (crystal for block in blocks for crystal in crystals_of(block)))

    def combine(self, first: Partial, second: Partial) -> Partial:
        """Return the sums of both."""
        return self.settings.combine(first, second)


@dataclass(frozen=True)
class DriftUpdate:
    """Update over nodes of `SpotExtract`: where the detector is by the crystals of each block of frames alone."""

    settings: Refinement
    detector: Detector
    beam: Beam
    lineage: str

    def accumulate(self, blocks: Iterable[Partial]) -> Partial:
        """Return the pickled state to which refinement came over some nodes, and the frames in them."""
        nodes = list(blocks)
        crystals = [crystal for node in nodes for crystal in crystals_of(node)]
        state = self.settings.begin(self.detector, self.beam)
        while not state.finished:
            state = self.settings.advance(state, self.settings.accumulate(state, crystals))
        frames = np.array([sum(int(node["frames"][0]) for node in nodes), len(crystals)], dtype=np.int64)
        return {"state": packed_state(state), "frames": frames}


def packed_state(state: Any) -> NDArray[np.uint8]:
    """Return a state as bytes."""
    return np.frombuffer(pickle.dumps(state), dtype=np.uint8)


def unpacked_state(values: NDArray[np.uint8]) -> Any:
    """Return the state of `packed_state`.

    Raises
    ------
    DataError
        If it cannot be read.
    """
    try:
        return pickle.loads(values.tobytes())
    except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError) as error:
        raise DataError(
            f"a state of the metrology cannot be read ({error}): remove gather/metrology and run the same command again"
        ) from error

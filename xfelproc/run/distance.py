"""Where a cell is given and the frames do not index: is the recorded distance of the detector wrong?

The first hits of the run decide, from the shards that are made anyway: a run whose frames index pays nothing. Where they speak
against the recorded distance, others are tried on a sample of hits, and if more of them agree on one than chance allows, all
frames are processed with that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.indexing.distance import (
    DISTANCE_STEP,
    CommonDistance,
    DistanceSearch,
    common_distance,
    fewest_agreeing,
    largest_cluster,
)
from xfelproc.geometry.cells import cell_volume
from xfelproc.io.manifest import Manifest, write_manifest
from xfelproc.io.shards import read_frames, read_lattices, shard_path
from xfelproc.io.sources.overrides import detector_distance, with_distance
from xfelproc.io.sources.settings import SourceSettings
from xfelproc.models.conventions import FrameStatus
from xfelproc.models.experiment import Experiment, as_vector
from xfelproc.models.frames import CellTarget
from xfelproc.run.config import JobConfig
from xfelproc.run.directory import RunDirectory
from xfelproc.run.lineage import digest
from xfelproc.run.session import Session
from xfelproc.run.stage_cell import sampling_order
from xfelproc.run.target import user_target
from xfelproc.stages.execute import StageJob

STAGE = "distance"
RECORD = "distance.json"
FRAMES_A_UNIT = 2
ENOUGH_HITS = 50
"""Hits of the run's beginning from which the recorded distance is judged; a run with fewer is judged at its end."""
SAMPLE = 32
"""Most hits on which other distances are tried."""
FIRST_ROUND = 8
"""Hits of the first round; each further round, where they do not agree yet, doubles what was tried before."""
FEW = 3
"""Lattices of one cell that prove the recorded distance, if they are at least half of all."""
SAME_CELL = 0.015
"""Largest relative difference of lengths of cells that are the same; a cell scaled by more than this is suspicious."""
JUDGED = 1000
"""Most lattices by which the recorded distance is judged: each is compared with every other."""
SAME_RECORD = 0.005
"""Largest relative difference of the distances recorded for the frames of a run that one distance can correct."""


def recorded_distance(config: JobConfig, directory: RunDirectory) -> float | None:
    """Return the distance (mm) that the run found in place of the recorded one; None if it found none, or one is given."""
    record = directory.read_json(RECORD)
    if record is None or config.input.distance is not None:
        return None
    distance: float | None = record["distance"]
    return distance


def distance_warnings(directory: RunDirectory) -> list[str]:
    """Return what the user must know of the distance found."""
    return list((directory.read_json(RECORD) or {}).get("warnings", ()))


def source_settings(config: JobConfig, directory: RunDirectory) -> SourceSettings:
    """Return what readers of frames need, with the distance that the run found."""
    settings, found = config.input.settings(), recorded_distance(config, directory)
    return settings if found is None else settings.model_copy(update={"distance": found})


def corrected_experiment(session: Session) -> Experiment:
    """Return the models of the run's first frame, with the distance that the run found."""
    models, found = session.experiment, recorded_distance(session.config, session.directory)
    return models if found is None else replace(models, detector=with_distance(models.detector, models.beam, found))


@dataclass
class DistanceCheck:
    """Judges the recorded distance from the units of a run, in unit order, so that the verdict depends on the input alone.

    ``distance`` (mm) is what was found in its place.
    """

    session: Session
    target: CellTarget
    job: StageJob
    distance: float | None = None
    settled: bool = False
    suspicious: bool = False
    looked: int = 0
    """Units, from the first, that were judged."""
    _counts: dict[int, Mapping[str, int]] = field(default_factory=dict)
    _ready: int = 0
    _hits: int = 0

    def __post_init__(self) -> None:
        given = self.session.config
        error = given.sample.max_distance_error
        self.settled = user_target(self.session).cell is None or given.input.distance is not None or error == 0
        known = self.session.directory.read_json(RECORD)
        if known is None:
            return
        if self.settled or known["lineage"] != self._lineage:
            self.session.directory.remove_json(RECORD)
            return
        self.distance, self.looked = known["distance"], known["units"]
        self.session.warnings += known["warnings"]

    @property
    def _lineage(self) -> str:
        """Hash of the frames and what is done with them at the recorded distance."""
        sample = self.session.config.sample.max_distance_error
        return digest({"stage": self.job.lineage, "manifest": self.session.manifest.stamp, "sample": sample})

    def see(self, unit: int, counts: Mapping[str, int]) -> bool:
        """Take the counts of a unit done at the recorded distance; return whether no more should be sent out."""
        if self.settled or self.distance is not None:
            return False
        self._counts[unit] = counts
        while self._ready in self._counts:
            self._hits += _hits(self._counts[self._ready])
            self._ready += 1
            if self.looked == 0 and self._hits >= ENOUGH_HITS:
                self._look()
        return self.suspicious

    def search(self) -> bool:
        """Search for the distance if units speak against the recorded one; return whether units are to be mapped (again)."""
        n_units = self.session.manifest.n_units
        if not (self.settled or self.suspicious or self.distance is not None) and self.looked < self._ready == n_units:
            self._look()
        if not self.suspicious:
            return False
        self.suspicious = False
        self.distance = self._search()
        return self.distance is not None or self.looked < n_units

    def _look(self) -> None:
        self.looked = self._ready
        self.settled = self._fits(range(self.looked))
        self.suspicious = not self.settled

    def _fits(self, units: Sequence[int]) -> bool:
        """Whether the lattices of units speak for the recorded distance, or there is too little to tell.

        At a distance that is some percent wrong frames do index, but each with another cell, as the spots used pull it; at one
        that is wrong by little all cells are the given one scaled.
        """
        session, cell = self.session, self.target.cell
        if cell is None or fewest_agreeing(self._hits, *self._chance()) > self._hits:
            return True
        cells = [_first_lattices(session, unit) for unit in units if self._counts[unit]["LATTICES"]]
        if not cells:
            return False
        ratios = np.log(np.concatenate(cells)[:, :3] / np.array(cell[:3]))
        ratios = ratios[sampling_order(len(ratios))[:JUDGED]]
        same = largest_cluster(ratios, SAME_CELL)
        count = int(np.count_nonzero(same))
        if 2 * count < len(ratios) or (count < FEW and 2 * count < self._hits):
            return False
        scale = np.median(ratios[same], axis=0)
        mean = abs(float(np.mean(scale)))
        return mean < SAME_CELL or float(np.ptp(scale)) > 0.5 * mean

    def _chance(self) -> tuple[float, float]:
        return self.session.config.sample.max_distance_error, self.session.config.section("index").log10_chance

    def _search(self) -> float | None:
        """Index a sample of the hits at all distances; publish and return the one they agree on."""
        session = self.session
        manifest = session.manifest.with_frames(self._sample(range(self.looked)), FRAMES_A_UNIT)
        path = session.directory.gather / "distance.h5"
        write_manifest(path, manifest)
        job = self._sample_job(session.stage_job(STAGE, manifest, path, self.target, integrate=False))
        session.reporter.say("the hits do not index as they should at the recorded distance: others are tried on a sample")
        units, common = 0, None
        while common is None and units < manifest.n_units:
            units = min(manifest.n_units, max(FIRST_ROUND // FRAMES_A_UNIT, 2 * units))
            session.run_units(job, manifest, range(units))
            recorded, factors = self._votes(manifest, units)
            tried = int(manifest.offsets[units])
            common = common_distance(factors, tried, *self._chance())
        record = self._record(common, recorded, tried, len(factors))
        session.directory.write_json(RECORD, {"lineage": self._lineage, "units": self.looked, **record})
        session.journal.write("distance", **record)
        found: float | None = record["distance"]
        return found

    def _sample_job(self, job: StageJob) -> StageJob:
        error = self.session.config.sample.max_distance_error
        stills = replace(job.stills, index=DistanceSearch(self.session.config.section("index").quick(), error))
        return replace(job, stills=stills, lineage=digest({"stage": job.lineage, "max_error": error}))

    def _sample(self, units: Sequence[int]) -> NDArray[np.int64]:
        """Return rows of the manifest: hits, not those with the fewest spots, spread over the units."""
        rows, n_spots = [], []
        for unit in units:
            if not _hits(self._counts[unit]):
                continue
            frames = read_frames(shard_path(self.session.directory.path, self.job.stage, unit))
            hits = np.flatnonzero(np.isin(frames["status"], [FrameStatus.HIT, FrameStatus.INDEXED, FrameStatus.INTEGRATED]))
            rows.append(hits + self.session.manifest.offsets[unit])
            n_spots.append(frames["n_spots"][hits])
        row, spots = np.concatenate(rows).astype(np.int64), np.concatenate(n_spots)
        if len(row) > SAMPLE:
            row = row[spots >= min(np.median(spots), np.sort(spots)[-SAMPLE])]
        return row[sampling_order(len(row))[:SAMPLE]]

    def _votes(self, manifest: Manifest, units: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return, of the first units' frames with a lattice, recorded distance (mm) and the factor on it that fits best."""
        cell, recorded, factors = self.target.cell, [], []
        assert cell is not None
        settings = self.session.config.input.settings()
        for unit in range(units):
            path = shard_path(self.session.directory.path, STAGE, unit)
            frames, lattices = read_frames(path), read_lattices(path)
            for row, shift, found in zip(lattices["frame"], lattices["shift"], lattices["cell"], strict=True):
                name = manifest.sources.path(int(frames["source"][row]))
                with self.session.opener(name, settings) as source:
                    models = source.experiment(int(frames["index"][row]))
                before = detector_distance(models.detector, models.beam)
                factor = detector_distance(models.detector.shifted(as_vector(shift)), models.beam) / before
                moved = abs(factor - 1.0) > 0.5 * DISTANCE_STEP
                recorded.append(before)
                factors.append(factor * (cell_volume(cell) / cell_volume(found)) ** (1.0 / 3.0) if moved else 1.0)
        return np.array(recorded), np.array(factors)

    def _record(self, common: CommonDistance | None, recorded: NDArray[np.float64], tried: int, indexed: int) -> dict[str, Any]:
        record: dict[str, Any] = {"distance": None, "frames": tried, "indexed": indexed, "agreeing": 0, "warnings": []}
        error = self.session.config.sample.max_distance_error
        if common is None:
            self.session.reporter.say(
                f"no distance within {100 * error:.0f} % of the recorded one is agreed on: {indexed} of {tried} frames index"
            )
            return record
        record |= {"recorded": float(np.median(recorded)), "agreeing": common.count, "spread": common.spread}
        if abs(common.distance - 1.0) < 0.5 * DISTANCE_STEP:
            self.session.reporter.say(f"the recorded distance is right: {common.count} of {tried} frames fit it best")
            return record
        agree = f"{common.count} of {tried} sample frames agree on it to {100 * common.spread:.2f} %"
        low, high = recorded.min(), recorded.max()
        if np.ptp(np.log(recorded)) > SAME_RECORD:
            text = (
                f"the recorded distances, {low:.1f} to {high:.1f} mm, do not fit the cell: {common.distance:.4f} times them does "
                f"({agree}). They differ, so that no one distance corrects them: run each group with an input.distance of its own"
            )
        else:
            record["distance"] = round(common.distance * record["recorded"], 3)
            text = (
                f"the recorded distance of the detector, {record['recorded']:.1f} mm, does not fit the cell: found "
                f"{record['distance']:.1f} mm ({agree}), and all frames are processed with that. Set input.distance to silence "
                "this, or sample.max_distance_error = 0 to keep the recorded one"
            )
        self.session.warn(text)
        return record | {"warnings": [text]}


def _hits(counts: Mapping[str, int]) -> int:
    return sum(counts[status.name] for status in (FrameStatus.HIT, FrameStatus.INDEXED, FrameStatus.INTEGRATED))


def _first_lattices(session: Session, unit: int) -> NDArray[np.float64]:
    """Return the cells (n, 6) of the first lattice of each frame of a unit."""
    lattices = read_lattices(shard_path(session.directory.path, "process", unit))
    _, first = np.unique(lattices["frame"], return_index=True)
    cells: NDArray[np.float64] = lattices["cell"][first]
    return cells

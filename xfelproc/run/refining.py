"""Refinement of the detector from a run's lattices, in rounds: refine, index all spots again, refine again, until nothing moves.

What is between two steps is in ``gather/metrology/progress.h5``, from which a killed run goes on; spots and sums are nodes of
folds, lattices of a round are the shards of stage ``reindex``.
"""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from xfelproc.errors import ConfigError
from xfelproc.geometry.placement import displacements, placement_of
from xfelproc.io.nodes import Partial, find_node, read_node, write_node
from xfelproc.models.experiment import Detector, as_vector
from xfelproc.run.distance import corrected_experiment, recorded_distance, source_settings
from xfelproc.run.folding import block_leaves
from xfelproc.run.geometry import PROCESS, RESULT
from xfelproc.run.lineage import digest, versions
from xfelproc.run.merging import FoundShards, MergeInput
from xfelproc.run.session import Session
from xfelproc.run.target import run_target
from xfelproc.stages.execute import StageJob
from xfelproc.stages.fold import Nodes, Shards, cut_leaves
from xfelproc.stages.metrology import MetrologyFold, PlaceSurvey, SpotExtract, UnitOpening, packed_state, unpacked_state
from xfelproc.stages.reprocess import Again

REINDEX = "reindex"
FOLDER = "metrology"
FEWER, FEWER_SPOTS = 0.98, 0.8
"""A geometry with which fewer than these parts of the lattices of before and of their spots are found is not taken."""
NOT_OF_THE_GEOMETRY = {"enabled", "max_move", "block_frames"}
"""Keys that the refined geometry does not depend on."""


@dataclass(frozen=True)
class Round:
    """What a round of refinement came to, in plain values."""

    number: int
    lattices: int
    spots: int
    iterations: int
    converged: bool
    usable: bool
    """It came to its end, even if not every level settled in the passes it has."""
    why: str
    significance: float
    shift_px: float
    """Root mean square over the panels of the motion of their middles across the beam, px."""
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Progress:
    """Where refinement is: in a round that begins with lattices found with ``detector``.

    ``accepted`` is the last geometry whose lattices were no fewer than those of the one before, ``lattices`` how many.
    """

    detector: Detector
    accepted: Detector
    lattices: int = 0
    spots: int = 0
    iteration: int = 0
    begun: int = 0
    """Iteration with which the round began."""
    state: Any = None
    rounds: tuple[Round, ...] = ()


class Refining:
    """The refinement of a session's detector."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.settings = session.config.section("metrology")
        models = corrected_experiment(session)
        self.before, self.beam = models.detector, models.beam
        self.shards = FoundShards.of([MergeInput(session.directory.path, session.manifest.n_units)])
        keys = self.settings.model_dump(mode="json", exclude=NOT_OF_THE_GEOMETRY)
        own = self.stage_job(REINDEX, self.before, None)
        self.lineage = digest({"shards": self.shards.lineage, "metrology": keys, "job": own.lineage, "versions": versions()})
        self.folder = session.directory.gather / FOLDER

    def stage_job(self, stage: str, detector: Detector, tolerance: float | None) -> StageJob:
        """Return the job that processes all frames again with a detector in the place of the recorded one."""
        session, distance = self.session, recorded_distance(self.session.config, self.session.directory)
        path, integrate = session.directory.manifest, tolerance is not None
        job = session.stage_job(stage, session.manifest, path, run_target(session), integrate, distance)
        placements = [placement_of(self.before), placement_of(detector)]
        lineage = digest({"job": job.lineage, "placements": placements, "tolerance": tolerance})
        return replace(job, lineage=lineage, again=Again(PROCESS, self.before, detector, tolerance))

    def reprocess(self, detector: Detector) -> Counter[str]:
        """Make the shards of the result; return the counts of their frames."""
        job = self.stage_job(RESULT, detector, self.settings.max_move)
        return self.session.run_units(job, self.session.manifest, range(self.session.manifest.n_units))

    def clear(self) -> None:
        """Remove the lattices of rounds, which are of no more use."""
        shutil.rmtree(self.session.directory.path / "shards" / REINDEX, ignore_errors=True)

    def refine(self) -> tuple[Detector, str, tuple[Round, ...]]:
        """Return the detector to use (the recorded one where nothing better was found), why it ended, and what the rounds were."""
        progress = self._load() or Progress(self.before, self.before)
        while True:
            survey = self._lattices(progress)
            lattices, spots = map(int, survey["counts"])
            if lattices < FEWER * progress.lattices or spots < FEWER_SPOTS * progress.spots:
                why = (
                    f"the geometry of round {len(progress.rounds)} gives {lattices} lattices of {spots} spots, that before it "
                    f"{progress.lattices} of {progress.spots}: it is not taken"
                )
                return progress.accepted, why, progress.rounds
            progress = replace(progress, accepted=progress.detector, lattices=lattices, spots=spots)
            if len(progress.rounds) > self.settings.iterate:
                return progress.accepted, f"after {len(progress.rounds)} rounds (metrology.iterate)", progress.rounds
            try:
                progress = self._round(progress, survey)
            except ConfigError as error:  # the detector's tree: whoever asked for metrology must know, others need not
                if self.settings.enabled is True:
                    raise
                return progress.accepted, str(error), progress.rounds
            last = progress.rounds[-1]
            if not last.usable:
                return progress.accepted, last.why, progress.rounds
            if last.significance <= 1.0:
                return progress.accepted, "the next round moved nothing by more than its uncertainty", progress.rounds

    def _lattices(self, progress: Progress) -> Partial:
        """Index all spots with the round's detector, in the first round as they were; return the survey of the lattices."""
        session, number = self.session, len(progress.rounds)
        if number:
            units = range(session.manifest.n_units)
            session.run_units(self.stage_job(REINDEX, progress.detector, None), session.manifest, units)
        survey = PlaceSurvey(session.directory.manifest.absolute())
        return session.fold(survey, f"{FOLDER}/survey", number, self._shards(number), self._leaves)

    def _shards(self, number: int) -> Shards:
        """Return the shards that a round begins with."""
        session = self.session
        return Shards(PROCESS if number == 0 else REINDEX, ((session.directory.path.absolute(), session.manifest.n_units),))

    @property
    def _leaves(self) -> tuple[int, ...]:
        return cut_leaves(np.diff(self.session.manifest.offsets), self.session.config.execution.fold_size)

    def _round(self, progress: Progress, survey: Partial) -> Progress:
        """Refine the detector with the lattices of this round, from where an earlier start of this run left off."""
        session, number = self.session, len(progress.rounds)
        target = self._shared(progress.detector, survey["place"])
        extract = SpotExtract(self.opening, self.before, progress.detector, target, self.individual)
        spots = Nodes(session.update(extract, f"{FOLDER}/spots", number, self._shards(number), self._leaves))
        state = progress.state if progress.state is not None else self.settings.begin(target, self.beam, self.before)
        while not state.finished:
            fold = MetrologyFold(self.settings, state, digest([self.lineage, number, progress.iteration]))
            offsets = block_leaves(len(spots))
            partial = session.fold(fold, f"{FOLDER}/refine", progress.iteration, spots, offsets)
            state = self.settings.advance(state, partial)
            progress = replace(progress, state=state, iteration=progress.iteration + 1)
            self._save(progress)
        write_node(result_path(session.directory.gather, number), self.lineage, {"result": packed_state(state)})
        done = Round(
            number,
            int(survey["counts"][0]),
            int(survey["counts"][1]),
            progress.iteration - progress.begun,
            bool(state.converged),
            bool(state.usable),
            str(state.why),
            float(state.significance),
            shift_px(progress.detector, state.detector),
            (*_others(spots), *map(str, state.notes)),
        )
        detector = state.detector if state.usable else progress.detector
        progress = replace(progress, detector=detector, state=None, begun=progress.iteration, rounds=(*progress.rounds, done))
        self._save(progress)
        return progress

    @property
    def opening(self) -> UnitOpening:
        """How workers find the frames' own detectors."""
        session = self.session
        settings = source_settings(session.config, session.directory)
        return UnitOpening(session.directory.manifest.absolute(), session.opener, settings)

    @property
    def individual(self) -> bool:
        """Whether the detector is refined on each frame, so that its place there is to be believed."""
        return bool(getattr(self.session.config.section("refine"), "detector", "none") != "none")

    def _shared(self, detector: Detector, places: Any) -> Detector:
        """Return the detector where the median of the frames' own refinements (n, 5; mm, degrees) has it."""
        if not len(places) or not np.any(places):
            return detector
        middle = np.median(places, axis=0)
        return detector.moved(as_vector(middle[:3]), (float(middle[3]), float(middle[4])))

    def _save(self, progress: Progress) -> None:
        write_node(self.folder / "progress.h5", self.lineage, {"progress": packed_state(progress)})

    def _load(self) -> Progress | None:
        found = find_node(self.folder / "progress.h5", self.lineage)
        if found is None:
            return None
        progress: Progress = unpacked_state(found["progress"])
        return progress


def result_path(gather: Path, number: int) -> Path:
    """Return where the result of a round of refinement is, below a run's folder ``gather``."""
    return gather / FOLDER / f"result-{number}.h5"


def _others(spots: Nodes) -> tuple[str, ...]:
    """Return a word on the lattices of other detectors than the one that is refined."""
    others = sum(int(read_node(path, ["frames"])[1]["frames"][1]) for path in spots.paths)
    if not others:
        return ()
    return (f"{others} lattices are of frames whose detector is not that of the first frame: they are left out, and keep theirs",)


def shift_px(before: Detector, after: Detector) -> float:
    """Return the root mean square over the panels of the motion of their middles across the beam, px."""
    moved = displacements(before, after)[:, :2] / before.pixel_sizes
    return float(np.sqrt(np.mean(np.sum(moved**2, axis=1))))

"""A run at work: what its stages share."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from xfelproc.drivers.base import Driver
from xfelproc.io.inflight import clear_inflight, read_inflight
from xfelproc.io.manifest import Manifest
from xfelproc.io.nodes import Partial
from xfelproc.models.experiment import Experiment
from xfelproc.models.frames import CellTarget
from xfelproc.run.config import INPUT_FILES, JobConfig
from xfelproc.run.directory import RunDirectory
from xfelproc.run.folding import Gathering, read_partial
from xfelproc.run.geometry import result_stage
from xfelproc.run.isolation import IsolatedUnits
from xfelproc.run.journal import Journal
from xfelproc.run.lineage import digest, file_identity, instruction_set, versions
from xfelproc.run.loop import Dispatch
from xfelproc.run.signals import StopFlag
from xfelproc.run.suspects import Cases, SuspectFile
from xfelproc.stages.execute import (
    StageJob,
    UnitSummary,
    execute,
    make_task,
)
from xfelproc.stages.fold import Blocks, Fold, Shards, Update, cut_leaves
from xfelproc.stages.published import find_shards, unit_lineage
from xfelproc.stages.stills import Stills
from xfelproc.stages.unit_sources import Opener

Enough = Callable[[int, Mapping[str, int]], bool]


class Reporter(Protocol):
    """Tells the user how it goes."""

    def stage(self, name: str, done: int, total: int) -> None:
        """A stage begins; ``done`` of ``total`` frames were there already."""

    def unit(self, frames: int, counts: dict[str, int]) -> None:
        """A unit is done."""

    def say(self, text: str) -> None:
        """One line."""


@dataclass
class Session:
    """The run's directory, job, manifest, driver and journal; stages read it and add to ``times`` and ``warnings``."""

    directory: RunDirectory
    config: JobConfig
    manifest: Manifest
    experiment: Experiment
    opener: Opener
    driver: Driver
    journal: Journal
    reporter: Reporter
    stop: StopFlag
    times: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def warn(self, text: str) -> None:
        """Tell the user, the journal and the report."""
        self.warnings.append(text)
        self.journal.write("warning", text=text)
        self.reporter.say(f"warning: {text}")

    @property
    def result_stage(self) -> str:
        """The stage whose shards are the result: ``process``, or that which followed refinement of the detector."""
        return result_stage(self.config, self.directory)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the wall time of the block to the report's table."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self.times[name] = self.times.get(name, 0.0) + time.monotonic() - begun

    def stage_job(
        self, stage: str, manifest: Manifest, path: Path, target: CellTarget, integrate: bool, distance: float | None = None
    ) -> StageJob:
        """Return the job of a map stage over the frames of a manifest, which is at ``path``.

        ``distance`` (mm) takes the place of the recorded one.
        """
        section = self.config.section
        names = ("calibrate", "spots", "index", "refine", *(("integrate",) if integrate else ()))
        given = self.config.input
        settings = given.settings() if distance is None else given.settings().model_copy(update={"distance": distance})
        parameters: dict[str, Any] = {
            "stage": stage,
            "sections": {name: section(name).model_dump(mode="json") for name in names},
            "settings": settings.model_dump(mode="json"),
            "files": {name: file_identity(str(getattr(given, name) or "")) for name in INPUT_FILES},
            "target": [target.cell, target.space_group],
            "versions": versions(),
        }
        for name in ("geometry", "mask"):
            parameters["settings"][name] = None  # where a file lies does not matter, what is in it does
        return StageJob(
            run=self.directory.path.absolute(),
            stage=stage,
            manifest=path.absolute(),
            stamp=manifest.stamp,
            lineage=digest(parameters),
            instructions=instruction_set(),
            settings=settings,
            stills=Stills(
                section("calibrate"),
                section("spots"),
                section("index"),
                section("refine"),
                section("integrate") if integrate else None,
                target,
            ),
            opener=self.opener,
            dark=given.dark,
            gain=given.gain,
            images=integrate,
            calibration=given.calibration,
        )

    def run_units(self, job: StageJob, manifest: Manifest, units: Sequence[int], enough: Enough | None = None) -> Counter[str]:
        """Map a stage over units, those with a shard of equal lineage left out; return the counts over all of them.

        ``enough`` is told the counts of each unit as it is done, or found done; when it says so, no more are sent out.
        """
        totals: Counter[str] = Counter()
        headers, changed = find_shards(job.run, job.stage, job.lineage, manifest, units)
        if changed:
            self.journal.write("files_changed", stage=job.stage, units=changed)
            self.reporter.say(f"{job.stage}: files of {len(changed)} units have changed since these were done: they are done again")
        todo = [unit for unit in units if unit not in headers]
        sizes = np.diff(manifest.offsets)
        done, total = (int(sizes[np.array(some, dtype=np.int64)].sum()) for some in (list(headers), units))
        stopped = False
        for unit, header in headers.items():
            totals.update(header.counts)
            stopped = (enough is not None and enough(unit, header.counts)) or stopped
            if header.instructions != job.instructions:
                self._mixed(header.instructions)
        self.reporter.stage(job.stage, done, total)
        self.journal.write(
            "stage", stage=job.stage, units=len(units), done=len(units) - len(todo), lineage=job.lineage, frames=done, counts=totals
        )

        def on_done(summary: UnitSummary) -> None:
            totals.update(summary.counts)
            if enough is not None and enough(summary.unit, summary.counts):
                dispatch.finish()
            self.journal.write(
                "unit",
                stage=summary.stage,
                unit=summary.unit,
                counts=summary.counts,
                seconds=round(summary.seconds, 4),
                worker=summary.worker,
            )
            for reason, count in summary.failures:
                self.journal.write("failure", stage=summary.stage, unit=summary.unit, count=count, reason=reason)
            self.reporter.unit(int(manifest.offsets[summary.unit + 1] - manifest.offsets[summary.unit]), summary.counts)

        suspects = SuspectFile(self.directory).cases(
            job.stage, todo, lambda unit: unit_lineage(job.lineage, manifest.unit_input(unit))
        )
        with IsolatedUnits(job.run, make_task(job)) as isolation:
            dispatch = self._dispatch(job, on_done, suspects, isolation)
            dispatch.seconds.extend(header.seconds for header in headers.values())  # the timeout knows them from the start
            dispatch.run(() if stopped else todo)
        return totals

    def fold(
        self, fold: Fold, stage: str, iteration: int = 0, blocks: Blocks | None = None, offsets: tuple[int, ...] | None = None
    ) -> Partial:
        """Return the fold's result, computed by workers; nodes of it that are there are not computed again.

        Parameters
        ----------
        fold, stage, iteration
            See `run.folding.Gathering.fold`.
        blocks
            What to fold over; None: the shards that are the run's result.
        offsets
            Bounds of the leaves in the blocks, from `stages.fold.cut_leaves`; None: from the manifest for shards.
        """
        return read_partial(self.gathering.fold(fold, stage, iteration, *self._leaves(blocks, offsets)))

    def update(
        self, update: Update, stage: str, iteration: int = 0, blocks: Blocks | None = None, offsets: tuple[int, ...] | None = None
    ) -> tuple[Path, ...]:
        """Publish what ``update`` computes of each leaf; return the nodes' paths in order. See `fold` for the rest."""
        return self.gathering.update(update, stage, iteration, *self._leaves(blocks, offsets))

    @property
    def gathering(self) -> Gathering:
        """What folds need of this session."""
        return Gathering(self.directory, self.config.execution, self.driver, self.journal, self.stop, self.journal_event)

    def _leaves(self, blocks: Blocks | None, offsets: tuple[int, ...] | None) -> tuple[Blocks, tuple[int, ...]]:
        if blocks is None:
            damaged = frozenset((self.directory.read_json("merge.json") or {}).get("damaged", ()))
            runs = ((self.directory.path.absolute(), self.manifest.n_units),)
            shards = Shards(self.result_stage, runs, damaged=damaged)
            return shards, offsets or cut_leaves(np.diff(self.manifest.offsets), self.config.execution.fold_size)
        if offsets is None:
            raise ValueError("a fold over blocks that are not the run's shards needs its leaves: give offsets")
        return blocks, offsets

    def _dispatch(
        self, job: StageJob, on_done: Callable[[UnitSummary], None], cases: Cases, isolation: IsolatedUnits
    ) -> Dispatch[UnitSummary]:
        task, run = make_task(job), self.directory.path
        return Dispatch(
            driver=self.driver,
            submit=lambda executor, unit, quarantine: executor.submit(execute, task(unit, quarantine)),
            on_done=on_done,
            activity=lambda: [a for a in read_inflight(run) if a.stage == job.stage],
            forget=lambda: clear_inflight(run, keep=isolation.processes),
            on_event=self.journal_event,
            timeout=self.config.execution.unit_timeout,
            stop=self.stop,
            window=self.config.execution.window,
            cases=cases,
            isolation=isolation,
        )

    def journal_event(self, word: str, details: dict[str, Any]) -> None:
        """Tell what happened to workers."""
        self.journal.write(word, **details)
        if word == "quarantine":
            self.warn(f"frame {details['row']} of unit {details['unit']} is left out: its worker {details['reason']} twice at it")
        elif word == "workers_lost":
            self.reporter.say(f"workers lost ({details['how']}); starting again")
        elif word == "made_again":
            self.reporter.say(f"{details['what']}: a file of it was damaged; all of it is made again")

    def _mixed(self, other: str) -> None:
        text = f"some shards were made on {other}, this machine has {instruction_set()}: results agree to 1e-6, not to the bit"
        if text not in self.warnings:
            self.warn(text)

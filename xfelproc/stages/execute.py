"""Read, process, publish: what a worker does with a unit. The only place where the stages meet files."""

from __future__ import annotations

import hashlib
import pickle
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from xfelproc.errors import ConfigError, DataError, OutputError
from xfelproc.io.atomic import make_folder, write_atomic
from xfelproc.io.inflight import record_of
from xfelproc.io.manifest import UnitInput
from xfelproc.io.shards import ShardHeader, UnitImages, shard_path, write_shard
from xfelproc.io.sources.settings import SourceSettings
from xfelproc.kernels.accumulate import accumulate_binned
from xfelproc.models.conventions import FrameStatus
from xfelproc.models.frames import Frame, FrameRef, WorkUnit
from xfelproc.stages.calibrating import FrameCalibration
from xfelproc.stages.published import find_shard, planned_lineage, read_lineage, unit_lineage
from xfelproc.stages.reprocess import Again, KnownFrame, KnownUnit, Placer, reprocess, unchanged
from xfelproc.stages.stills import STEPS, Stills, UnitBuilder, process
from xfelproc.stages.unit_sources import Opener, UnitSources
from xfelproc.stages.worker_log import WorkerLog, worker_name

IMAGE_UNITS = 10
"""One unit in this many adds up its pixels for the virtual powder and the maximum image."""
IMAGE_SIDE = 1000
"""Longer side of these, about, in pixels."""


@dataclass(frozen=True)
class StageJob:
    """What all units of a stage share.

    ``lineage`` is of parameters and versions; a unit adds its input. ``stamp`` is of the manifest's content: with another
    one a worker reads the manifest again.
    """

    run: Path
    stage: str
    manifest: Path
    stamp: str
    lineage: str
    instructions: str
    settings: SourceSettings
    stills: Stills
    opener: Opener
    dark: str | None = None
    gain: str | None = None
    images: bool = False
    calibration: str | None = None
    again: Again | None = None
    """What an earlier stage found is processed again, with another geometry."""


@dataclass(frozen=True)
class UnitTask:
    """One unit of a stage, small enough for a queue: the stage's job travels pickled, and is unpickled once a worker."""

    payload: bytes = field(repr=False)
    key: str
    unit: int
    quarantined: tuple[tuple[int, str], ...] = ()
    """Rows of frames that are not to be touched, with the reason."""


@dataclass(frozen=True)
class UnitSummary:
    """What the dispatcher learns of a published unit."""

    stage: str
    unit: int
    counts: dict[str, int]
    seconds: float
    worker: str
    failures: tuple[tuple[str, int], ...] = ()
    """The commonest reasons of failure, with their counts."""


def make_task(job: StageJob) -> Callable[[int, tuple[tuple[int, str], ...]], UnitTask]:
    """Return a maker of the tasks of a stage."""
    payload = pickle.dumps(job)
    key = hashlib.sha256(payload).hexdigest()
    return lambda unit, quarantined: UnitTask(payload, key, unit, quarantined)


class _Worker:
    """What a process keeps between units: the stage's job, sources and calibration."""

    def __init__(self, task: UnitTask) -> None:
        self.key = task.key
        self.job: StageJob = pickle.loads(task.payload)
        self.sources = UnitSources(self.job.manifest, self.job.opener, self.job.settings)
        self.calibration = FrameCalibration(self.job.stills.calibrate, self.job.dark, self.job.gain, self.job.calibration)
        self.placer = None if self.job.again is None else Placer(self.job.again)
        self.log = WorkerLog(self.job.run, self.job.stage)

    def close(self) -> None:
        """Release files."""
        self.sources.close()
        self.log.close()


_CURRENT: dict[str, _Worker] = {}


def _worker(task: UnitTask) -> _Worker:
    worker = _CURRENT.get("worker")
    if worker is None or worker.key != task.key:
        if worker is not None:
            worker.close()
        worker = _CURRENT["worker"] = _Worker(task)
    return worker


def execute(task: UnitTask) -> UnitSummary:
    """Process one unit and publish its shard.

    Raises
    ------
    OutputError
        If the shard cannot be written.
    """
    worker = _worker(task)
    job = worker.job
    given = worker.sources.begin(task.unit)
    published, _ = find_shard(shard_path(job.run, job.stage, task.unit), job.lineage, given)
    if published is not None:  # an attempt given up for lost had finished: the first shard wins
        return UnitSummary(job.stage, task.unit, published.counts, published.seconds, worker_name())
    record = record_of(job.run)
    try:
        with worker.log.unit(given.unit):
            return _execute(worker, given, dict(task.quarantined))
    finally:
        record.idle()


def _execute(worker: _Worker, given: UnitInput, quarantined: dict[int, str]) -> UnitSummary:
    job, begun, since = worker.job, time.process_time(), time.time()
    unit, lineage = given.unit, unit_lineage(job.lineage, given)
    record = record_of(job.run)
    record.mark(job.stage, unit.index, -1, since, lineage)
    builder, images, tracebacks = UnitBuilder(), _Images(job.images and unit.index % IMAGE_UNITS == 0), []
    known = None if job.again is None else KnownUnit.read(job.run, job.again.stage, unit.index)
    for row, ref in enumerate(unit.frames):
        worker.log.frame(row, ref)
        if row in quarantined:
            builder.fail(ref, quarantined[row])
            worker.log.failed(quarantined[row])
            continue
        record.mark(job.stage, unit.index, row, since, lineage)
        try:
            if known is None:
                _one_frame(worker, ref, builder, images)
            else:
                _frame_again(worker, ref, known.frame(row), builder)
        except (OutputError, ConfigError, MemoryError):
            raise
        except DataError as error:
            builder.fail(ref, str(error))
            worker.log.failed(str(error))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the per-frame boundary: a bug costs one frame, and keeps its traceback
            builder.fail(ref, f"{type(error).__name__}: {error}")
            worker.log.failed(f"{type(error).__name__}: {error}", bug=True)
            tracebacks.append(f"source {ref.source} frame {ref.index} (row {row})\n{traceback.format_exc()}")
    worker.log.frames_done()
    record.mark(job.stage, unit.index, -1, since, lineage)
    result = builder.build()
    seconds = time.process_time() - begun
    counts = {status.name: int(np.sum(result.frames["status"] == status)) for status in FrameStatus}
    counts |= {"LATTICES": len(result.lattices), "REFLECTIONS": len(result.reflections)}
    path = shard_path(job.run, job.stage, unit.index)
    make_folder(path.parent)
    planned, states = planned_lineage(job.lineage, given), worker.sources.states()
    header = ShardHeader(unit.index, read_lineage(planned, states), job.instructions, counts, seconds, path, planned)
    pictures = images.result() if known is None else known.images if job.images else None
    write_shard(path, header, result, pictures, (given.numbers[given.unseen], states))
    if tracebacks:
        _publish_log(job, unit, tracebacks)
    worker.log.unit_done(counts, dict(zip(STEPS, map(float, result.frames["times"].sum(axis=0)), strict=True)), seconds)
    failed = result.frames["status"] == FrameStatus.FAILED
    reasons, numbers = np.unique(result.frames["reason"][failed].astype(str), return_counts=True)
    failures = tuple(zip(map(str, reasons[:3]), map(int, numbers[:3]), strict=True))
    return UnitSummary(job.stage, unit.index, counts, seconds, worker_name(), failures)


def _one_frame(worker: _Worker, ref: FrameRef, builder: UnitBuilder, images: _Images) -> None:
    begun = time.process_time()
    source = worker.sources.source(ref.source)
    frame = source.read(ref.index, ref.source)
    read_time = 1e3 * (time.process_time() - begun)
    detector, constants = worker.calibration.constants(frame, source.static_mask(), source.path)
    result, calibrated = process(worker.job.stills, replace(frame, detector=detector), constants)
    builder.add(ref, result, read_time)
    images.add(calibrated)


def _frame_again(worker: _Worker, ref: FrameRef, known: KnownFrame, builder: UnitBuilder) -> None:
    """Process a frame again; its pixels are read only if it is to be integrated."""
    job, placer = worker.job, worker.placer
    assert job.again is not None, "the job says nothing of an earlier stage"
    assert placer is not None, "it is made with the job"
    if known.status < FrameStatus.HIT:
        builder.add(ref, unchanged(known, job.again.after), known.times[0])
        return
    source = worker.sources.source(ref.source)
    models = source.experiment(ref.index)
    detector = placer.place(models.detector)
    if detector is None:
        builder.add(ref, unchanged(known, models.detector), known.times[0])
        return

    def read() -> Frame:
        frame = replace(source.read(ref.index, ref.source), detector=detector)
        return worker.calibration.apply(frame, source.static_mask(), source.path)

    builder.add(ref, reprocess(job.stills, known, detector, models.beam, job.again.tolerance, read), known.times[0])


def _publish_log(job: StageJob, unit: WorkUnit, tracebacks: list[str]) -> None:
    shard = shard_path(job.run, job.stage, unit.index)
    path = job.run / "logs" / shard.relative_to(job.run / "shards").with_suffix(".log")  # at most a thousand to a folder, as shards
    make_folder(path.parent)
    write_atomic(path, "\n".join(tracebacks).encode())


class _Images:
    """Adds up calibrated frames, binned."""

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted
        self._images: UnitImages | None = None

    def add(self, frame: Frame) -> None:
        if not self._wanted:
            return
        panels, slow, fast = frame.pixels.shape
        if self._images is None:
            # panels of a segmented detector are small each: the side that counts is that of their area as one square
            side = max(slow, fast) if panels == 1 else int(np.sqrt(panels * slow * fast))
            binning = max(1, -(-side // IMAGE_SIDE))
            shape = (panels, -(-slow // binning), -(-fast // binning))
            self._images = UnitImages(np.zeros(shape, np.float32), np.zeros(shape, np.float32), 0, binning)
        images = self._images
        expected = (panels, -(-slow // images.binning), -(-fast // images.binning))
        if images.total.shape != expected:
            return  # another detector in the same run: the unit's picture stays that of its first frame
        accumulate_binned(frame.pixels, frame.mask, frame.trusted, images.binning, images.total, images.maximum)
        self._images = replace(images, n_frames=images.n_frames + 1)

    def result(self) -> UnitImages | None:
        return self._images

"""Folds over raw frames for commands that make one file of a run: averages, darks, gains, masks.

While such a command is at work its manifest, journal and partial results are in ``OUT.parts``, beside the file it makes. The same
command goes on from there; when the file is written the folder goes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfelproc.drivers.base import Driver
from xfelproc.errors import ConfigError, DataError
from xfelproc.io.atomic import make_folder, sweep_temporaries
from xfelproc.io.inflight import clear_inflight
from xfelproc.io.manifest import Manifest, write_manifest
from xfelproc.io.nodes import Partial
from xfelproc.io.shards import read_frames, shard_path
from xfelproc.io.sources.settings import SourceSettings
from xfelproc.models.conventions import FrameStatus
from xfelproc.models.experiment import Experiment
from xfelproc.run.config import Execution, JobConfig, apply_overrides, load_config, make_config
from xfelproc.run.directory import RunDirectory, open_run
from xfelproc.run.distance import source_settings
from xfelproc.run.folding import Gathering, read_partial
from xfelproc.run.geometry import recorded_stage
from xfelproc.run.journal import Journal
from xfelproc.run.lineage import digest, file_identity, versions
from xfelproc.run.lock import run_lock
from xfelproc.run.plan import make_plan
from xfelproc.run.recipes import Crew, default_opener, give_up
from xfelproc.run.session import Reporter
from xfelproc.run.signals import StopFlag
from xfelproc.stages.fold import Fold, NodeSummary, cut_leaves
from xfelproc.stages.frame_blocks import FrameBlocks, close_sources, problems_of
from xfelproc.stages.unit_sources import Opener

MOST_LEAVES = 128
"""Leaves of a fold over frames: each is of the detector's size on disk."""
SMALLEST_LEAF = 16
"""Frames a leaf at least: writing a partial result takes as long as adding up some frames."""

STATUSES = {
    "hits": (FrameStatus.HIT, FrameStatus.INDEXED, FrameStatus.INTEGRATED),
    "indexed": (FrameStatus.INDEXED, FrameStatus.INTEGRATED),
    "blank": (FrameStatus.BLANK,),
}
"""Which frames of a run are taken."""


@dataclass(frozen=True)
class FrameInput:
    """Frames, and how they are read: the job, the manifest, the models of the first frame."""

    config: JobConfig
    manifest: Manifest
    experiment: Experiment
    settings: SourceSettings

    @property
    def reading(self) -> str:
        """Hash of how frames are read."""
        content = self.settings.model_dump(mode="json")
        for name in ("geometry", "mask"):
            content[name] = file_identity(str(getattr(self.settings, name) or ""))
        return digest({"settings": content, "versions": versions()})

    def calibration(self) -> dict[str, Any]:
        """Return what the lineage of calibrated frames depends on."""
        given = self.config.input
        return {
            "calibrate": self.config.section("calibrate").model_dump(mode="json"),
            "files": [file_identity(str(getattr(given, name) or "")) for name in ("dark", "gain", "calibration")],
        }

    def offsets(self) -> tuple[int, ...]:
        """Return the leaves of folds over its units."""
        sizes = np.diff(self.manifest.offsets)
        size = self.config.execution.fold_size or max(SMALLEST_LEAF, -(-self.manifest.n_frames // MOST_LEAVES))
        return cut_leaves(sizes, size)


@dataclass
class FrameSession:
    """A command at work: where its parts are, who computes, and the frames."""

    directory: RunDirectory
    given: FrameInput
    driver: Driver
    journal: Journal
    reporter: Reporter
    stop: StopFlag
    opener: Opener
    warnings: list[str] = field(default_factory=list)

    def fold(self, fold: Fold, name: str, iteration: int = 0) -> Partial:
        """Return a fold's result over all frames, computed by workers; say which frames could not be read.

        Parameters
        ----------
        fold
            It is given `stages.frame_blocks.FrameReader`; its partial results have `stages.frame_blocks.problem_arrays`.
        name, iteration
            See `run.folding.Gathering.fold`.

        Raises
        ------
        DataError
            If frames cannot be folded.
        Interrupted
            After SIGINT or SIGTERM.
        """
        manifest, offsets = self.given.manifest, self.given.offsets()
        path = (self.directory.path / "manifest.h5").absolute()
        blocks = FrameBlocks(path, manifest.stamp, self.given.reading, self.opener, self.given.settings)
        self.reporter.stage(name, 0, manifest.n_frames)

        def on_node(summary: NodeSummary) -> None:
            if summary.level == 0:
                first, last = offsets[summary.node], offsets[summary.node + 1]
                self.reporter.unit(int(manifest.offsets[last] - manifest.offsets[first]), {})

        gathering = Gathering(
            self.directory, self.given.config.execution, self.driver, self.journal, self.stop, self._event, on_node
        )
        try:
            partial = read_partial(gathering.fold(fold, name, iteration, blocks, offsets))
        finally:
            close_sources()  # of the driver inline
        self._say_unread(partial)
        return partial

    def static_mask(self) -> NDArray[np.uint8]:
        """Return the static mask of the first source that can be opened.

        Raises
        ------
        DataError
            If none can.
        """
        manifest, problem = self.given.manifest, DataError("there are no frames")
        for number in dict.fromkeys(manifest.frame_source.tolist()):
            try:
                with self.opener(manifest.sources.path(number), self.given.settings) as source:
                    return source.static_mask()
            except DataError as error:
                problem = error
        raise problem

    def warn(self, text: str) -> None:
        """Tell the user."""
        if text not in self.warnings:
            self.warnings.append(text)
            self.reporter.say(f"warning: {text}")

    def _event(self, word: str, details: dict[str, Any]) -> None:
        self.journal.write(word, **details)
        if word == "workers_lost":
            self.reporter.say(f"workers lost ({details['how']}); starting again")

    def _say_unread(self, partial: Partial) -> None:
        n = int(partial["unread_frames"])
        if n:
            reason = problems_of(partial)[0][1]
            self.warn(f"{n} of {self.given.manifest.n_frames} frames cannot be read and are left out; the first: {reason}")


def job_of(inputs: Sequence[str], overrides: Sequence[str], execution: dict[str, Any]) -> JobConfig:
    """Return the job that files, or one job file, stand for. Sweeps are frames as any others here.

    Parameters
    ----------
    inputs
        A job file (``.toml``), or files, patterns, folders and @lists of frames.
    overrides
        ``section.key=value``.
    execution
        Keys of section ``[execution]`` that win.

    Raises
    ------
    ConfigError
        If there is nothing, or it is wrong.
    """
    jobs = [name for name in inputs if name.endswith(".toml")]
    if jobs and len(inputs) > 1:
        raise ConfigError(f"{jobs[0]}: a job file names its frames itself: give it alone, or files alone")
    if jobs:
        config = load_config(Path(jobs[0]), overrides)
    elif inputs:
        config = make_config(apply_overrides({"input": {"files": list(inputs)}}, overrides), Path.cwd())
    else:
        raise ConfigError("no frames are named: give files, or a job file")
    given = {key: value for key, value in execution.items() if value is not None}
    settings = Execution.model_validate({**config.execution.model_dump(), **given})
    return config.model_copy(update={"recipe": "stills", "execution": settings})


def planned(config: JobConfig, crew: Crew, opener: Opener, raw: bool = False) -> FrameInput:
    """Return the frames of a job; constants that frames are calibrated with are not looked at if they are taken ``raw``.

    Raises
    ------
    ConfigError
        If there are none.
    """
    asked = config
    if raw:
        given = config.input.model_copy(update={"dark": None, "gain": None, "calibration": None})
        asked = config.model_copy(update={"input": given, "calibrate": type(config.section("calibrate"))()})
    plan = make_plan(asked, opener, crew.map)
    return FrameInput(config, plan.manifest, plan.experiment, config.input.settings())


def frames_of_run(run: Path, which: str, config: JobConfig, say: Callable[[str], None], opener: Opener) -> FrameInput:
    """Return the frames of a run that came out in a certain way, read as ``config`` says.

    Parameters
    ----------
    which
        A key of `STATUSES`.
    config
        The run's job, or another one for the same frames.

    Raises
    ------
    ConfigError
        If this is no run, no unit is done, or no frame came out so.
    """
    directory = open_run(run)
    manifest = directory.read_manifest()
    wanted, rows, missing, stage = STATUSES[which], [], 0, recorded_stage(directory)
    for unit in range(manifest.n_units):
        path = shard_path(run, stage, unit)
        if not path.is_file():
            missing += 1
            continue
        rows.append(np.flatnonzero(np.isin(read_frames(path)["status"], wanted)) + manifest.offsets[unit])
    if missing:
        say(f"warning: {missing} of {manifest.n_units} units of {run} are not processed yet: their frames are not in it")
    chosen = np.concatenate(rows) if rows else np.zeros(0, np.int64)
    if len(chosen) == 0:
        raise ConfigError(f"{run}: no frame is {which}; 'xfelproc status {run}' shows what became of them")
    settings = source_settings(config, directory)
    first = int(manifest.frame_source[chosen[0]])
    with opener(manifest.sources.path(first), settings) as source:
        experiment = source.experiment(int(manifest.frame_index[chosen[0]]))
    size = config.execution.unit_size or max(1, min(SMALLEST_LEAF, len(chosen)))
    return FrameInput(config, manifest.with_frames(chosen.astype(np.int64), size), experiment, settings)


@contextmanager
def frame_session(
    output: Path,
    execution: Execution,
    find: Callable[[Crew, Opener], FrameInput],
    reporter: Reporter,
    opener: Opener | None = None,
) -> Iterator[FrameSession]:
    """Give a session whose parts are beside ``output``; the folder is removed when the block ends well.

    Parameters
    ----------
    find
        Finds the frames: `planned` or `frames_of_run`.

    Raises
    ------
    ConfigError
        If another command is at work at the same output, or the folder beside it is something else.
    """
    parts, opener, stop = output.with_name(f"{output.name}.parts"), opener or default_opener(), StopFlag()
    with ExitStack() as stack:
        stack.enter_context(stop.installed())
        crew = Crew(execution, parts / "logs")
        stack.callback(crew.close)
        given = find(crew, opener)
        directory = RunDirectory(parts)
        make_folder(output.absolute().parent)
        directory.create()
        lease = stack.enter_context(run_lock(parts, on_lost=stop.set))
        sweep_temporaries(parts)
        make_folder(directory.gather)
        write_manifest(directory.manifest, given.manifest)
        clear_inflight(parts)  # of a command that was killed: they would be taken for workers that are late
        journal = Journal(parts)
        stack.callback(journal.close)
        session = FrameSession(directory, given, crew.driver(), journal, reporter, stop, opener)
        stop.patient = True
        try:
            yield session
        except BaseException as error:
            give_up(session, error, lease.lost)
            raise
        crew.close()
        journal.close()
    shutil.rmtree(parts, ignore_errors=True)

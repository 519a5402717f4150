"""Recipes as ordered lists of stages, and the run of one."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from xfelproc.drivers.base import Driver, WorkerLost
from xfelproc.drivers.dask import DaskDriver
from xfelproc.drivers.inline import InlineDriver
from xfelproc.drivers.mpi import MPIDriver
from xfelproc.drivers.pool import PoolDriver
from xfelproc.errors import ConfigError, WorkersDieError, XfelprocError
from xfelproc.geometry.overlap import overlap_warning
from xfelproc.io.atomic import sweep_temporaries
from xfelproc.io.inflight import clear_inflight
from xfelproc.run.config import Execution, JobConfig
from xfelproc.run.directory import RunDirectory
from xfelproc.run.early import PRELOAD
from xfelproc.run.journal import Journal
from xfelproc.run.lock import run_lock
from xfelproc.run.metrics import MetricsFile
from xfelproc.run.plan import Plan, make_plan
from xfelproc.run.progress import Progress
from xfelproc.run.session import Reporter, Session
from xfelproc.run.signals import EXIT_INTERRUPTED, Interrupted, StopFlag
from xfelproc.run.suspects import SuspectFile
from xfelproc.stages.unit_sources import Opener

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    counts: Counter[str]
    exit_code: int
    messages: tuple[str, ...] = ()


@dataclass(frozen=True)
class RecipeStage:
    """A step of a recipe; its function lives in a module of ``run``, imported when its turn comes."""

    name: str
    module: str
    doc: str

    def load(self) -> Callable[[Session], Counter[str] | None]:
        """Return the function ``run_stage(session)``, which returns counts of frames if it processed some."""
        function: Callable[[Session], Counter[str] | None] = import_module(self.module).run_stage
        return function


STILLS = (
    RecipeStage("cell", "xfelproc.run.stage_cell", "the consensus cell from a sample of frames, where none is given"),
    RecipeStage("process", "xfelproc.run.stage_process", "every frame, from pixels to integrated lattices"),
    RecipeStage(
        "metrology", "xfelproc.run.stage_metrology", "refine the detector with all lattices, process again what that moves"
    ),
    RecipeStage(
        "combine", "xfelproc.run.stage_combine", "lattices of all shards as combined experiments, where they are asked for"
    ),
    RecipeStage("merge", "xfelproc.run.stage_merge", "scale and merge, write MTZ files"),
    RecipeStage("report", "xfelproc.run.stage_report", "write report.html"),
)
RECIPES = {"stills": STILLS}


def default_opener() -> Opener:
    """Return the dispatch over all formats."""
    from xfelproc.io.sources import open_source  # readers are many modules: not at start-up

    return open_source


def make_driver(execution: Execution, logs: Path) -> Driver:
    """Return the driver a job asks for; what a scheduler has to tell goes to files in the folder ``logs``."""
    if execution.driver == "inline":
        return InlineDriver()
    if execution.driver == "mpi":
        return MPIDriver(PRELOAD)
    if execution.driver == "dask":
        return DaskDriver(execution.workers, execution.dask, PRELOAD, logs)
    return PoolDriver(execution.workers, PRELOAD)


class Crew:
    """A job's driver, made when it is needed: a job that is wrong starts no workers."""

    def __init__(self, execution: Execution, logs: Path) -> None:
        self._execution, self._logs = execution, logs
        self._driver: Driver | None = None

    def driver(self) -> Driver:
        """Return the driver."""
        if self._driver is None:
            self._driver = make_driver(self._execution, self._logs)
        return self._driver

    def map(self, function: Callable[[A], B], tasks: Sequence[A]) -> Iterable[B]:
        """Have workers call a function, in order.

        Raises
        ------
        WorkersDieError
            If a worker dies of it.
        """
        try:
            return list(self.driver().executor().map(function, tasks))
        except (BrokenExecutor, WorkerLost) as error:
            self.driver().discard()
            raise WorkersDieError(
                "a worker died while it counted the frames of very many files: a damaged one may end the HDF5 library ('xfelproc "
                "inspect FILE' on parts of them tells which), or there is not enough memory"
            ) from error

    def close(self) -> None:
        """Let the workers go, if there are any."""
        if self._driver is not None:
            self._driver.close()


def stages_of(recipe: str, only: str | None) -> tuple[RecipeStage, ...]:
    """Return the stages to run, in the recipe's order: all, or those that ``only`` names, with commas between them.

    Raises
    ------
    ConfigError
        If there is no stage of a name.
    """
    stages = RECIPES[recipe]
    if only is None:
        return stages
    known, wanted = {stage.name for stage in stages}, {name.strip() for name in only.split(",")}
    if not wanted <= known:
        wrong = ", ".join(sorted(wanted - known))
        raise ConfigError(f"--only {wrong}: there is no such stage (known: {', '.join(stage.name for stage in stages)})")
    return tuple(stage for stage in stages if stage.name in wanted)


def run_job(
    config: JobConfig,
    output: Path,
    reporter: Reporter,
    only: str | None = None,
    restart: bool = False,
    opener: Opener | None = None,
    patience: float = 0.0,
) -> Outcome:
    """Run a job in a run directory, going on from what is there; wait ``patience`` seconds for another run that holds it.

    Raises
    ------
    ConfigError
        The job is wrong, or the directory holds something else: nothing was started.
    OutputError
        The disk is full or went away; what is published stays.
    Interrupted
        After SIGINT, SIGTERM or SIGUSR1; the same command goes on.
    """
    begun, opener, stop = time.monotonic(), opener or default_opener(), StopFlag()
    with ExitStack() as stack:
        stack.enter_context(stop.installed())
        crew = Crew(config.execution, output / "logs")
        stack.callback(crew.close)
        plan = make_plan(config, opener, crew.map)
        stages = stages_of(plan.recipe, only)
        directory = RunDirectory(output)
        directory.create()
        lease = stack.enter_context(run_lock(output, patience, stop.set))
        if restart:
            directory.clear()
        else:
            directory.check_parameters(config)
            SuspectFile(directory).collect()
        directory.publish(config, plan.manifest)
        clear_inflight(output)
        metrics = MetricsFile(output, Progress(np.diff(plan.manifest.offsets)))
        journal = Journal(output, metrics.event)
        stack.callback(journal.close)
        if restart:
            journal.write("restart")
        session = _session(config, plan, directory, opener, crew.driver(), journal, reporter, stop)
        session.times["plan"] = time.monotonic() - begun
        stop.patient = True
        try:
            outcome = _run_stages(session, stages)
            lease.check()
        except BaseException as error:
            give_up(session, error, lease.lost)
            raise
        finally:
            crew.close()
        clear_inflight(output)
        sweep_temporaries(output)  # of workers that were killed
        return outcome


class Working(Protocol):
    """What ends when work is given up."""

    @property
    def directory(self) -> RunDirectory:
        """Where the work is done."""

    @property
    def driver(self) -> Driver:
        """Who does it."""

    @property
    def journal(self) -> Journal:
        """What tells of it."""


def give_up(session: Working, error: BaseException, lost: bool = False) -> None:
    """End the workers, and say that the end is known: no frame is to blame for it.

    Where the lock was ``lost``, journal and records are of the run that has it now, and are left alone.
    """
    code = EXIT_INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1
    if isinstance(error, (Interrupted, XfelprocError)):
        code = error.exit_code
    if lost:
        session.driver.discard(code)
        return
    # where a lost worker ends all others by SIGTERM, as a user does, the workers' records alone tell whether a frame is to blame
    known = session.driver.restartable or not isinstance(error, Interrupted) or error.number != signal.SIGTERM
    try:
        session.journal.write("stopped", why=type(error).__name__, error=str(error), exit_code=code, known=known)
    finally:  # where a full disk takes no word, that the records are gone says the same
        session.driver.discard(code)
        if known:
            clear_inflight(session.directory.path)


def _session(
    config: JobConfig,
    plan: Plan,
    directory: RunDirectory,
    opener: Opener,
    driver: Driver,
    journal: Journal,
    reporter: Reporter,
    stop: StopFlag,
) -> Session:
    session = Session(directory, config, plan.manifest, plan.experiment, opener, driver, journal, reporter, stop)
    journal.write("start", frames=plan.manifest.n_frames, units=plan.manifest.n_units, driver=driver.name, workers=driver.workers)
    if driver.note is not None:
        reporter.say(driver.note)
    for number, error in plan.manifest.sources.errors.items():
        session.warn(f"{plan.manifest.sources.path(number)} cannot be opened: {error}")
    overlap = overlap_warning(plan.experiment.detector)
    if overlap is not None:
        session.warn(overlap)
    return session


def _run_stages(session: Session, stages: tuple[RecipeStage, ...]) -> Outcome:
    counts: Counter[str] = Counter()
    for stage in stages:
        if session.stop.raised:
            raise Interrupted(session.stop.raised)
        with session.timed(stage.name):
            counts = stage.load()(session) or counts
    failed, total = counts["FAILED"], session.manifest.n_frames
    allowed = session.config.execution.max_failed * total
    code, messages = 0, []
    if failed > allowed:
        code = 1
        messages.append(
            f"{failed} of {total} frames failed, more than execution.max_failed = {session.config.execution.max_failed:g} allows; "
            "the results of all others are kept"
        )
    record = session.directory.read_json("merge.json")
    if record is not None and record["empty"] and any(stage.name == "merge" for stage in stages):
        code = 1
        messages += record["warnings"]
    if record is not None and record.get("damaged"):
        code = 1
        messages.append(f"{len(record['damaged'])} shards are damaged: see the warnings; the results of all others are kept")
    session.journal.write("end", counts=dict(counts), exit_code=code)
    return Outcome(counts, code, (*messages,))
